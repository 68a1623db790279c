"""The agent as a process: kills, restarts, a full disk, and foreign mail."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from monitor.ledger.store import open_ledger
from probes.core.clock import SystemClock
from probes.core.verdict import MessageState
from tests.real_servers.dovecot import Dovecot, TlsFiles
from tests.real_servers.process import HTTP, PATIENCE, wait_until
from tests.real_servers.site import MAILSONDE, AgentProcess, Site

INTENTS = 'mailsonde_messages_total{probe="trip",state="intent"'
DELIVERED = 'mailsonde_messages_total{probe="trip",state="delivered"'
UNRECORDED = 'mailsonde_probe_reasons_total{outcome="unknown",probe="trip",reason="ledger_unavailable"'
_blocked = re.compile(r"SigBlk:\s*([0-9a-f]+)")
FOREIGN = b"From: a@example.test\r\nTo: canary@example.test\r\nSubject: a real mail %d\r\n\r\nhello\r\n"


@pytest.fixture(scope="module")
def site(server_tls: TlsFiles, server_directory: Callable[[str], Path]) -> Iterator[Site]:
    with Site(server_directory("agent"), server_tls, deadline="60s") as running:
        yield running


async def _books(site: Site) -> tuple[list[str], dict[MessageState, int], int]:
    """Return discrepancies, how many messages entered each state, and how many are open."""
    async with open_ledger(f"sqlite:{site.directory}/ledger.db", SystemClock(), "books", "test") as ledger:
        entered = {state: ledger.counters.entered("trip", "submission", state) for state in MessageState}
        return await ledger.discrepancies(), entered, len(await ledger.open_messages())


def test_every_message_is_accounted_for_after_kills(site: Site) -> None:
    """With real servers too, after kills every intent has its outcome, and foreign mail is untouched.

    `tests.crash` has the many kills, and an account of each message.
    """
    for number in range(3):
        site.dovecot.deliver(FOREIGN % number)
    moments = random.Random(7)  # noqa: S311 # no secret
    for _ in range(2):
        agent = site.start_agent()
        _wait_for_another(agent, INTENTS)
        time.sleep(moments.uniform(0, 0.5))  # kills must come at random moments
        agent.stop(signal.SIGKILL)
    site.postfix.hold()
    agent = site.start_agent()
    wait_until(lambda: agent.metric("mailsonde_messages_in_flight") >= 2, "messages in flight")
    agent.stop(signal.SIGKILL)
    site.postfix.release()
    started_at = time.time()
    agent = site.start_agent()
    wait_until(
        lambda: _settled(agent, started_at), "all messages are settled", log=site.directory / "agent.log"
    )
    assert agent.stop() == 0
    discrepancies, entered, open_count = asyncio.run(_books(site))
    assert discrepancies == []
    ended = (
        MessageState.DELIVERED,
        MessageState.LATE,
        MessageState.LOST,
        MessageState.REJECTED,
        MessageState.DEFERRED,
    )
    assert entered[MessageState.INTENT] - sum(entered[state] for state in ended) == open_count
    assert open_count <= 1 + entered[MessageState.AMBIGUOUS]
    assert entered[MessageState.LOST] == 0
    assert entered[MessageState.DELIVERED] >= 4
    assert sum(b"a real mail" in raw for raw in site.dovecot.messages()) == 3


def _wait_for_success(agent: AgentProcess, of_reload: int) -> None:
    """Wait until the metric is told again: scrapes that follow soon share one answer."""
    wait_until(
        lambda: agent.metric("mailsonde_config_last_reload_successful") == of_reload,
        f"the success of the latest reload is {of_reload}",
    )


def _wait_for_another(agent: AgentProcess, metric: str, more: int = 1) -> None:
    """Return once a counter has increased by ``more``."""
    before = agent.metric(metric)
    wait_until(lambda: agent.metric(metric) >= before + more, f"{metric} grows")


def _settled(agent: AgentProcess, started_at: float) -> bool:
    """Whether all messages of processes before ``started_at`` have ended."""
    oldest = agent.metric("mailsonde_oldest_in_flight_timestamp_seconds")
    return agent.metric("mailsonde_delivery_seconds_count") >= 2 and (oldest == 0 or oldest > started_at)


def test_sigterm_ends_within_ten_seconds_with_nothing_open_unrecorded(site: Site) -> None:
    """SIGTERM under load ends the agent in time, with every intent followed by an outcome."""
    agent = site.start_agent()
    wait_until(
        lambda: agent.metric('mailsonde_messages_total{probe="trip",state="delivered"') >= 1, "a delivery"
    )
    begun = time.monotonic()
    assert agent.stop(signal.SIGTERM) == 0
    assert time.monotonic() - begun < 10
    assert "Traceback" not in (site.directory / "agent.log").read_text()
    discrepancies, entered, _ = asyncio.run(_books(site))
    assert discrepancies == []
    assert entered[MessageState.INTENT] == sum(
        entered[state]
        for state in (MessageState.SENT, MessageState.REJECTED, MessageState.DEFERRED, MessageState.AMBIGUOUS)
    )


def test_sigterm_ends_in_time_while_the_ledger_is_locked(site: Site) -> None:
    """Even if another program keeps the ledger locked, the agent ends within ten seconds."""
    agent = site.start_agent()
    _wait_for_another(agent, DELIVERED)
    with closing(sqlite3.connect(site.directory / "ledger.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        locked = time.monotonic()
        wait_until(lambda: time.monotonic() - locked > 3, "runs that wait for the ledger")
        begun = time.monotonic()
        agent.stop(signal.SIGTERM)
        took = time.monotonic() - begun
    assert took < 10
    site.start_agent().stop()
    assert asyncio.run(_books(site))[0] == []


def test_sighup_reloads(site: Site) -> None:
    """SIGHUP puts the changed configuration to use, and the agent continues."""
    agent, before = site.start_agent(), site.config.read_text()
    log = site.directory / "agent.log"
    site.config.write_text(before.replace("name: pop3,", "name: pop,"))
    agent.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "configuration reloaded" in log.read_text(), "word of the reload", log=log)
    _wait_for_another(agent, DELIVERED)
    assert agent.metric('mailsonde_probe_info{probe="pop"') == 1
    assert agent.metric('mailsonde_probe_info{probe="pop3"') == 0
    assert agent.stop() == 0
    site.config.write_text(before)


def test_mailsonde_reload_tells_what_came_of_it(site: Site) -> None:
    """`mailsonde reload` exits 0 if the agent uses the configuration, else 1, with each mistake and line."""

    def reload() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*MAILSONDE, "reload", "--config", site.config], capture_output=True, text=True, check=False
        )

    without = reload()
    assert (without.returncode, without.stdout) == (1, "")
    assert "no agent runs with the ledger" in without.stderr
    agent, before = site.start_agent(), site.config.read_text()
    done = reload()
    assert (done.returncode, done.stdout) == (0, "3 probes: 0 changed, 0 new, 0 removed\n")
    password = site.directory / "password"
    secret = password.read_text()
    password.write_text("")
    refused = reload()
    password.write_text(secret)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert f"{site.config}:" in refused.stderr
    assert "refused: the agent runs on with its earlier configuration" in refused.stderr
    site.config.write_text(before.replace("kind: smtp", "kind: smpt"))
    invalid = reload()
    site.config.write_text(before)
    assert invalid.returncode == 1
    assert "not reloaded: the agent runs on" in invalid.stderr
    _wait_for_success(agent, 0)
    assert reload().returncode == 0
    _wait_for_success(agent, 1)
    assert agent.stop() == 0


def test_sighup_while_starting_ends_nothing(site: Site) -> None:
    """A SIGHUP that comes while the agent starts waits until it can reload."""
    log = site.directory / "starting.log"
    with log.open("w") as output:
        process = subprocess.Popen([*MAILSONDE, "run", "--config", site.config], stderr=output)
    status = Path(f"/proc/{process.pid}/status")
    try:
        wait_until(lambda: int(_blocked.search(status.read_text())[1], 16) & 1, "SIGHUP waits")  # type: ignore[index] # always there
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: "configuration reloaded" in log.read_text(), "word of the reload", log=log)
    finally:
        process.terminate()
    assert process.wait(PATIENCE) == 0


def test_no_secret_is_in_logs_or_metrics(site: Site) -> None:
    """After traffic and refusals, the password is in neither the log nor /metrics."""
    agent = site.start_agent()
    _wait_for_another(agent, DELIVERED)
    metrics = HTTP.get(f"{agent.address}/metrics").text
    agent.stop()
    for text in (metrics, (site.directory / "agent.log").read_text()):
        assert "mailsonde" in text
        assert Dovecot.password not in text


def test_second_agent_on_the_same_ledger_is_refused(site: Site) -> None:
    """A second agent on the same ledger says why it does not start, and exits 2."""
    agent = site.start_agent()
    other = site.directory / "other.yaml"
    other.write_text(site.config.read_text().replace(f"127.0.0.1:{site.port}", "127.0.0.1:0"))
    second = subprocess.run(
        [*MAILSONDE, "run", "--config", other], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    agent.stop()
    assert second.returncode == 2
    assert "mailsonde cannot start" in second.stderr
    assert "Traceback" not in second.stderr


def test_port_in_use_is_said(site: Site) -> None:
    """An address in use gives an error that names it, and exit status 2."""
    agent = site.start_agent()
    other = site.directory / "other.yaml"
    other.write_text(site.config.read_text().replace("/ledger.db", "/other.db"))
    second = subprocess.run(
        [*MAILSONDE, "run", "--config", other], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    agent.stop()
    assert second.returncode == 2
    assert f"cannot listen on 127.0.0.1:{site.port}: Address already in use" in second.stderr


@pytest.fixture
def small_disk(site: Site) -> Iterator[Path]:
    """Mount a disk of 4 MiB for the ledger."""
    mount = site.directory / "small"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", mount], check=True)
    yield mount
    subprocess.run(["umount", "--lazy", mount], check=True)


def test_full_disk_stops_sending_and_metrics_go_on(site: Site, small_disk: Path) -> None:
    """With a full disk nothing is sent, runs are unknown, and /metrics works; with room, sending resumes."""
    original = site.config.read_text()
    site.config.write_text(original.replace(f"{site.directory}/ledger.db", f"{small_disk}/ledger.db"))
    agent = site.start_agent()
    _wait_for_another(agent, DELIVERED)
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"x" * 4096):
            pass
    _wait_for_another(agent, UNRECORDED, 2)
    accepted = _submissions(site)
    _wait_for_another(agent, UNRECORDED, 2)
    assert _submissions(site) == accepted
    assert "disk is full" in (site.directory / "agent.log").read_text()
    ballast.unlink()
    _wait_for_another(agent, DELIVERED)
    assert agent.stop() == 0
    site.config.write_text(original)


def _submissions(site: Site) -> int:
    """Return how many messages Postfix has accepted from the agent."""
    return sum("qmgr" in line and "from=<canary@example.test>" in line for line in site.postfix.log_lines())
