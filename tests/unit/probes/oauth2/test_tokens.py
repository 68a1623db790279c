"""Tokens at hand: shared, renewed in time, and used on while their provider is down."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, date, datetime
from itertools import pairwise

import pytest

from monitor.collector import AgentCollector
from monitor.ledger.counters import Counters
from monitor.state import AgentState
from probes.core.credentials import Resource
from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.secret import BearerToken
from probes.core.verdict import PhaseTimer
from probes.oauth2.grants import Grant
from probes.oauth2.settings import AnyOAuth2, GenericOAuth2, GoogleOAuth2
from probes.oauth2.tokens import REFUSED_AT_LEAST, TokenSource
from tests.fakes.clock import InstantClock

HOUR = 3600.0
RESULTS = ("issued", "refused", "unavailable")
GENERIC = GenericOAuth2.model_construct(provider="generic", client_id="app-1")
GOOGLE = GoogleOAuth2.model_construct(provider="google")


class Provider:
    """Issues tokens that are numbered, unless it is down."""

    def __init__(self, clock: InstantClock) -> None:
        self._clock = clock
        self.asked_at: list[float] = []
        self.fault: Callable[[], Exception] | None = None
        self.gate = asyncio.Event()
        """Requests wait for this."""
        self.gate.set()

    async def fetch(
        self, settings: AnyOAuth2, resource: Resource, subject: str, phases: PhaseTimer, now: float
    ) -> Grant:
        del settings, phases, now
        self.asked_at.append(self._clock.now)
        await self.gate.wait()
        if self.fault is not None:
            raise self.fault()
        return Grant(f"{resource}{subject}-{len(self.asked_at)}", HOUR)


class Bench:
    """A source with its provider, at a clock that is moved by hand."""

    def __init__(self, settings: AnyOAuth2 = GENERIC) -> None:
        self.clock = InstantClock()
        self.provider = Provider(self.clock)
        self.source = TokenSource("contoso", settings, self.clock, self.provider.fetch)

    async def held(self, username: str = "canary", resource: Resource = "mail") -> BearerToken:
        """Return a token as a login gets it, and let a renewal in the background end."""
        token = await self.source.token(resource, username, PhaseTimer(self.clock))
        for _ in range(5):
            await asyncio.sleep(0)
        return token

    async def token(self, username: str = "canary", resource: Resource = "mail") -> str:
        return (await self.held(username, resource)).get_secret_value()


@pytest.fixture(autouse=True)
def _seed() -> None:
    random.seed(17)


def down() -> ProbeFault:
    return ProbeFault(Reason.TOKEN_UNAVAILABLE, "HTTP status 503")


async def test_two_hundred_mailboxes_share_one_request() -> None:
    """All logins that need the same token wait for one request, even if one of them is cancelled."""
    bench = Bench()
    bench.provider.gate.clear()
    logins = [asyncio.create_task(bench.token(f"box-{n}")) for n in range(200)]
    await asyncio.sleep(0)
    logins[0].cancel()
    await asyncio.sleep(0)
    bench.provider.gate.set()
    assert {await login for login in logins[1:]} == {"mail-1"}
    assert bench.source.requests.issued == 1


async def test_requests_in_an_hour() -> None:
    """A token of an hour is fetched once an hour, ahead of its expiry, and no login waits for that."""
    bench = Bench()
    assert await bench.token() == "mail-1"
    bench.provider.gate.clear()
    bench.clock.now += 0.91 * HOUR
    assert await bench.token() == "mail-1"
    assert await bench.token() == "mail-1"
    bench.provider.gate.set()
    await bench.token()
    assert await bench.token() == "mail-2"
    assert len(bench.provider.asked_at) == 2
    assert bench.provider.asked_at[1] - bench.provider.asked_at[0] <= HOUR


async def test_each_resource_has_its_own_token() -> None:
    """A token for mail is not used for Graph."""
    bench = Bench()
    assert [await bench.token(resource=each) for each in ("mail", "graph", "mail")] == [
        "mail-1",
        "graph-2",
        "mail-1",
    ]


async def test_service_account_has_a_token_a_mailbox() -> None:
    """With Google's delegation, each mailbox has its own token."""
    bench = Bench(GOOGLE)
    assert [await bench.token(name) for name in ("a", "b", "a")] == ["maila-1", "mailb-2", "maila-1"]


async def test_outage_while_the_token_is_good() -> None:
    """While the provider is down, logins go on with the token at hand, until it expires."""
    bench = Bench()
    await bench.token()
    bench.provider.fault = down
    for minute in range(50, 60):
        bench.clock.now = 1000.0 + 60.0 * minute
        assert await bench.token() == "mail-1"
    bench.clock.now = 1000.0 + HOUR
    with pytest.raises(ProbeFault, match="oauth2 contoso: HTTP status 503") as caught:
        await bench.token()
    assert caught.value.reason is Reason.TOKEN_UNAVAILABLE


async def test_requests_during_an_outage() -> None:
    """In ten minutes without a token, pauses grow to at most three minutes and differ between agents."""
    begun: list[list[float]] = []
    for _ in range(2):
        bench = Bench()
        bench.provider.fault = down
        for _second in range(600):
            bench.clock.now += 1.0
            with pytest.raises(ProbeFault):
                await bench.token()
        begun.append(bench.provider.asked_at)
        assert bench.source.requests.failed == {Reason.TOKEN_UNAVAILABLE: len(bench.provider.asked_at)}
    for asked in begun:
        assert 5 <= len(asked) <= 12
        assert max(after - before for before, after in pairwise(asked)) <= 181.0
    assert not set(begun[0][1:]) & set(begun[1][1:])


async def test_metrics_of_requests() -> None:
    """The agent exports how each entry's requests ended, and the times of its newest token and credential."""
    bench = Bench(GENERIC.model_copy(update={"credential_expires": date(2027, 5, 1)}))
    state = AgentState(location="fra1")
    collector = AgentCollector(state, Counters, tokens=lambda: {"contoso": bench.source})

    def exported() -> dict[str, float]:
        samples = [sample for family in collector.collect() for sample in family.samples]
        named = {f"{s.name} {s.labels.get('result', '')}": s for s in samples if "_oauth2_" in s.name}
        assert all(
            {"location": "fra1", "oauth2": "contoso"}.items() <= s.labels.items() for s in named.values()
        )
        return {name.removeprefix("mailsonde_oauth2_").strip(): s.value for name, s in named.items()}

    begin = exported()
    ends = datetime(2027, 5, 1, tzinfo=UTC).timestamp()
    assert begin.pop("credential_not_after_timestamp_seconds") == ends
    assert begin == {f"token_requests_total {each}": 0 for each in RESULTS}
    for fault in (None, down, down, lambda: ProbeFault(Reason.TOKEN_REFUSED, "no consent")):
        bench.provider.fault = fault
        with suppress(ProbeFault):
            await bench.token()
        bench.clock.now += HOUR
    after = exported()
    assert [after[f"token_requests_total {each}"] for each in ("issued", "refused", "unavailable")] == [
        1,
        1,
        2,
    ]
    lifetime = after["token_expires_timestamp_seconds"] - after["token_obtained_timestamp_seconds"]
    assert lifetime == pytest.approx(HOUR)


async def test_pause_that_the_provider_asks_for() -> None:
    """No request is sent before the end of a longer pause that the provider asked for."""
    bench = Bench()
    bench.provider.fault = lambda: ProbeFault(Reason.TOKEN_UNAVAILABLE, "HTTP status 429", retry_after=300.0)
    for _ in range(299):
        with pytest.raises(ProbeFault):
            await bench.token()
        bench.clock.now += 1.0
    assert len(bench.provider.asked_at) == 1


async def test_provider_that_recovers() -> None:
    """After an outage, the next login after the pause gets a token."""
    bench = Bench()
    bench.provider.fault = down
    with pytest.raises(ProbeFault):
        await bench.token()
    bench.provider.fault = None
    bench.clock.now += 8.0
    assert await bench.token() == "mail-2"


async def test_defect_of_ours_is_no_refusal() -> None:
    """An unexpected exception in a request is `token_unavailable`, and the next request is made."""
    bench = Bench()
    bench.provider.fault = lambda: RuntimeError("a defect")
    with pytest.raises(ProbeFault) as caught:
        await bench.token()
    assert caught.value.reason is Reason.TOKEN_UNAVAILABLE
    bench.provider.fault = None
    bench.clock.now += 8.0
    assert await bench.token() == "mail-2"


async def test_token_that_servers_refuse() -> None:
    """A refused token is renewed once, and not again for ten minutes: the mailbox may be the cause."""
    bench = Bench()
    for _ in range(20):
        (await bench.held()).refuse()
    assert len(bench.provider.asked_at) == 2
    bench.clock.now += REFUSED_AT_LEAST
    (await bench.held()).refuse()
    await bench.token()
    assert len(bench.provider.asked_at) == 3


async def test_login_after_a_refused_token() -> None:
    """The next login waits for another token; while the provider is down, it uses the one at hand."""
    bench = Bench()
    (await bench.held()).refuse()
    assert await bench.token() == "mail-2"
    bench.clock.now += REFUSED_AT_LEAST
    (await bench.held()).refuse()
    bench.provider.fault = down
    assert await bench.token() == "mail-2"
    assert len(bench.provider.asked_at) == 3
    bench.provider.fault = None
    bench.clock.now += 8.0
    await bench.held()
    assert await bench.token() == "mail-4"


async def test_close_ends_requests() -> None:
    """Closing the source cancels a request under way."""
    bench = Bench()
    bench.provider.gate.clear()
    login = asyncio.create_task(bench.token())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await bench.source.close()
    with pytest.raises(asyncio.CancelledError):
        await login
