"""What to do when a provider refuses a token, by its error codes; and what a token itself shows."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping

from probes.core.faults import legible

_BY_CODE: Mapping[str, str] = {
    # Microsoft's "Microsoft Entra authentication and authorization error codes".
    "AADSTS7000215": "Set client_secret to the secret's value, not to its id.",
    "AADSTS7000222": "Make a new client secret: this one has expired.",
    "AADSTS700016": "Correct client_id and tenant: the tenant has no such application.",
    "AADSTS90002": "Correct tenant and cloud: there is no tenant of that name in this cloud.",
    "AADSTS700027": "Upload the certificate to the application registration; it has another one, or none.",
    "AADSTS700024": "Set this machine's clock: the assertion's time is not now.",
    "AADSTS65001": "Grant admin consent to the application's permissions.",
    "AADSTS53003": "Exclude the application from the Conditional Access policy that blocks it.",
    "AADSTS7000112": "Enable the application: somebody disabled it in the tenant.",
    "AADSTS70043": "Log in again with `mailsonde login`: the refresh token has expired.",
    "AADSTS700082": "Log in again with `mailsonde login`: the refresh token has expired.",
    "AADSTS50173": "Log in again with `mailsonde login`: the password was changed since.",
    # RFC 6749 section 5.2, and Google's "Using OAuth 2.0 for Server to Server Applications".
    "invalid_client": "Correct client_id and client_secret, or the certificate.",
    "unauthorized_client": (
        "Allow the grant to the client; at Google, delegate the scope https://mail.google.com/ to it."
    ),
    "invalid_scope": "Correct scope.",
    "invalid_grant": "Log in again, or check the mailbox's address and this machine's clock.",
    "access_denied": "Log in again, and accept.",
}
_CODE = re.compile(r"AADSTS[0-9]{4,8}")

_OBJECT_ID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_NO_TIME = 1e11  # unix seconds: the year 5138

CLAIMS_LIMIT = 16 * 1024
"""Maximum characters of a token's claims."""


def remedy_of(code: str, text: str) -> str:
    """Return what to do about an error of a token endpoint; empty if nothing is known."""
    found = _CODE.search(text)
    return (_BY_CODE.get(found[0], "") if found else "") or _BY_CODE.get(code, "")


def claims_of(token: str) -> Mapping[str, object]:
    """Return the claims of a JWT (RFC 7519) without verifying them; none if it is no JWT.

    They show what the provider issued. Nobody else needs to trust them.
    """
    parts = token.split(".")
    if len(parts) != 3 or len(parts[1]) > CLAIMS_LIMIT:
        return {}
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, RecursionError):
        return {}
    return claims if isinstance(claims, dict) else {}


def remarks(
    claims: Mapping[str, object], resource: str, permissions: frozenset[str], now: float
) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with a token's claims, and what to do about each.

    ``resource`` is the URL that the token should be for, ``permissions`` are those of which it needs one;
    ``now`` is in unix seconds.
    """
    audiences = [text for text in _texts(claims.get("aud")) if text.startswith("https://")]
    if audiences and resource not in {audience.rstrip("/") for audience in audiences}:
        yield (
            f"the token is for {legible(audiences[0], 80)}, not for {resource}",
            "Correct `cloud`, or the provider's scope.",
        )
    roles = claims.get("roles", claims.get("scp"))
    held = {word for text in _texts(roles) for word in text.split()}
    if claims and permissions and not permissions & held:
        wanted = " or ".join(sorted(permissions))
        yield f"the token has no permission {wanted}", f"Add {wanted} to the application, and grant consent."
    if wide := sorted(role for role in held if role.startswith("Mail.") and "roles" in claims):
        yield (
            f"the token holds {legible(', '.join(wide), 200)} for every mailbox of the tenant",
            "Remove the consent in Entra, and grant the permission for one mailbox by RBAC for Applications.",
        )
    issued = claims.get("iat")
    if isinstance(issued, int | float) and abs(issued) < _NO_TIME and abs(issued - now) > 300.0:
        yield f"this machine's clock is {now - issued:+.0f} s off the provider's", "Set this machine's clock."


def _texts(claim: object) -> list[str]:
    """Return a claim that is a text or a list of texts (RFC 7519 section 4.1.3), without anything else."""
    return [text for text in (claim if isinstance(claim, list) else [claim]) if isinstance(text, str)]


def login_remedy(claims: Mapping[str, object]) -> str:
    """Return what to do if Exchange Online refuses an application's token at login; empty if not known.

    The claim ``oid`` of such a token is the object id of its service principal, the Enterprise application.
    """
    oid = claims.get("oid")
    if "scp" in claims or not isinstance(oid, str) or not _OBJECT_ID.fullmatch(oid):
        return ""
    return (
        f"Compare the object id in Get-ServicePrincipal with {oid}, that of the Enterprise application: with "
        "the app registration's, every login fails. Then check the permission and its consent."
    )
