"""Reading the configuration again while the agent runs: what stays, what changes, and who may ask for it."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from pathlib import Path
from typing import Any

import bcrypt
import httpx
import pytest
import yaml

from monitor.config.load import load
from monitor.config.models import Configuration
from monitor.reloading import STOPPING
from probes.core.verdict import MessageState
from probes.delivery.message_life import Message
from probes.delivery.tracing import MessageTracer, Trace
from probes.delivery.watcher import MailboxWatcher
from tests.unit.monitor.reloading.conftest import (
    ADDRESS,
    Written,
    applied,
    entered,
    open_descriptors,
    planned_anew,
    reloaded,
    until,
)

RELOADS = 20


@pytest.mark.usefixtures("slow_site")
async def test_reloads_under_load_lose_nothing(written: Written) -> None:
    """No message is lost, no descriptor leaks, and what has not changed keeps its times and connections."""
    fixed = [written.trip(f"fixed-{n}") for n in range(3)]
    rare = written.parts["probes"][1]
    async with written.agent() as agent:
        runtime = agent.runtime
        written.parts["probes"] = [*fixed, rare]
        written.write()
        await applied(agent)
        await until(lambda: entered(agent, MessageState.DELIVERED, "fixed-0") >= 2)
        planned, watcher = await planned_anew(agent, "rare"), runtime.assembly.watchers["box"]
        session, descriptors = watcher._mailbox._session, open_descriptors()
        objects = {name: runtime.assembly.probes[name] for name in ("fixed-0", "rare")}
        for number in range(RELOADS):
            to = "box" if number % 2 else "other"
            written.parts["probes"] = [
                *fixed,
                rare,
                written.trip("moving", to),
                written.trip(f"new-{number}"),
            ]
            written.parts["mailboxes"]["other"]["polls_per_message"] = 6 + number % 2
            written.write()
            await applied(agent)
            await until(lambda n=number: entered(agent, MessageState.SENT, f"new-{n}") > 0)
        written.parts["probes"] = [*fixed, rare]
        written.write()
        await applied(agent)
        names = [*objects, "fixed-1", "fixed-2", "moving", *(f"new-{n}" for n in range(RELOADS))]
        sent = entered(agent, MessageState.SENT, *names)
        assert sent >= RELOADS
        await until(lambda: entered(agent, MessageState.DELIVERED, *names) >= sent)
        assert not entered(agent, MessageState.LOST, *names)
        assert await runtime.ledger.discrepancies() == []
        assert agent.schedule.next_run("rare") == planned
        assert runtime.assembly.watchers["box"] is watcher
        assert watcher._mailbox._session is session
        assert {name: runtime.assembly.probes[name] for name in objects} == objects
        assert {name for name, _ in runtime.state.probes} == {"fixed-0", "fixed-1", "fixed-2", "rare"}
        assert {name for name, _ in agent.recent.routes} <= {"fixed-0", "fixed-1", "fixed-2", "rare"}
        await until(lambda: open_descriptors() <= descriptors + 3)


async def test_secrets_and_authorities_are_read_again(
    written: Written, authorities: tuple[Path, Path]
) -> None:
    """New content of a secret or CA file changes what uses it, and only that; its times stay."""
    ca, (authority, other_authority) = written.directory / "ca.pem", authorities
    ca.write_bytes(authority.read_bytes())
    written.parts["servers"]["tls"] = {
        "protocol": "smtp",
        "host": "x.test",
        "tls": "implicit",
        "tls_ca": "ca.pem",
    }
    written.parts["probes"] += [
        {"name": "secure", "kind": "smtp", "interval": "1h", "server": "tls"},
        written.trip("rarely", interval="1h"),
    ]
    written.write()
    async with written.agent() as agent:
        probes, watchers = {**agent.runtime.assembly.probes}, {**agent.runtime.assembly.watchers}
        assert await applied(agent) == "4 probes: 0 changed, 0 new, 0 removed"
        ca.write_bytes(authority.read_bytes())
        assert await applied(agent) == "4 probes: 0 changed, 0 new, 0 removed"
        ca.write_bytes(other_authority.read_bytes())
        assert await applied(agent) == "4 probes: 1 changed, 0 new, 0 removed"
        now = agent.runtime.assembly
        assert now.watchers == watchers
        assert {name for name in probes if now.probes[name] is not probes[name]} == {"secure"}
        planned = await planned_anew(agent, "rarely")
        (written.directory / "password").write_text("another")
        assert await applied(agent) == "4 probes: 2 changed, 0 new, 0 removed"
        assert agent.runtime.assembly.watchers["box"] is not watchers["box"]
        assert watchers["box"].current is agent.runtime.assembly.watchers["box"]
        assert agent.schedule.next_run("rarely") == planned


async def test_what_all_probes_have_in_common(written: Written) -> None:
    """Common thresholds and maintenance apply to probes that have not changed, too."""
    async with written.agent() as agent:
        state = agent.runtime.state
        assert state.probes["rare", "smtp"].thresholds["stale"] == "10830.0"
        written.parts["alerts"] = {"stale_intervals": 2}
        written.parts["maintenance"] = {"nightly": {"cron": "0 2 * * *", "for": "1h", "probes": ["rare"]}}
        written.write()
        assert await applied(agent) == "2 probes: 0 changed, 0 new, 0 removed"
        assert state.probes["rare", "smtp"].thresholds["stale"] == "7230.0"
        assert set(state.maintenance.probes) == {"rare"}


@pytest.mark.parametrize("server", ["imap", "pop3"])
async def test_a_changed_mailbox_continues_with_its_messages(written: Written, server: str) -> None:
    """Its messages in flight are found by its new connection, though nothing else is awaited there."""
    box = written.parts["mailboxes"]["box"]
    box |= {"server": server, "username": "elsewhere@example.test"}  # where the message never arrives
    written.parts["probes"] = [written.trip("only", interval="1h", deadline="10m")]
    written.write()
    async with written.agent() as agent:
        await until(lambda: entered(agent, MessageState.SENT, "only") == 1)
        box["username"] = ADDRESS
        written.parts["probes"] = [written.trip("idle", scheduled=False)]
        written.write()
        await applied(agent)
        await until(lambda: entered(agent, MessageState.DELIVERED, "only") == 1)


async def test_what_has_been_replaced_is_freed(written: Written) -> None:
    """Only the latest watcher of a mailbox stays in memory, even if a run still has the first one."""
    async with written.agent() as agent:
        watchers: list[weakref.ref[MailboxWatcher]] = []
        first = agent.runtime.assembly.watchers["other"]
        for number in range(3):
            written.parts["mailboxes"]["other"]["polls_per_message"] = 10 + number
            written.write()
            await applied(agent)
            watchers.append(weakref.ref(agent.runtime.assembly.watchers["other"]))

        def alive() -> int:
            gc.collect()
            return sum(watcher() is not None for watcher in watchers)

        await until(lambda: alive() == 1)  # the thread that compared them may not have ended its call
        assert first.current is agent.runtime.assembly.watchers["other"]


@pytest.mark.usefixtures("slow_site")
async def test_messages_of_a_removed_probe_are_watched_on(written: Written) -> None:
    """They end as if the probe were there, and those of a removed mailbox once it is back."""
    async with written.agent() as agent:
        await until(lambda: entered(agent, MessageState.SENT, "trip") > 0)
        boxes, trip = written.parts["mailboxes"], written.parts["probes"].pop(0)
        box = boxes.pop("box")
        written.write()
        await applied(agent)
        assert set(agent.runtime.assembly.watchers) == {"other"}
        boxes["box"] = box
        written.write()
        await applied(agent)
        await until(lambda: not agent.runtime.ledger.counters.flight("trip", "smtp")[0])
        assert entered(agent, MessageState.DELIVERED, "trip") >= entered(agent, MessageState.SENT, "trip") > 0
        assert not any(name == trip["name"] for name, _ in agent.runtime.state.probes)


async def test_requests_at_once_are_one_reload(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that come together get one outcome, and one that comes during a reload gets a later one."""
    begun, go_on, readings = asyncio.Event(), threading.Event(), []
    loop = asyncio.get_running_loop()

    def slowly(path: Path, **options: Any) -> Configuration:
        readings.append(path)
        loop.call_soon_threadsafe(begun.set)
        go_on.wait(30)
        return load(path, **options)

    monkeypatch.setattr("monitor.reloading.load", slowly)
    async with written.agent() as agent:
        together = [asyncio.create_task(reloaded(agent)) for _ in range(5)]
        await begun.wait()
        during = asyncio.create_task(reloaded(agent))
        await asyncio.sleep(0)
        go_on.set()
        first, *others = await asyncio.gather(*together)
        assert all(other is first for other in others)
        assert (await during).began_at > first.began_at
        assert len(readings) == 2


async def test_a_reload_ends_with_the_agent(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that stops during a reload answers that it stops."""
    begun, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def slowly(path: Path, **options: Any) -> Configuration:
        loop.call_soon_threadsafe(begun.set)
        go_on.wait(30)
        return load(path, **options)

    monkeypatch.setattr("monitor.reloading.load", slowly)
    async with written.agent() as agent:
        waiting = asyncio.create_task(reloaded(agent))
        await begun.wait()
    assert (await waiting).told == [STOPPING]
    go_on.set()


async def test_what_needs_a_restart_is_told(written: Written) -> None:
    """Settings of the agent keep their values until a restart, which is told, and the rest is used."""
    async with written.agent() as agent:
        written.parts["agent"] |= {"location": "elsewhere", "listen": "127.0.0.1:1", "retention": "3d"}
        written.parts["probes"][1]["interval"] = "2h"
        written.write()
        outcome = await reloaded(agent)
        assert outcome.is_applied
        assert outcome.told == [
            "2 probes: 1 changed, 0 new, 0 removed",
            "agent.location keeps its value until the agent is restarted",
            "agent.listen keeps its value until the agent is restarted",
        ]
        settings = agent.runtime.assembly.configuration.agent
        assert (settings.location, settings.retention) == ("local", 3 * 86400.0)
        assert agent.runtime.state.probes["rare", "smtp"].interval == 7200.0


async def test_over_http_only_if_allowed(written: Written) -> None:
    """`POST /-/reload` is off by default, answers with the outcome, and not to pages of other sites."""
    async with written.agent() as agent, httpx.AsyncClient(base_url=agent.address, trust_env=False) as client:
        answer = await client.post("/-/reload")
        assert (answer.status_code, answer.text) == (403, "to allow this, add http to agent.reload\n")
    written.parts["agent"]["reload"] = "http"
    written.write()
    async with written.agent() as agent, httpx.AsyncClient(base_url=agent.address, trust_env=False) as client:
        answer = await client.post("/-/reload")
        assert (answer.status_code, answer.text) == (
            200,
            "reloaded:\n2 probes: 0 changed, 0 new, 0 removed\n",
        )
        written.path.write_text("probes: {}\n")
        answer = await client.post("/-/reload")
        assert answer.status_code == 500
        assert answer.text.startswith(f"refused:\n{written.path}:1: probes: ")
        foreign = {"sec-fetch-site": "cross-site"}
        assert (await client.post("/-/reload", headers=foreign)).status_code == 403
        for origin in ("http://evil.example", "null"):  # browsers send no Sec-Fetch-Site by plain HTTP
            assert (await client.post("/-/reload", headers={"origin": origin})).status_code == 403
        assert (await client.post("/-/reload", headers={"origin": agent.address})).status_code == 500
        assert (await client.post("/-/reload", headers={"host": "evil.example"})).status_code == 421
        assert (await client.get("/-/reload")).status_code == 405


@pytest.mark.parametrize("allowed", [True, False])
async def test_over_http_with_a_password(written: Written, allowed: bool) -> None:
    """With users in the web configuration, only they may reload, and they too only if it is allowed."""
    digest = bcrypt.hashpw(b"correct", bcrypt.gensalt(4)).decode()
    (written.directory / "web.yml").write_text(f"basic_auth_users: {{alice: {digest}}}\n")
    written.parts["agent"] |= {"web_config": "web.yml", "reload": "http" if allowed else []}
    written.write()
    async with written.agent() as agent, httpx.AsyncClient(base_url=agent.address, trust_env=False) as client:
        before = agent.runtime.state.configured_at
        for auth in (None, ("alice", "guessed"), ("mallory", "correct")):
            assert (await client.post("/-/reload", auth=auth)).status_code == 401
        assert agent.runtime.state.configured_at == before
        answer = await client.post("/-/reload", auth=("alice", "correct"))
        assert answer.status_code == (200 if allowed else 403)
        assert (agent.runtime.state.configured_at > before) is allowed


async def test_a_warning_is_not_repeated(written: Written, caplog: pytest.LogCaptureFixture) -> None:
    """Sent copies that nobody removes are told once, and again only after it was mended."""

    def times_told() -> int:
        return caplog.text.count("copies of the messages stay in the sent folder of sender@x.test")

    copying = {"saves_sent_copies": True, "username": "sender@x.test", "password": {"file": "password"}}
    without = dict(written.parts["servers"]["smtp"])
    written.parts["servers"]["smtp"] |= {**copying, "allow_insecure_auth": True}
    written.write()
    async with written.agent() as agent:
        assert times_told() == 1
        for number in range(2):
            written.parts["probes"][0]["labels"] = {"number": str(number)}
            written.write()
            assert "1 changed" in await applied(agent)
        assert times_told() == 1
        copying_again, written.parts["servers"]["smtp"] = written.parts["servers"]["smtp"], without
        written.write()
        await applied(agent)
        written.parts["servers"]["smtp"] = copying_again
        written.write()
        await applied(agent)
        assert times_told() == 2


async def test_a_changed_tracer_continues_with_its_messages(written: Written) -> None:
    """What the earlier tracer follows, and what runs that still have it let it follow, the new one traces."""
    secret = written.directory / "client-secret"
    secret.write_text("one")
    entry = {"provider": "microsoft", "tenant": "a.example", "client_id": "b", "message_trace": True}
    written.parts["oauth2"] = {"contoso": {**entry, "client_secret": {"file": "client-secret"}}}
    written.write()
    async with written.agent() as agent:
        clock = agent.runtime.clock
        settled = [asyncio.get_running_loop().create_future() for _ in range(3)]

        def follow(tracer: MessageTracer, number: int) -> None:
            message = Message(
                id=str(number),
                probe="trip",
                target="smtp",
                mailbox="box",
                state=MessageState.SENT,
                created_at=clock.time(),
                deadline_seconds=86400.0,
                instance="agent",
                boot=clock.boot,
                created_mono=clock.monotonic(),
                octets=1,
                digest=None,
            )
            tracer.follow(message, 80000.0, settled[number], Trace())

        tracers = [agent.runtime.assembly.context.tracers["contoso"]]
        follow(tracers[0], 0)
        await applied(agent)
        assert agent.runtime.assembly.context.tracers["contoso"] is tracers[0]
        for number in (1, 2):
            secret.write_text(str(number))
            await applied(agent)
            tracers.append(agent.runtime.assembly.context.tracers["contoso"])
            follow(tracers[0], number)
        assert [set(tracer._watches) for tracer in tracers] == [set(), set(), {"0", "1", "2"}]
        settled[0].cancel()
        await asyncio.sleep(0)
        assert set(tracers[2]._watches) == {"1", "2"}
        tracing = [watch.task for watch in tracers[2]._watches.values()]
        del written.parts["oauth2"]
        written.write()
        await applied(agent)
        await asyncio.wait(tracing)
        assert all(task.cancelled() for task in tracing)


async def test_files_that_are_watched(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `reload: watch`, a swapped link as of a ConfigMap, or one more file of a pattern, is noticed."""
    monkeypatch.setattr("monitor.reloading.LOOK_EVERY", 0.01)
    written.parts |= {"agent": {**written.parts["agent"], "reload": "watch"}, "include": ["conf.d/*.yaml"]}
    for name in ("first", "second"):
        folder = written.directory / f"..{name}"
        folder.mkdir()
        (folder / "more.yaml").write_text(yaml.safe_dump({"probes": [written.trip(name, interval="1h")]}))
    data = written.directory / "conf.d"
    data.symlink_to("..first")
    written.write()
    async with written.agent() as agent:
        new = written.directory / "..new"
        new.symlink_to("..second")
        new.replace(data)
        await until(lambda: set(agent.runtime.assembly.probes) == {"trip", "rare", "second"})
        (data / "third.yaml").write_text("probes: [nonsense")
        await until(lambda: bool(agent.runtime.state.refused))
        refused = agent.runtime.state.configured_at
        (data / "third.yaml").write_text(yaml.safe_dump({"probes": [written.trip("third", interval="1h")]}))
        await until(lambda: "third" in agent.runtime.assembly.probes)
        assert agent.runtime.state.configured_at > refused
