"""Microsoft's token endpoint for client credentials, as documented: it verifies secrets and assertions."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding

from probes.core.clock import Clock
from tests.fakes.graph.http import Answer, Request

ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
PAST_LIFETIME = 3600


def _coded(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _refused(code: str, text: str) -> Answer:
    return Answer(400 if code == "invalid_request" else 401, {"error": code, "error_description": text})


@dataclass
class Entra:
    """One application of one tenant, and the roles that its tokens have."""

    clock: Clock
    tenant: str = "contoso.onmicrosoft.com"
    client_id: str = "11111111-2222-3333-4444-555555555555"
    secret: str = "s3cret-of-the-application"  # of a test
    certificate: x509.Certificate | None = None
    roles: list[str] = field(default_factory=lambda: ["Mail.ReadWrite", "Mail.Send"])
    lifetime: float = 3600.0
    url: str = ""
    """Where it is; the audience of an assertion is its token endpoint."""
    issued: int = 0
    _key: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    _assertions: set[str] = field(default_factory=set)

    def token(self, audience: str, roles: list[str] | None = None, lifetime: float | None = None) -> str:
        """Return a token as this endpoint issues it."""
        expires = self.clock.time() + (self.lifetime if lifetime is None else lifetime)
        claims = {"aud": audience, "exp": expires, "roles": self.roles if roles is None else roles}
        signed = f"{_coded(b'{}')}.{_coded(json.dumps(claims).encode())}"
        return f"{signed}.{_coded(hmac.digest(self._key, signed.encode(), hashlib.sha256))}"

    def claims(self, token: str, audience: str) -> dict[str, Any] | None:
        """Return what a token says if it is ours, for ``audience`` and still valid."""
        signed, _, signature = token.rpartition(".")
        expected = _coded(hmac.digest(self._key, signed.encode(), hashlib.sha256))
        if not hmac.compare_digest(signature.encode(), expected.encode()):
            return None
        claims: dict[str, Any] = json.loads(_decoded(signed.partition(".")[2]))
        return claims if claims["aud"] == audience and claims["exp"] > self.clock.time() else None

    async def answer(self, request: Request) -> Answer:
        """Answer a request for a token."""
        if request.method != "POST" or request.path != [self.tenant, "oauth2", "v2.0", "token"]:
            return Answer(404)
        form = dict(parse_qsl(request.body.decode()))
        if form.get("grant_type") != "client_credentials":
            return _refused("invalid_request", "AADSTS70003: The grant type is not supported.")
        resource, _, default = form.get("scope", "").rpartition("/")
        if default != ".default" or not resource.startswith("http"):
            return _refused("invalid_request", "AADSTS1002012: The scope is not valid.")
        if form.get("client_id") != self.client_id:
            return _refused("unauthorized_client", "AADSTS700016: Application was not found.")
        if "client_assertion" in form:
            if (fault := self._assertion_fault(form)) is not None:
                return _refused("invalid_client", fault)
        elif not hmac.compare_digest(form.get("client_secret", ""), self.secret):
            return _refused("invalid_client", "AADSTS7000215: Invalid client secret provided.")
        self.issued += 1
        answer = {"token_type": "Bearer", "expires_in": round(self.lifetime)}
        return Answer(200, {**answer, "access_token": self.token(resource)})

    def _assertion_fault(self, form: dict[str, str]) -> str | None:
        """Return why a client assertion (RFC 7523) is refused."""
        if form.get("client_assertion_type") != ASSERTION or self.certificate is None:
            return "AADSTS7000222: no certificate is registered."
        signed, _, signature = form["client_assertion"].rpartition(".")
        header, claims = (json.loads(_decoded(part)) for part in signed.split("."))
        thumbprint = hashlib.sha256(self.certificate.public_bytes(Encoding.DER)).digest()
        key = self.certificate.public_key()
        assert isinstance(key, RSAPublicKey)
        pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
        try:
            fill = {"RS256": padding.PKCS1v15(), "PS256": pss}[header["alg"]]
            key.verify(_decoded(signature), signed.encode(), fill, hashes.SHA256())
        except (InvalidSignature, KeyError):
            return "AADSTS700027: The certificate's signature is not valid."
        now, lifetime = self.clock.time(), claims["exp"] - claims.get("nbf", claims.get("iat", 0))
        if header.get("x5t#S256") != _coded(thumbprint):
            return "AADSTS700027: The key was not found by its thumbprint."
        if claims["aud"] != f"{self.url}/{self.tenant}/oauth2/v2.0/token":
            return "AADSTS700023: The audience is wrong."
        if claims["iss"] != self.client_id or claims["sub"] != self.client_id:
            return "AADSTS700021: The issuer is wrong."
        if claims["exp"] <= now or claims.get("nbf", now) > now + 300 or lifetime > PAST_LIFETIME:
            return "AADSTS700024: The assertion is not within its valid time range."
        if claims["jti"] in self._assertions:
            return "AADSTS7000029: The assertion was used before."
        self._assertions.add(claims["jti"])
        return None
