"""Access tokens at hand: shared, renewed ahead of their expiry, and fetched by one request at a time."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from probes.core.clock import Clock
from probes.core.credentials import Resource
from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.secret import BearerToken
from probes.core.trouble_log import TroubleLog
from probes.core.verdict import TOKEN, PhaseTimer
from probes.oauth2 import grants
from probes.oauth2.grants import Grant
from probes.oauth2.keys import read_certificate
from probes.oauth2.settings import AnyOAuth2, GoogleOAuth2, MicrosoftOAuth2

RENEWED_BEFORE = (0.1, 0.15)
"""Parts of a token's lifetime, from shortest to longest, that are left when it is renewed."""

SHORTEST_LEFT = 10.0
"""Seconds of a token's lifetime that a login needs."""

FIRST_PAUSE, LONGEST_PAUSE = 5.0, 120.0
"""Seconds after the first failure, and at most; they double. Each pause is up to half as long again."""

REFUSED_AT_LEAST = 600.0
"""Minimum seconds from one new token that servers refused to the next."""

_log = logging.getLogger(__name__)

Fetch = Callable[[AnyOAuth2, Resource, str, PhaseTimer, float], Awaitable[Grant]]


@dataclass(slots=True)
class Requests:
    """What an entry's requests for tokens came to. Times are in unix seconds."""

    issued: int = 0
    failed: dict[Reason, int] = field(default_factory=dict)
    throttled: int = 0
    """How many of those that failed the provider refused because it limits this client."""
    obtained_at: float | None = None
    """When the newest token was obtained."""
    expires_at: float | None = None
    """When it expires."""

    @property
    def results(self) -> dict[str, int]:
        """The number of requests by result; one that the provider did not answer is ``unavailable``."""
        refused = self.failed.get(Reason.TOKEN_REFUSED, 0)
        unavailable = sum(self.failed.values()) - refused
        return {"issued": self.issued, "refused": refused, "unavailable": unavailable}


@dataclass(slots=True)
class _Held:
    """The token of one resource and subject. Times are by `Clock.since_boot`."""

    trouble: TroubleLog
    token: BearerToken | None = None
    obtained_at: float = float("-inf")
    renewed_at: float = float("-inf")
    expires_at: float = float("-inf")
    refused_at: float = float("-inf")
    is_refused: bool = False  # whether a server refused the token, and no request for another has ended yet
    tried_at: float = float("-inf")  # no request before this, after a failure
    pause: float = FIRST_PAUSE
    fault: ProbeFault | None = None  # of the latest request
    request: asyncio.Task[None] | None = None


class TokenSource:
    """The tokens of an ``oauth2`` entry: one for each resource and, with a service account, each mailbox."""

    def __init__(self, name: str, settings: AnyOAuth2, clock: Clock, fetch: Fetch = grants.fetch) -> None:
        self.name = name
        self.settings = settings
        self.requests = Requests()
        self._clock = clock
        self._fetch = fetch
        self._held: dict[tuple[Resource, str], _Held] = {}

    @property
    def proxy(self) -> str | None:
        """The HTTP proxy of its requests; those to Graph take the same."""
        return self.settings.proxy

    async def token(self, resource: Resource, username: str, phases: PhaseTimer) -> BearerToken:
        """Return a token with which ``username`` can log in, in phase ``token`` if it has to be fetched.

        A good token is returned at once, even while it is being renewed. After a server refused it, a login
        waits for another, and uses the old one only if there is none to be had. Raises `ProbeFault` with
        `TOKEN_REFUSED` or `TOKEN_UNAVAILABLE`; after a failure, without a request until its pause is over.
        """
        subject = username if isinstance(self.settings, GoogleOAuth2) else ""
        held = self._held.get((resource, subject))
        if held is None:
            trouble = TroubleLog(_log, " ".join(filter(None, ("oauth2", self.name, subject))), self._clock)
            held = self._held[resource, subject] = _Held(trouble)
        now = self._clock.since_boot()
        if now >= held.renewed_at and now >= held.tried_at and held.request is None:
            held.request = asyncio.create_task(self._renew(held, resource, subject))
        if held.token is None or held.is_refused or now >= held.expires_at - SHORTEST_LEFT:
            with phases.phase(TOKEN):
                if held.request is not None:
                    await asyncio.shield(held.request)
                if held.token is None or self._clock.since_boot() >= held.expires_at - SHORTEST_LEFT:
                    raise self._failure(held)
        age = self._clock.since_boot() - held.obtained_at
        phases.transcript.note(f"access token of {self.name}, {age:.0f} s old")
        return held.token

    def _failure(self, held: _Held) -> ProbeFault:
        last = held.fault
        if last is None:
            return ProbeFault(Reason.TOKEN_UNAVAILABLE, "the token expired before it could be used")
        return ProbeFault(last.reason, f"oauth2 {self.name}: {last.detail}", remedy=last.remedy)

    async def _renew(self, held: _Held, resource: Resource, subject: str) -> None:
        phases = PhaseTimer(self._clock)
        try:
            asked_at = self._clock.since_boot()
            grant = await self._fetch(self.settings, resource, subject, phases, self._clock.time())
        except ProbeFault as fault:
            self._failed(held, fault)
        except Exception as error:
            _log.exception("the request for a token of oauth2 %s failed", self.name)
            self._failed(held, ProbeFault(Reason.TOKEN_UNAVAILABLE, type(error).__name__))
        else:
            self._obtained(held, grant, asked_at)
        finally:
            self.requests.throttled += phases.throttled
            held.request = None

    def _obtained(self, held: _Held, grant: Grant, asked_at: float) -> None:
        if grant.lifetime <= SHORTEST_LEFT:  # without a pause, every login would request another
            told = f"the token is valid for {grant.lifetime:g} s only"
            self._failed(held, ProbeFault(Reason.TOKEN_UNAVAILABLE, told))
            return
        held.trouble.works()
        held.token = BearerToken(grant.token, lambda: self._refused(held))
        held.obtained_at, held.expires_at = asked_at, asked_at + grant.lifetime
        held.renewed_at = held.expires_at - grant.lifetime * random.uniform(*RENEWED_BEFORE)  # noqa: S311 # spreads load
        held.pause, held.fault, held.is_refused = FIRST_PAUSE, None, False
        self.requests.issued += 1
        self.requests.obtained_at = self._clock.time()
        self.requests.expires_at = self.requests.obtained_at + grant.lifetime

    def _failed(self, held: _Held, fault: ProbeFault) -> None:
        held.trouble.failed(fault.reason, f"no token: {fault}")
        failed = self.requests.failed
        failed[fault.reason] = failed.get(fault.reason, 0) + 1
        pause = max(held.pause, min(fault.retry_after or 0.0, 3600.0))
        held.tried_at = self._clock.since_boot() + pause * random.uniform(1.0, 1.5)  # noqa: S311 # keeps agents out of step
        held.pause, held.fault, held.is_refused = min(2 * held.pause, LONGEST_PAUSE), fault, False

    def _refused(self, held: _Held) -> None:
        """Fetch another token for the next login, but not again and again: the mailbox may be the cause."""
        now = self._clock.since_boot()
        if now - held.refused_at >= REFUSED_AT_LEAST:
            held.refused_at, held.renewed_at, held.is_refused = now, now, True

    def credential_not_after(self) -> float | None:
        """Return when the secret or certificate expires, in unix seconds; ``None`` if that is not known."""
        settings = self.settings
        if isinstance(settings, MicrosoftOAuth2) and settings.certificate is not None:
            try:
                return read_certificate(settings.certificate).not_after
            except ValueError:
                return None  # each request reports it
        return settings.credential_expires_at

    async def close(self) -> None:
        """Cancel requests that are under way."""
        tasks = [held.request for held in self._held.values() if held.request is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def token_sources(entries: Mapping[str, AnyOAuth2], clock: Clock) -> dict[str, TokenSource]:
    """Return the token source of each entry of ``oauth2``."""
    return {name: TokenSource(name, settings, clock) for name, settings in entries.items()}
