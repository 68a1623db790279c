"""Requests for access tokens: what each provider is sent, and what its answer means (RFC 6749 section 5)."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlencode

from probes.core.credentials import Resource
from probes.core.faults import ProbeFault, legible
from probes.core.reasons import Reason
from probes.core.redaction import Redaction
from probes.core.verdict import PhaseTimer
from probes.oauth2.keys import (
    client_assertion,
    delegated_assertion,
    read_certificate,
    read_service_account,
)
from probes.oauth2.refusals import remedy_of
from probes.oauth2.settings import AnyOAuth2, GoogleOAuth2, MicrosoftOAuth2, OAuth2Settings
from probes.oauth2.stored_token import StoredToken
from probes.protocols.https import HttpClient, Response, proxy_for

REQUEST_SECONDS = 20.0
"""Maximum seconds for one request to a token endpoint."""

TOKEN_ANSWER_LIMIT = 64 * 1024
"""Maximum octets of its answer."""

TOKEN_LIMIT = 8192
"""Maximum characters of a token, so that it fits SMTP's 12,288 octets in base64 (RFC 4954 section 4)."""

USUAL_LIFETIME = 3600.0
"""Seconds that a token is taken to be valid if the provider does not say (RFC 6749 section 5.1)."""

_log = logging.getLogger(__name__)

_TEMPORARY = frozenset({"temporarily_unavailable", "server_error", "slow_down"})
_JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


@dataclass(frozen=True, slots=True)
class Grant:
    """A token, and for how many seconds it is valid."""

    token: str = field(repr=False)
    lifetime: float


class TokenError(ProbeFault):
    """The endpoint answered with an error code of RFC 6749 or RFC 8628, such as ``invalid_client``."""

    def __init__(self, code: str, text: str, retry_after: float | None = None) -> None:
        self.code = code
        reason = Reason.TOKEN_UNAVAILABLE if code in _TEMPORARY else Reason.TOKEN_REFUSED
        super().__init__(
            reason,
            legible(f"{code}: {text}" if text else code, 250),
            retry_after=retry_after,
            remedy=remedy_of(code, text),
        )


async def fetch(
    settings: AnyOAuth2, resource: Resource, subject: str, phases: PhaseTimer, now: float
) -> Grant:
    """Fetch a token for ``resource``; ``now`` is in unix seconds.

    ``subject`` is the mailbox that a service account acts as; others ignore it. Raises `ProbeFault` with
    `TOKEN_REFUSED` if the provider refuses, and with `TOKEN_UNAVAILABLE` for everything else. If the
    provider returns a new refresh token, it replaces the stored one.
    """
    stored = _stored(settings)
    form = _form(settings, resource, subject, stored, now)
    answer = await request(settings, settings.token_endpoint, form, phases)
    try:
        grant = _grant(answer)
    except ProbeFault as fault:
        phases.transcript.redaction.fault(fault)
        raise
    renewed = answer.get("refresh_token")
    if stored is not None and isinstance(renewed, str):
        try:
            stored.write(renewed)
        except OSError as error:  # the token at hand is good
            _log.warning("the renewed refresh token could not be stored: %s", error.strerror)
    return grant


def _stored(settings: AnyOAuth2) -> StoredToken | None:
    path = None if isinstance(settings, GoogleOAuth2) else settings.token_file
    return None if path is None else StoredToken(path)


def _form(
    settings: AnyOAuth2, resource: Resource, subject: str, stored: StoredToken | None, now: float
) -> dict[str, str]:
    """Return the fields of the request; raises `ProbeFault` if a file that they need cannot be used."""
    scope, endpoint = settings.scope(resource), settings.token_endpoint
    try:
        if isinstance(settings, GoogleOAuth2):
            account = read_service_account(settings.service_account)
            assertion = delegated_assertion(account, subject, scope, endpoint, now)
            return {"grant_type": _JWT_BEARER, "assertion": assertion}
        form = {"client_id": settings.client_id} | ({"scope": scope} if scope else {})
        if settings.client_secret is not None:
            form["client_secret"] = settings.client_secret.get_secret_value()
        refresh = stored.read() if stored is not None else None
        if refresh is None and not isinstance(settings, MicrosoftOAuth2) and settings.refresh_token:
            refresh = settings.refresh_token.get_secret_value()
        if refresh is not None:
            return {"grant_type": "refresh_token", "refresh_token": refresh} | form
        if isinstance(settings, MicrosoftOAuth2) and settings.certificate is not None:
            certificate = read_certificate(settings.certificate)
            form["client_assertion_type"] = _ASSERTION_TYPE
            form["client_assertion"] = client_assertion(certificate, settings.client_id, endpoint, now)
    except ValueError as error:
        raise ProbeFault(Reason.TOKEN_UNAVAILABLE, str(error)) from None
    return {"grant_type": "client_credentials"} | form


def _withhold(form: Mapping[str, str], redaction: Redaction) -> None:
    if "client_secret" in form:
        redaction.add(form["client_secret"])
    for name in ("refresh_token", "client_assertion", "assertion", "device_code"):
        if name in form:
            redaction.add_token(form[name])


async def request(
    settings: OAuth2Settings, url: str, form: Mapping[str, str], phases: PhaseTimer
) -> dict[str, object]:
    """Send a form to a provider's endpoint and return the JSON object that it answers.

    Raises `TokenError` for an error of RFC 6749 section 5.2, and otherwise `ProbeFault` with
    `TOKEN_UNAVAILABLE`. The form's secrets appear in neither.
    """
    _withhold(form, phases.transcript.redaction)
    try:
        async with HttpClient(
            phases,
            seconds=REQUEST_SECONDS,
            ca=settings.tls_ca,
            with_system=True,
            proxy=proxy_for(url, settings.proxy),
        ) as client:
            response = await client.request(
                "POST",
                url,
                headers={
                    "accept": "application/json",
                    "content-type": "application/x-www-form-urlencoded",
                },
                content=urlencode(form).encode(),
                limit=TOKEN_ANSWER_LIMIT,
            )
    except ProbeFault as fault:
        phases.transcript.redaction.fault(fault)
        if fault.reason is not Reason.LOCAL_RESOURCES:
            fault.detail = legible(f"{fault}")
            fault.reason = Reason.TOKEN_UNAVAILABLE
        raise
    phases.throttled += response.status == 429  # RFC 6585 section 4
    try:
        return _answer(response)
    except ProbeFault as fault:
        phases.transcript.redaction.fault(fault)
        raise


def _answer(response: Response) -> dict[str, object]:
    told = f"HTTP status {response.status}"
    if response.is_cut:
        raise ProbeFault(Reason.TOKEN_UNAVAILABLE, f"{told}, and more than {TOKEN_ANSWER_LIMIT} octets")
    try:
        answer = json.loads(response.body)
    except (ValueError, RecursionError):
        answer = None
    retry_after = response.retry_after
    if not isinstance(answer, dict):
        raise ProbeFault(Reason.TOKEN_UNAVAILABLE, f"{told}, without a JSON object", retry_after=retry_after)
    code = answer.get("error")
    if isinstance(code, str):
        is_ours = 400 <= response.status < 500 and response.status != 429
        text = legible(str(answer.get("error_description", "")).partition("\n")[0], 200)
        raise TokenError(legible(code, 80) if is_ours else "temporarily_unavailable", text, retry_after)
    if not response.is_success:
        raise ProbeFault(Reason.TOKEN_UNAVAILABLE, told, retry_after=retry_after)
    return answer


def _grant(answer: Mapping[str, object]) -> Grant:
    token, lifetime = answer.get("access_token"), answer.get("expires_in", USUAL_LIFETIME)
    kind = answer.get("token_type", "Bearer")
    if not isinstance(token, str) or not token:
        raise ProbeFault(Reason.TOKEN_UNAVAILABLE, "the answer has no access_token")
    if len(token) > TOKEN_LIMIT or not token.isascii() or not token.isprintable() or " " in token:
        raise ProbeFault(
            Reason.TOKEN_UNAVAILABLE, f"the token is longer than {TOKEN_LIMIT} characters, or not ASCII"
        )
    if not isinstance(kind, str) or kind.lower() != "bearer":
        raise ProbeFault(
            Reason.TOKEN_UNAVAILABLE, f"the token's type is {legible(str(kind), 40)}, not Bearer"
        )
    try:
        seconds = float(lifetime)  # type: ignore[arg-type] # anything else is a TypeError
    except (TypeError, ValueError, OverflowError):
        seconds = USUAL_LIFETIME
    if not seconds > 0:
        raise ProbeFault(Reason.TOKEN_UNAVAILABLE, "the token has expired already, by its expires_in")
    return Grant(token, min(seconds, 86400.0))
