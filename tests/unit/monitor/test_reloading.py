"""Reading the configuration again while the agent runs: what stays, what changes, and what is refused."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
import yaml

from monitor.agent import Agent, running_agent
from monitor.config.document import CHANGED
from monitor.config.load import load
from monitor.config.models import Configuration
from monitor.config.sources import Sources
from monitor.reload_request import Outcome
from monitor.reloading import STOPPING, Source
from monitor.schedule import Schedule
from probes.core.verdict import MessageState
from probes.delivery.watcher import MailboxWatcher
from tests.fakes.mail_site.process import MailSite, mail_site, servers_of

RELOADS = 20
ADDRESS = "canary@example.test"


@pytest.fixture(scope="module")
def site() -> Iterator[MailSite]:
    with mail_site() as running:
        yield running


class Written:
    """A configuration in files of a directory: ``parts`` is what the main one says."""

    def __init__(self, site: MailSite, directory: Path) -> None:
        self.directory = directory
        self.path = directory / "mailsonde.yaml"
        (directory / "password").write_text("secret")
        account = {"username": ADDRESS, "password": {"file": "password"}}
        servers = servers_of(site, None, allow_insecure_auth=True, logins_per_minute=60000)
        boxes = {
            "box": {"address": ADDRESS, "server": "imap"},
            "other": {"address": "o@x.test", "server": "pop3"},
        }
        self.parts: dict[str, Any] = {
            "agent": {"listen": "127.0.0.1:0", "ledger": f"sqlite://{directory}/ledger.db"},
            "servers": servers,
            "mailboxes": {name: {**box, **account} for name, box in boxes.items()},
            "probes": [
                self.trip("trip"),
                {"name": "rare", "kind": "smtp", "interval": "1h", "server": "smtp"},
            ],
        }
        self.write()

    def trip(self, name: str, to: str = "box", **more: object) -> dict[str, Any]:
        """Return a round trip."""
        trip = {"kind": "roundtrip", "interval": "1s", "deadline": "30s", "from": ADDRESS, "send_via": "smtp"}
        return {"name": name, **trip, "to": to, **more}

    def write(self) -> None:
        """Write the parts."""
        self.path.write_text(yaml.safe_dump(self.parts, sort_keys=False))

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[Agent]:
        """Run an agent with it during the block."""
        files = Sources()
        configuration = load(self.path, sources=files)
        async with running_agent(configuration, source=Source(self.path, files)) as agent:
            yield agent


@pytest.fixture
def authorities(tmp_path: Path) -> tuple[Path, Path]:
    """Return the files of two authorities."""
    files = tmp_path / "one.pem", tmp_path / "two.pem"
    for file in files:
        trustme.CA().cert_pem.write_to_path(str(file))
    return files


@pytest.fixture
def written(site: MailSite, tmp_path: Path) -> Written:
    return Written(site, tmp_path)


async def reloaded(agent: Agent) -> Outcome:
    """Reload, and return the outcome."""
    assert agent.reloader is not None
    return await agent.reloader.reload()


async def applied(agent: Agent) -> str:
    """Reload, which must be possible, and return what it tells."""
    outcome = await reloaded(agent)
    assert outcome.is_applied, outcome.told
    return "\n".join(outcome.told)


def entered(agent: Agent, state: MessageState, *names: str) -> int:
    """Return how many messages of some probes have entered a state."""
    counters = agent.runtime.ledger.counters
    return sum(counters.entered(name, "smtp", state) for name in names)


async def until(is_so: Callable[[], bool]) -> None:
    """Return once ``is_so`` is true."""
    async with asyncio.timeout(30):
        while not is_so():  # noqa: ASYNC110 # counters have no event
            await asyncio.sleep(0.01)


async def planned_anew(agent: Agent, name: str) -> datetime:
    """Return when an hourly probe runs next, once its first run, soon after the start, has begun."""
    soon = datetime.now(UTC) + timedelta(minutes=30)
    await until(lambda: (agent.schedule.next_run(name) or soon) > soon)
    planned = agent.schedule.next_run(name)
    assert planned is not None
    return planned


def open_descriptors() -> int:
    """Return how many file descriptors this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def slow_site(site: MailSite) -> Iterator[None]:
    """Messages arrive so late that some are always in flight."""
    site.set(delay=0.7)
    yield
    site.set(delay=0.0)


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


async def test_a_mistake_refuses_all_of_it(written: Written) -> None:
    """Nothing of a configuration with a mistake is used; log, page, metric and outcome say what is wrong."""
    async with written.agent() as agent, httpx.AsyncClient(base_url=agent.address, trust_env=False) as client:
        before = agent.runtime.assembly
        written.parts["probes"] += [written.trip("good"), {**written.trip("bad"), "interval": "often"}]
        written.write()
        outcome = await reloaded(agent)
        assert not outcome.is_applied
        assert len(outcome.told) == 1
        line = written.path.read_text().splitlines().index("  interval: often") + 1
        assert outcome.told[0].startswith(f"{written.path}:{line}: probes[3].interval: 'often' is not")
        assert agent.runtime.assembly is before
        text = (await client.get("/metrics")).text
        assert 'mailsonde_config_last_reload_successful{location="local"} 0\n' in text
        page = (await client.get("/", headers={"accept": "text/html"})).text
        assert "The changed configuration is refused" in page
        assert f"{written.path}:{line}: probes[3].interval" in page
        del written.parts["probes"][3]
        written.write()
        assert await applied(agent) == "3 probes: 0 changed, 1 new, 0 removed"
        assert not agent.runtime.state.refused
        assert "is refused" not in (await client.get("/", headers={"accept": "text/html"})).text


@pytest.mark.parametrize("broken", ["include: [mailsonde.yaml]\n", "probes: [\n", "", None])
async def test_broken_files_are_refused(written: Written, broken: str | None) -> None:
    """A file that includes itself, is no YAML, is empty or is gone leaves the agent as it is."""
    async with written.agent() as agent:
        before = agent.runtime.assembly
        if broken is None:
            written.path.unlink()
        else:
            written.path.write_text(broken)
        outcome = await reloaded(agent)
        assert not outcome.is_applied
        assert outcome.told[0].startswith(str(written.path))
        assert agent.runtime.assembly is before


def _loop(written: Written) -> None:
    other = written.directory / "other.yaml"
    other.write_text(yaml.safe_dump({"include": ["mailsonde.yaml"]}))
    written.parts["include"] = ["other.yaml"]


def _ten_million(written: Written) -> None:
    (written.directory / "items.txt").write_text("\n".join(f"i{number}" for number in range(220)))
    items = {name: {"file": "items.txt"} for name in "abc"}
    probe = {"for_each": items, "name": "${a}-${b}-${c}", "kind": "mx", "domain": "a.example"}
    written.parts["probes"].append(probe)


def _endless_window(written: Written) -> None:
    written.parts["maintenance"] = {"ever": {"cron": "0 * * * *", "for": "1h", "probes": ["rare"]}}


def _pipe(written: Written) -> None:
    os.mkfifo(written.directory / "pipe")
    written.parts["servers"]["smtp"] |= {"username": "a", "password": {"file": "pipe"}}


def _web_config(text: str) -> Callable[[Written], None]:
    def write(written: Written) -> None:
        (written.directory / "web.yml").write_text(text)

    return write


@pytest.mark.parametrize(
    ("make", "file", "line", "told"),
    [
        (_loop, "other.yaml", "- mailsonde.yaml", "the file includes"),
        (_ten_million, "mailsonde.yaml", "- for_each:", "makes 10,648,000 entries"),
        (_endless_window, "mailsonde.yaml", "  ever:", "the window never ends"),
        (_pipe, "mailsonde.yaml", "    password:", "it is no regular file"),
        (_web_config("{}\nbasic_auth_users: ["), "web.yml", "basic_auth_users: [", "is not valid YAML"),
        (_web_config("basic_auth_users:\n  a: plain\n"), "web.yml", "  a: plain", "is no bcrypt hash"),
    ],
    ids=["loop of includes", "10 million probes", "endless window", "pipe", "web.yml", "password"],
)
async def test_what_is_refused_at_start_is_refused_again(
    written: Written, make: Callable[[Written], None], file: str, line: str, told: str
) -> None:
    """The mistake is told with its file and line, the agent runs on, and later takes a valid one."""
    (written.directory / "web.yml").write_text("{}\n")
    written.parts["agent"]["web_config"] = "web.yml"
    written.write()
    valid = written.path.read_text()
    async with written.agent() as agent:
        before = agent.runtime.assembly
        make(written)
        written.write()
        outcome = await reloaded(agent)
        number = (written.directory / file).read_text().splitlines().index(line) + 1
        assert not outcome.is_applied
        assert any(each.startswith(f"{written.directory / file}:{number}: ") for each in outcome.told)
        assert told in outcome.told[0]
        assert agent.runtime.assembly is before
        written.path.write_text(valid)
        (written.directory / "web.yml").write_text("{}\n")
        await applied(agent)


async def test_a_defect_is_told_and_the_next_reload_works(
    written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fails while a configuration is applied is answered, and does not end reloading."""

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a defect")

    async with written.agent() as agent:
        written.parts["probes"].append(written.trip("more"))
        written.write()
        with monkeypatch.context() as patch:
            patch.setattr(Schedule, "replace", broken)
            outcome = await reloaded(agent)
        assert not outcome.is_applied
        assert "applied only in part (RuntimeError)" in outcome.told[0]
        written.parts["probes"].append(written.trip("further"))
        written.write()
        assert "1 new" in await applied(agent)


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


async def test_a_file_that_changes_while_it_is_read(
    written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that change meanwhile are read again as a whole; if they never come to rest, they are refused."""
    monkeypatch.setattr("monitor.reloading.READ_PAUSE", 0.0)
    changes = 1
    readings = []

    def changing(path: Path, **options: Any) -> Configuration:
        readings.append(path)
        configuration = load(path, **options)
        if len(readings) <= changes:
            (written.directory / "password").write_text(f"secret-{len(readings)}")
        return configuration

    monkeypatch.setattr("monitor.reloading.load", changing)
    async with written.agent() as agent:
        await applied(agent)
        assert len(readings) == 2
        password = agent.runtime.assembly.configuration.mailboxes["box"].password
        assert password is not None
        assert password.get_secret_value() == "secret-1"
        changes = 99
        outcome = await reloaded(agent)
        assert not outcome.is_applied
        assert outcome.told == [f"{written.directory / 'password'}: {CHANGED}"]
        assert len(readings) == 5


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
    written.parts["probes"] = [written.trip("only", interval="1h")]
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
        gc.collect()
        assert [watcher() for watcher in watchers] == [None, None, first.current]
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
        assert (await client.post("/-/reload", headers={"host": "evil.example"})).status_code == 421
        assert (await client.get("/-/reload")).status_code == 405


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
