"""What to log in with: a user name, and a password or an access token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal, Protocol

from pydantic import SecretStr

from probes.core.secret import BearerToken
from probes.core.settings import MailboxSettings, ServerSettings
from probes.core.verdict import PhaseTimer

Resource = Literal["mail", "graph"]
"""What an access token is for: SMTP, POP3 and IMAP, or Microsoft Graph."""


class TokenSource(Protocol):
    """Where access tokens come from: an entry of ``oauth2``."""

    @property
    def proxy(self) -> str | None:
        """The URL of the HTTP proxy that is configured for it, if any."""
        ...

    async def token(self, resource: Resource, username: str, phases: PhaseTimer) -> BearerToken:
        """Return a token with which ``username`` can log in; raises `probes.core.faults.ProbeFault`."""
        ...


Tokens = Mapping[str, TokenSource]
"""Token sources, by the name of their entry."""

NO_TOKENS: Tokens = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user name with a password, or with the source of its tokens and what they are for."""

    username: str
    source: SecretStr | TokenSource
    resource: Resource = "mail"

    @property
    def proxy(self) -> str | None:
        """The URL of the HTTP proxy that is configured for the source of tokens, if any."""
        return None if isinstance(self.source, SecretStr) else self.source.proxy

    async def secret(self, phases: PhaseTimer) -> SecretStr:
        """Return the password, or a valid token, which may have to be fetched first, in phase ``token``.

        Call it before connecting, so that no time of a token endpoint counts as a mail server's. Raises
        `ProbeFault` if there is no token.
        """
        if isinstance(self.source, SecretStr):
            return self.source
        return await self.source.token(self.resource, self.username, phases)


def mailbox_credentials(mailbox: MailboxSettings, tokens: Tokens, resource: Resource = "mail") -> Credentials:
    """Return what to log in with to a mailbox, which always has a password or ``oauth2``."""
    credentials = credentials_of(mailbox, tokens)
    assert credentials is not None  # noqa: S101 # as its settings require
    return replace(credentials, resource=resource)


def credentials_of(entry: ServerSettings | MailboxSettings, tokens: Tokens) -> Credentials | None:
    """Return what to log in with to a server or mailbox; ``None`` if nothing is configured."""
    if isinstance(entry, ServerSettings) and entry.protocol == "graph":
        return Credentials(entry.username or "", tokens[entry.oauth2 or ""], "graph")
    if entry.username is None:
        return None
    if entry.oauth2 is not None:
        return Credentials(entry.username, tokens[entry.oauth2])
    return Credentials(entry.username, entry.password) if entry.password is not None else None
