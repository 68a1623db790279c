"""Message traces of overdue messages: what they add to a run, and that they change nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from monitor.config.models import Configuration
from monitor.runtime import open_runtime
from probes.core.clock import SystemClock
from probes.core.credentials import Credentials
from probes.core.reasons import Reason
from probes.core.verdict import MessageState, Verdict
from probes.delivery.arrivals import Settled
from probes.delivery.message_life import Message
from probes.delivery.tracing import (
    EARLIER_TRACED,
    LAST_LOOK,
    MOST_TRACES,
    TRACE_WINDOW,
    MessageTracer,
    Trace,
)
from probes.roundtrip import Roundtrip
from tests.fakes.clock import InstantClock
from tests.fakes.graph.http import HANG_UP, Answer, Request
from tests.fakes.graph.tenant import ISSUES, TRACES
from tests.unit.probes.graph.conftest import ADDRESS, Bench, OpenBench

RUN = "0123456789abcdef" * 2
SENT = f"Subject: mailsonde test message\r\n mailsonde1:trip:{RUN}:0:0\r\n\r\n".encode()
ROLES = ["Mail.ReadWrite", "Mail.Send", "ExchangeMessageTrace.Read.All", "ServiceHealth.Read.All"]
OUTAGE = {
    "id": "EX1",
    "title": "Users may see \x1b delays",
    "service": "Exchange Online",
    "isResolved": False,
}


def tracer(made: Bench, *, health: bool = False) -> MessageTracer:
    made.graph.entra.roles = ROLES
    context = made.probe.context
    credentials = Credentials("", context.tokens["contoso"], "graph")
    server = context.site.servers["graph"]
    return MessageTracer(server, credentials, made.clock, made.sent, made.found, traces=True, health=health)


def overdue(made: Bench) -> Message:
    return Message(
        id=RUN,
        probe="trip",
        target="graph",
        mailbox="canary",
        state=MessageState.SENT,
        created_at=made.clock.time(),
        deadline_seconds=300.0,
        instance="me",
        boot=made.clock.boot,
        created_mono=made.clock.monotonic(),
        octets=1,
        digest=None,
    )


async def watched(made: Bench, by: MessageTracer | None = None) -> Trace:
    trace = Trace()
    await (by or tracer(made)).watch(overdue(made), 60.0, trace)
    return trace


def trace_beside(made: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the probe trace its messages; the clock stands still during a request, and moves for others."""
    by, sleep, look = tracer(made, health=True), made.clock.sleep, MessageTracer._look
    idle = asyncio.Event()
    idle.set()

    async def passing(seconds: float) -> None:
        await idle.wait()
        await sleep(seconds)

    class Following(InstantClock):
        async def sleep(self, seconds: float) -> None:
            until = made.clock.now + seconds
            while made.clock.now < until:  # noqa: ASYNC110 # nobody tells when the clock jumps
                await asyncio.sleep(0)

        def monotonic(self) -> float:
            return made.clock.monotonic()

        def time(self) -> float:
            return made.clock.time()

    async def looking(self: MessageTracer, message: Message, trace: Trace) -> None:
        idle.clear()
        try:
            await look(self, message, trace)
        finally:
            idle.set()

    monkeypatch.setattr(made.clock, "sleep", passing)
    monkeypatch.setattr(by, "_clock", Following())
    monkeypatch.setattr(MessageTracer, "_look", looking)
    made.probe = Roundtrip(made.probe.settings, replace(made.probe.context, tracers={"contoso": by}))


@pytest.mark.parametrize(
    ("status", "told"),
    [
        ("quarantined", "it is in quarantine (quarantined, taken in at 2023-11-14T22:13:21Z)"),
        ("filteredAsSpam", "it was treated as spam (filteredAsSpam, taken in at 2023-11-14T22:13:21Z)"),
        ("failed", "it could not be delivered (failed, taken in at 2023-11-14T22:13:21Z)"),
        ("recalled", "it was recalled (recalled, taken in at 2023-11-14T22:13:21Z)"),
    ],
)
async def test_the_end_of_a_message_is_asked_for_once(bench: OpenBench, status: str, told: str) -> None:
    """A message whose end is known is traced once, when it is overdue."""
    async with bench() as made:
        begun = made.clock.monotonic()
        made.graph.tenant.trace(SENT, status)
        assert (await watched(made)).end == told
        assert made.clock.monotonic() == begun + 60.0
        assert made.graph.tenant.asked == [TRACES]


@pytest.mark.parametrize(
    ("status", "told"),
    [
        ("pending", "it is still being delivered (pending, taken in at 2023-11-14T22:13:21Z)"),
        (None, "the tenant has not seen the message"),
        ("unknownFutureValue", "the tenant has not seen the message"),
    ],
)
async def test_what_is_not_settled_is_asked_for_again_before_the_deadline(
    bench: OpenBench, status: str | None, told: str
) -> None:
    """A message on its way, or not seen yet, is traced a second and last time shortly before its deadline."""
    async with bench() as made:
        begun = made.clock.monotonic()
        if status is not None:
            made.graph.tenant.trace(SENT, status)
        made.graph.tenant.trace(SENT.replace(RUN.encode(), b"f" * 32), "delivered")
        assert (await watched(made)).end == told
        assert made.clock.monotonic() == begun + 300.0 - LAST_LOOK
        assert made.graph.tenant.asked == [TRACES, TRACES]


async def test_issues_of_the_tenant_are_told_beside(bench: OpenBench) -> None:
    """Open issues of Exchange Online are told, escaped; others are not, and nobody asks again for a while."""
    async with bench() as made:
        other = [{**OUTAGE, "service": "Teams"}, {**OUTAGE, "isResolved": True}, 7]
        made.graph.tenant.issues = [OUTAGE, *other]  # type: ignore[list-item] # hostile
        by = tracer(made, health=True)
        assert (await watched(made, by)).issues == ("EX1: Users may see \\x1b delays",)
        assert (await watched(made, by)).issues == ("EX1: Users may see \\x1b delays",)
        assert (
            made.graph.tenant.asked.count(ISSUES) == 2
        )  # the second message is overdue more than 5 min later


async def test_no_more_is_asked_than_a_tenant_allows(bench: OpenBench) -> None:
    """However many messages are overdue at once, the limit is kept, and the rest is told so."""
    async with bench() as made:
        made.graph.tenant.trace(SENT, "quarantined")
        by, message = tracer(made), overdue(made)
        traces = [Trace() for _ in range(MOST_TRACES + 5)]
        for trace in traces:
            await by.watch(message, 0.0, trace)
        assert made.graph.tenant.asked.count(TRACES) == MOST_TRACES
        assert [trace.end.startswith("not known (throttled: ") for trace in traces].count(True) == 5
        made.clock.now += TRACE_WINDOW
        await by.watch(message, 0.0, traces[-1])
        assert traces[-1].end.startswith("it is in quarantine")


async def test_a_pause_that_graph_asks_for_is_kept(bench: OpenBench) -> None:
    """After 429 with Retry-After, nothing is asked until then, and mail is not throttled."""
    async with bench() as made:
        made.graph.answer_next.append(Answer(429, b"", {"Retry-After": "250"}))
        trace = await watched(made)
        assert trace.end.startswith("not known (throttled: ")
        assert made.graph.tenant.asked == []
        assert (await made.run()).verdict.reason is Reason.NONE


def huge(request: Request) -> Answer:
    del request
    return Answer(200, b"[" * 10_000_000)


def odd(request: Request) -> Answer:
    del request
    entries = [None, {}, {"status": ["failed"]}, {"status": "failed"}, {"subject": RUN, "status": 7}]
    return Answer(200, {"value": entries, "@odata.nextLink": "https://evil.example/"})


def odd_time(request: Request) -> Answer:
    del request
    return Answer(200, {"value": [{"subject": RUN, "status": "failed", "receivedDateTime": "\x1b]0;x\x07"}]})


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (huge, "not known (response_too_large: "),
        (odd, "the tenant has not seen the message"),
        (odd_time, "it could not be delivered (failed)"),
        (lambda _: Answer(200, b"<html>"), "not known (protocol_error: "),
        (lambda _: Answer(200, {"value": {}}), "not known (protocol_error: "),
        (lambda _: Answer(302, b"", {"Location": "https://evil.example/"}), "not known (graph_error: "),
        (lambda _: Answer(401, {"error": {"code": "x", "message": "\x1b" * 9000}}), "not known ("),
        (
            lambda _: Answer(403, {"error": {"code": "Forbidden", "message": "no"}}),
            "not known (not_granted: ",
        ),
        (lambda _: Answer(500), "not known (graph_unavailable: "),
        (lambda _: HANG_UP, "not known (connection_lost: "),
    ],
)
async def test_a_bad_answer_is_no_outage(
    bench: OpenBench, answer: Callable[[Request], Answer | object], told: str
) -> None:
    """Whatever is wrong with the answer, it is told in short printable text, and mail goes on as before."""
    async with bench() as made:
        made.graph.instead = lambda request: answer(request) if "admin" in request.path else None
        end = (await watched(made)).end
        assert end.startswith(told)
        assert end.isprintable()
        assert len(end) < 500
        issued = made.graph.entra.issued
        assert (await made.run()).verdict.reason is Reason.NONE
        assert made.graph.entra.issued == issued


async def test_a_lost_message_tells_where_it_ended(bench: OpenBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run of a lost message has the trace and the tenant's issues in detail and values, and no secret."""
    async with bench(deadline="10m") as made:
        made.graph.delay = 1e6

        def quarantined(raw: bytes) -> bytes:
            made.graph.tenant.trace(raw, "quarantined")
            return raw

        made.graph.on_the_way = quarantined
        made.graph.tenant.issues = [OUTAGE]
        trace_beside(made, monkeypatch)
        verdict = (await made.run()).verdict
        assert verdict.reason is Reason.MESSAGE_LOST
        end = "it is in quarantine (quarantined, taken in at 2023-11-14T22:13:21Z)"
        assert verdict.values["message_trace"] == end
        assert verdict.values["service_health"] == ["EX1: Users may see \\x1b delays"]
        assert verdict.detail == (
            "not in the mailbox 600 s after it was sent; "
            f"message trace: {end}; the tenant has service issues: EX1: Users may see \\x1b delays"
        )
        assert made.graph.tenant.asked == [ISSUES, TRACES]
        assert made.graph.entra.secret not in str(verdict)


async def test_a_message_that_arrives_is_not_traced(
    bench: OpenBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is asked about a message that arrives in time, and nothing goes on after its run."""
    async with bench() as made:
        trace_beside(made, monkeypatch)
        verdict = (await made.run()).verdict
        assert (verdict.reason, verdict.detail) == (Reason.NONE, "")
        assert "message_trace" not in verdict.values
        await asyncio.sleep(0)
        assert not [task for task in asyncio.all_tasks() if "MessageTracer" in repr(task)]
        assert made.graph.tenant.asked == []


def test_entries_that_may_trace_have_a_tracer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry with `message_trace` or `service_health` traces what its mailboxes get, and no other does."""
    monkeypatch.setenv("APP_SECRET", "s3cret")
    entry = {
        "provider": "microsoft",
        "tenant": "contoso.example",
        "client_id": "app",
        "client_secret": {"env": "APP_SECRET"},
    }
    inbox = {"address": ADDRESS, "server": "imap", "username": ADDRESS}
    trip = {"kind": "roundtrip", "from": ADDRESS, "send_via": "out"}
    site = {
        "agent": {"ledger": f"sqlite:{tmp_path}/l.db"},
        "oauth2": {"contoso": entry | {"message_trace": True}, "other": entry},
        "servers": {
            "imap": {"protocol": "imap", "preset": "exchange-online"},
            "out": {"protocol": "smtp", "host": "mail.example.com", "tls": "starttls"},
        },
        "mailboxes": {"canary": {**inbox, "oauth2": "contoso"}, "quiet": {**inbox, "oauth2": "other"}},
        "probes": [{**trip, "name": name, "to": name} for name in ("canary", "quiet")],
    }

    async def tracers() -> list[bool]:
        configuration = Configuration.model_validate(site)
        async with open_runtime(configuration, SystemClock(), "check") as runtime:
            probes = [runtime.assembly.probes[name] for name in ("canary", "quiet")]
            return [isinstance(probe, Roundtrip) and probe._tracer is not None for probe in probes]

    assert asyncio.run(tracers()) == [True, False]


def test_what_is_known_changes_no_reason() -> None:
    """A trace adds to a run that was not ok, and to no other."""
    trace = Trace("it was delivered (delivered)", ("EX1: x",))
    lost = trace.added_to(Verdict(Reason.MESSAGE_LOST, "late"))
    assert (lost.reason, lost.remedy) == (Reason.MESSAGE_LOST, Verdict(Reason.MESSAGE_LOST).remedy)
    assert lost.detail.startswith("late; message trace: it was delivered (delivered); ")
    fine = Verdict(Reason.NONE)
    assert trace.added_to(fine) == fine
    assert Trace().added_to(Verdict(Reason.MESSAGE_LOST, "late")) == Verdict(Reason.MESSAGE_LOST, "late")


async def test_an_issue_that_repeats_our_token(bench: OpenBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token of the request for the tenant's issues is not shown, even if an issue repeats it."""
    async with bench() as made:
        by, tenant, answer = tracer(made, health=True), made.graph.tenant, made.graph.tenant.answer
        tokens = []

        def repeating(request: Request, roles: list[str]) -> object:
            tokens.append(request.headers["authorization"].partition(" ")[2])
            tenant.issues = [OUTAGE | {"id": tokens[0][:15], "title": f"you sent {tokens[0][-100:]}"}]
            return answer(request, roles)

        monkeypatch.setattr(tenant, "answer", repeating)
        trace = await watched(made, by)
    assert trace.issues == ("(withheld): (withheld)",)
    assert trace.added_to(Verdict(Reason.MESSAGE_LOST)).values["service_health"] == list(trace.issues)


async def settled_later(made: Bench, **changes: object) -> tuple[Message, asyncio.Future[Settled]]:
    """Record a message as sent; the future is never done."""
    message = replace(overdue(made), state=MessageState.INTENT)
    await made.ledger.intend(message)
    sent = await made.ledger.advance(message.id, MessageState.SENT)
    assert sent is not None
    return replace(sent, **changes), asyncio.get_running_loop().create_future()


async def restarted(made: Bench) -> Message:
    """Return what a new process reads of the message."""
    found = await made.ledger.find(RUN)
    assert found is not None
    return found


async def followed(made: Bench, message: Message) -> Trace:
    """Trace a message as a process does, up to the last look."""
    trace, settled = Trace(message.trace, looks=message.trace_looks), asyncio.Future[Settled]()
    by = tracer(made)
    by.follow(message, 60.0, settled, trace)
    await asyncio.wait([watch.task for watch in by._watches.values()])
    await by.close()
    return trace


async def test_a_message_is_not_asked_for_again_after_a_restart(bench: OpenBench) -> None:
    """A process that reads from the ledger where a message ended, tells that and asks nothing."""
    async with bench() as made:
        made.graph.tenant.trace(SENT, "quarantined")
        message, _ = await settled_later(made)
        first = await followed(made, message)
        again = await followed(made, await restarted(made))
        assert again.end == first.end == "it is in quarantine (quarantined, taken in at 2023-11-14T22:13:21Z)"
        assert made.graph.tenant.asked == [TRACES]
        assert made.found.traces == [(RUN, f"message trace: {first.end}")] * 2


async def test_restarts_add_no_looks(bench: OpenBench) -> None:
    """However often the agent restarts, a message whose end is not known is asked for twice at most."""
    async with bench() as made:
        message, _ = await settled_later(made)
        for _ in range(4):
            made.clock.now = message.created_mono + 1000.0
            await followed(made, message)
            message = await restarted(made)
        assert made.graph.tenant.asked == [TRACES, TRACES]


async def test_a_message_that_got_overdue_between_two_processes_is_traced(bench: OpenBench) -> None:
    """If no process watched when a message was due for a look, one look at the start makes up for it."""
    async with bench() as made:
        made.graph.tenant.trace(SENT, "pending")
        message, _ = await settled_later(made)
        made.clock.now += 295.0
        assert (await followed(made, message)).end.startswith("it is still being delivered")
        assert made.graph.tenant.asked == [TRACES]


async def test_messages_that_an_earlier_process_lost_are_traced(bench: OpenBench) -> None:
    """Messages that are lost already are asked for once each, the newest ones, within a limit."""
    async with bench() as made:
        made.graph.tenant.trace(SENT, "failed")
        by, lost = tracer(made), replace(overdue(made), state=MessageState.LOST)
        older = [replace(lost, id=f"{n:032x}", created_at=lost.created_at - 1 - n) for n in range(50)]
        asked = replace(lost, id="e" * 32, trace_looks=1)
        by.follow_lost([lost, *older, asked, replace(lost, id="d" * 32, created_at=0.0)])
        await asyncio.wait(by._earlier)
        assert made.graph.tenant.asked.count(TRACES) == EARLIER_TRACED - 1  # `asked` is among the newest
        assert made.found.traces[-1][1].startswith("message trace: it could not be delivered")


async def test_nothing_is_asked_that_cannot_be_recorded(bench: OpenBench) -> None:
    """While the ledger cannot be written, no message is traced, or each restart would ask again."""
    async with bench() as made:
        message, _ = await settled_later(made)
        made.sent.full_for.add("note_trace")
        await followed(made, message)
        assert made.graph.tenant.asked == []


async def test_a_reload_goes_on_tracing(bench: OpenBench) -> None:
    """A tracer that takes over asks what the earlier one would have asked, within the same limit."""
    async with bench() as made:
        made.graph.tenant.trace(SENT, "quarantined")
        message, settled = await settled_later(made)
        earlier, later, trace = tracer(made), tracer(made), Trace()
        earlier.follow(message, 60.0, settled, trace)
        await earlier.close()
        later.take_over(earlier)
        (watch,) = later._watches.values()
        await watch.task
        assert trace.end.startswith("it is in quarantine")
        assert made.graph.tenant.asked == [TRACES]
        settled.cancel()
        await asyncio.sleep(0)
        assert not later._watches


async def test_the_answer_is_told_while_the_message_is_in_flight(
    bench: OpenBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The observer, and so the page, learns where an overdue message is before its run ends."""
    async with bench(deadline="10m") as made:
        made.graph.delay = 1e6
        trace_beside(made, monkeypatch)
        states = []

        def seen(message: Message, trace: Trace) -> None:
            states.append((message.state, trace.end, made.clock.monotonic() - message.created_mono < 500.0))

        monkeypatch.setattr(made.found, "traced", seen)
        await made.run()
        assert states[0] == (MessageState.SENT, "the tenant has not seen the message", True)
