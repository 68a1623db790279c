"""NTLM's security contexts and channel bindings (RFC 2743, MS-NLMP): the one place that uses pyspnego.

pyspnego is imported by the first context: that takes a fifth of a second, and few sites need it.
"""

from __future__ import annotations

import struct

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes

from probes.core.faults import ProbeFault
from probes.core.reasons import Reason

CHALLENGE_LIMIT = 16 * 1024
"""Maximum octets of a server's challenge; real ones have less than 1 KiB."""

_HEADER = 48  # octets of a challenge's fixed part
_FIELDS = (12, 40)  # where it has length and offset of the target's name and of its description
_WEAK = (hashes.MD5, hashes.SHA1)


class NtlmContext:
    """One exchange by NTLMv2: `step` gives the first token, and the answer to the server's challenge.

    ``username`` may be ``user``, ``DOMAIN\\user`` or ``user@domain``. ``service`` and ``host`` name the
    server as its service principal does, such as ``HTTP`` and ``mail.example.com``.

    Making a context takes 2 to 3 ms of processor time, and the first one 200 ms; `step` takes less than 1 ms.
    """

    def __init__(
        self,
        username: str,
        password: str,
        *,
        service: str,
        host: str,
    ) -> None:
        import spnego  # here, as this module's docstring says

        self._context = spnego.client(
            username,
            password,
            hostname=host,
            service=service,
            protocol="ntlm",
            options=spnego.NegotiateOptions.use_ntlm,  # whatever libraries this machine has
        )

    def step(self, token: bytes | None = None, bindings: bytes | None = None) -> bytes:
        """Return our next token; ``token`` is the server's challenge, ``None`` at first.

        ``bindings`` tie the answer to the TLS connection on which the challenge came; see
        `end_point_bindings`. Raises `ProbeFault` with `PROTOCOL_ERROR` for a challenge that is malformed, and
        for a second one.
        """
        from spnego.channel_bindings import GssChannelBindings
        from spnego.exceptions import SpnegoError

        if token is not None and len(token) > CHALLENGE_LIMIT:
            raise ProbeFault(
                Reason.PROTOCOL_ERROR, f"an NTLM challenge of more than {CHALLENGE_LIMIT} octets"
            )
        if token is not None and not _is_whole(token):
            raise ProbeFault(Reason.PROTOCOL_ERROR, "not an NTLM challenge, or cut short")
        if self._context.complete:
            raise ProbeFault(Reason.PROTOCOL_ERROR, "an NTLM challenge after the last answer")
        bound = GssChannelBindings(application_data=bindings) if bindings else None
        try:
            answer = self._context.step(token, channel_bindings=bound)
        except (SpnegoError, ValueError, LookupError, ArithmeticError, struct.error) as error:
            said = f"not an NTLM challenge: {type(error).__name__}"  # its text may quote what is secret
            raise ProbeFault(Reason.PROTOCOL_ERROR, said) from None
        return answer or b""


def _is_whole(challenge: bytes) -> bool:
    """Return whether a challenge has the fields that its header announces (MS-NLMP section 2.2.1.2).

    pyspnego takes missing ones for empty, and would answer all the same.
    """
    if len(challenge) < _HEADER:
        return False
    fields = (struct.unpack_from("<HxxI", challenge, where) for where in _FIELDS)
    return all(offset + length <= len(challenge) for length, offset in fields)


def end_point_bindings(certificate: bytes) -> bytes:
    """Return the data of channel bindings of type tls-server-end-point (RFC 5929 section 4).

    ``certificate`` is the server's own, in DER, as the TLS connection received it. Its hash is the one in its
    signature, and SHA-256 in place of MD5 and SHA-1. Raises ValueError if it is no certificate, or if its
    signature has no hash (Ed25519), for which RFC 5929 defines no bindings.
    """
    parsed = x509.load_der_x509_certificate(certificate)
    try:
        algorithm = parsed.signature_hash_algorithm
    except UnsupportedAlgorithm as error:
        raise ValueError(str(error)) from error
    if algorithm is None:
        raise ValueError("the signature of the server's certificate has no hash for channel bindings")
    digest = parsed.fingerprint(hashes.SHA256() if isinstance(algorithm, _WEAK) else algorithm)
    return b"tls-server-end-point:" + digest
