"""The agent under systemd: it becomes ready in time, feeds the watchdog, and says where it hung."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from monitor.notify import notify, report, watchdog_seconds
from tests.real_servers.process import free_port

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "config/deploy/systemd/mailsonde.service"

WATCHDOG = 3.0
"""Seconds."""

HANGING = """
import signal, sys, time
from monitor.commands import main

def hang(*_):
    time.sleep(3600)

signal.signal(signal.SIGUSR1, hang)
main(["run", "--config", sys.argv[1], "--log-format", "json"])
"""
"""The agent, whose event loop hangs from SIGUSR1 on."""

PROBES = 10_000


class Manager:
    """The socket of a service manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self.close = self._socket.close

    def told(self, seconds: float) -> set[str]:
        """Return the next notification's lines; raises TimeoutError after ``seconds``."""
        self._socket.settimeout(seconds)
        return set(self._socket.recv(1000).decode().splitlines())

    def wait_for(self, line: str, seconds: float = 120.0) -> None:
        """Read until a notification has ``line``."""
        end = time.monotonic() + seconds
        while line not in self.told(max(0.1, end - time.monotonic())):
            pass

    def wait_for_silence(self, seconds: float) -> None:
        """Return once nothing is told for ``seconds``; what was told just before may still be unread."""
        for _ in range(10):
            try:
                self.told(seconds)
            except TimeoutError:
                return
        raise AssertionError("it still tells its state")


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path / "notify")
    yield manager
    manager.close()


CONFIGURATION = """\
agent: {{listen: "127.0.0.1:{listen}", ledger: "sqlite:{directory}/ledger.db"}}
servers:
  out: {{protocol: smtp, host: 127.0.0.1, port: {smtp}, tls: none}}
probes:
  - for_each: {{n: {numbers}}}
    name: smtp-${{n}}
    kind: smtp
    server: out
    interval: 1d
"""


@contextmanager
def _hanging_agent(manager: Manager, directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run an agent with `PROBES` probes, which hardly ever run, until the end of the block."""
    config = directory / "mailsonde.yaml"
    numbers = list(range(PROBES))
    config.write_text(
        CONFIGURATION.format(listen=free_port(), smtp=free_port(), directory=directory, numbers=numbers)
    )
    environment = {
        "PATH": os.environ["PATH"],
        "NOTIFY_SOCKET": str(manager.path),
        "WATCHDOG_USEC": f"{WATCHDOG * 1e6:.0f}",
    }
    with (directory / "agent.log").open("wb") as log:
        agent = subprocess.Popen(
            [sys.executable, "-c", HANGING, config], cwd=ROOT, env=environment, stdout=log, stderr=log
        )
    try:
        yield agent
    finally:
        agent.kill()
        agent.wait()


def _seconds(key: str) -> float:
    """Return a setting of the unit in seconds."""
    (value,) = re.findall(rf"^{key}=(\d+)(?:min)?$", UNIT.read_text(), re.MULTILINE)
    return float(value) * (60 if f"{key}={value}min" in UNIT.read_text() else 1)


def test_a_large_agent_starts_in_time_and_a_hanging_one_says_where(manager: Manager, tmp_path: Path) -> None:
    """10,000 probes start in a small part of the unit's time; a loop that hangs feeds no watchdog.

    When systemd then ends the agent, its log names the function that hangs.
    """
    with _hanging_agent(manager, tmp_path) as agent:
        assert manager.told(60.0) == {"STATUS=Reading the configuration"}
        manager.wait_for("READY=1")
        stat = Path(f"/proc/{agent.pid}/stat").read_text().rpartition(")")[2].split()
        assert (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK") < _seconds("TimeoutStartSec") / 10
        for _ in range(2):
            assert manager.told(60.0) == {"WATCHDOG=1", f"STATUS={PROBES} probes; keeps up with them"}
        agent.send_signal(signal.SIGUSR1)
        manager.wait_for_silence(WATCHDOG)
        agent.send_signal(signal.SIGABRT)  # systemd's WatchdogSignal
        assert agent.wait(30) == -signal.SIGABRT
    assert "in hang\n" in (tmp_path / "agent.log").read_text()
    assert re.search(r"^Restart=on-failure$", UNIT.read_text(), re.MULTILINE)  # this end is a failure
    assert _seconds("WatchdogSec") >= 30  # no stall of a busy machine


async def test_a_busy_event_loop_feeds_the_watchdog(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loop that always has something to do feeds the watchdog as often as an idle one."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(manager.path))
    monkeypatch.setenv("WATCHDOG_USEC", "30000")

    async def busy() -> None:
        while True:
            end = time.monotonic() + 0.002
            while time.monotonic() < end:
                pass
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work) for work in (*(busy() for _ in range(5)), report(lambda: "busy"))]
        for _ in range(10):
            assert await asyncio.to_thread(manager.told, 30.0) == {"WATCHDOG=1", "STATUS=busy"}
        for task in tasks:
            task.cancel()


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({"WATCHDOG_USEC": "60000000"}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "often"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_fed_by_the_process_that_it_guards(
    environment: dict[str, str], seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """WATCHDOG_USEC counts only if it is a time and WATCHDOG_PID, if there is one, is this process."""
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert watchdog_seconds() == seconds


def test_a_manager_that_does_not_read_holds_nobody_up(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Notifications are lost, rather than block the event loop, while nobody reads them."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(manager.path))
    monkeypatch.setattr("monitor.notify.SEND_SECONDS", 0.001)
    for _ in range(1000):  # many times as many as the system queues
        notify("WATCHDOG=1")
    assert manager.told(1.0) == {"WATCHDOG=1"}
