"""Reading the configuration again while the agent runs: what stays, what changes, and what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from monitor.agent import Agent, running_agent
from monitor.config.load import load
from monitor.config.sources import Sources
from monitor.reload_request import Outcome
from monitor.reloading import Source
from probes.core.verdict import MessageState
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


def open_descriptors() -> int:
    """Return how many file descriptors this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


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
        planned, watcher = agent.schedule.next_run("rare"), runtime.assembly.watchers["box"]
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
