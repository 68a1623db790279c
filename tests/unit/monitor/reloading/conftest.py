"""An agent whose configuration is written again while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from monitor.agent import Agent, running_agent
from monitor.config.load import load
from monitor.config.sources import Sources
from monitor.reload_request import Outcome
from monitor.reloading import Source
from probes.core.verdict import MessageState
from tests.fakes.mail_site.process import MailSite, mail_site, servers_of

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
    async with asyncio.timeout(120):
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
