"""Errors of published latencies, compared with the times at which Dovecot logs the messages.

Postfix sends mail to a relay, which delays each message by a random time around its route's own, and then
to Dovecot. Each route has its own mailbox; half are watched by POP3, half by IMAP. In the same run, with the
same server: polling by POP3 at fixed intervals, with copies of the same mail, and Debian's
check_email_delivery, whose mail is delayed likewise.
"""

from __future__ import annotations

import math
import poplib
import random
import re
import sqlite3
import ssl
import statistics
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from probes.core.verdict import MessageState
from tests.benchmarks.processes import workplace
from tests.benchmarks.round_trip import plugin_command
from tests.real_servers.dovecot import DOMAIN, PASSWORD, Dovecot, TlsFiles
from tests.real_servers.postfix import Postfix
from tests.real_servers.process import free_port
from tests.real_servers.relay import Delivery, Mail, Relay, with_field
from tests.real_servers.relay import field as field_of
from tests.real_servers.site import AgentProcess

DELAYS = (0.05, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0)
"""Medians, in seconds, of how long the messages of the routes are held back."""

SPREAD = 0.2
"""Standard deviation of the delays' logarithms."""

SECONDS = 240.0
LEARNING = 15
"""Messages of a route that do not count, because it is not yet known."""

FIXED = (1.0, 5.0, 30.0)
PLUGIN_DELAYS = (0.05, 1.0, 3.0, 10.0)
_PROBE = re.compile(rb"^X-Mailsonde-Token: mailsonde1:(pop3|imap)-(\d):", re.MULTILINE)


@dataclass(frozen=True)
class Error:
    """The error of an estimate, and the true delay, in seconds."""

    seconds: float
    delay: float
    is_inside: bool  # the truth is within the published uncertainty
    was_seen_first: bool  # mailsonde had read the message before Dovecot logged it


@dataclass
class Figures:
    """Our errors by protocol and position of the delay; others' errors, in seconds."""

    ours: dict[tuple[str, int], list[Error]] = field(default_factory=lambda: defaultdict(list))
    logins: dict[int, float] = field(default_factory=dict)  # POP3, per message
    fixed: dict[float, list[float]] = field(default_factory=dict)
    plugin: list[float] = field(default_factory=list)


class Transit:
    """The relay's treatment: delays messages, and puts copies where the fixed intervals are polled."""

    def __init__(self) -> None:
        self._chance = random.Random(1)  # noqa: S311 # a simulation
        self.plugin_mail: list[tuple[str, float]] = []  # Message-ID, and when it was accepted

    def __call__(self, mail: Mail) -> Iterator[Delivery]:
        probe = _PROBE.search(mail.raw)
        if probe is None:
            number = len(self.plugin_mail) % len(PLUGIN_DELAYS)
            self.plugin_mail.append((field_of(mail.raw, "Message-ID").decode(), time.time()))
            yield Delivery(mail.raw, delay=PLUGIN_DELAYS[number])
            return
        delay = DELAYS[int(probe[2])] * math.exp(self._chance.gauss(0.0, SPREAD))
        yield Delivery(mail.raw, delay=delay)
        if probe[1] == b"pop3":
            copy_id = field_of(mail.raw, "Message-ID").replace(b"<", b"<copy-")
            copy = with_field(mail.raw, "Message-ID", copy_id)
            yield Delivery(copy, delay=delay, recipient=f"fixed@{DOMAIN}")


class FixedPoller(threading.Thread):
    """Polls at a fixed interval; the estimate of an arrival is the middle of its interval."""

    def __init__(self, interval: float, dovecot: Dovecot, tls: TlsFiles) -> None:
        super().__init__()
        self.interval = interval
        self.estimates: dict[str, float] = {}  # by Message-ID
        self._port = dovecot.pop3s_port
        self._context = ssl.create_default_context(cafile=tls.authority)
        self._ended = threading.Event()

    def run(self) -> None:
        known: set[bytes] = set()
        last: float | None = None
        while not self._ended.is_set():
            pop = poplib.POP3_SSL("localhost", self._port, context=self._context)
            pop.user(f"fixed@{DOMAIN}")
            begun = time.time()
            pop.pass_(PASSWORD)
            listing = [line.split() for line in pop.uidl()[1]]
            listed = time.time()
            for number, uid in listing:
                if uid not in known and last is not None:
                    header_section = b"\r\n".join(pop.top(int(number), 0)[1])
                    self.estimates[field_of(header_section, "Message-ID").decode()] = (last + listed) / 2
                known.add(uid)
            pop.quit()
            last = begun
            self._ended.wait(self.interval)

    def stop(self) -> None:
        """End the poller, and wait until it has ended."""
        self._ended.set()
        self.join()


@contextmanager
def _polled(dovecot: Dovecot, tls: TlsFiles) -> Iterator[list[FixedPoller]]:
    pollers = [FixedPoller(interval, dovecot, tls) for interval in FIXED]
    for poller in pollers:
        poller.start()
    try:
        yield pollers
    finally:
        for poller in pollers:
            poller.stop()


def _configuration(directory: Path, dovecot: Dovecot, postfix: Postfix, tls: TlsFiles, port: int) -> Path:
    (directory / "password").write_text(PASSWORD)
    endpoint = {"host": "127.0.0.1", "tls_server_name": "localhost", "tls_ca": str(tls.authority)}
    routes = [(protocol, number) for protocol in ("pop3", "imap") for number in range(len(DELAYS))]
    # Too many logins for a real server, but here each route has its own mailbox.
    incoming = {"tls": "implicit", "logins_per_minute": 60000, **endpoint}
    document = {
        "agent": {"listen": f"127.0.0.1:{port}", "ledger": f"sqlite:{directory}/ledger.db"},
        "servers": {
            "out": {"protocol": "smtp", "port": postfix.smtp_port, "tls": "starttls", **endpoint},
            "pop3": {"protocol": "pop3", "port": dovecot.pop3s_port, **incoming},
            "imap": {"protocol": "imap", "port": dovecot.imaps_port, **incoming},
        },
        "mailboxes": {
            f"{protocol}-{number}": {
                "address": f"{protocol}-{number}@{DOMAIN}",
                "server": protocol,
                "username": f"{protocol}-{number}@{DOMAIN}",
                "password": {"file": "password"},
            }
            for protocol, number in routes
        },
        "probes": [
            {
                "name": f"{protocol}-{number}",
                "kind": "roundtrip",
                "interval": f"{min(max(2.0, DELAYS[number] / 15), 4.0)}s",
                "deadline": "5m",
                "from": f"sender@{DOMAIN}",
                "send_via": "out",
                "to": f"{protocol}-{number}",
            }
            for protocol, number in routes
        ],
    }
    path = directory / "mailsonde.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def _run_plugin(dovecot: Dovecot, postfix: Postfix, tls: TlsFiles, until: float) -> Iterator[float]:
    """Run check_email_delivery repeatedly; yield its delays in seconds."""
    while time.monotonic() < until:
        command, environment = plugin_command(dovecot, postfix, tls.authority)
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        said = re.search(r"delay=(\d+)s", done.stdout)
        if said is None:
            raise SystemExit(f"check_email_delivery failed: {done.stdout}{done.stderr}")
        yield float(said[1])


def measure() -> Figures:
    """Run everything for `SECONDS`, and compare."""
    users = ("staff", "sender", "fixed", *(f"{p}-{n}" for p in ("pop3", "imap") for n in range(len(DELAYS))))
    transit = Transit()
    with workplace() as (directory, tls), ExitStack() as stack:
        dovecot = Dovecot(directory / "dovecot", tls, users=users)
        stack.callback(dovecot.stop)
        relay = stack.enter_context(Relay(dovecot, transit))
        postfix = Postfix(directory / "postfix", dovecot, tls, relay=relay)
        stack.callback(postfix.stop)
        port = free_port()
        path = _configuration(directory, dovecot, postfix, tls, port)
        agent = AgentProcess(path, directory / "agent.log", port)
        stack.callback(agent.stop)
        with _polled(dovecot, tls) as pollers:
            said = list(_run_plugin(dovecot, postfix, tls, time.monotonic() + SECONDS))
        agent.stop()
        saved_at = dovecot.saved_at()
        figures = _ours(
            directory / "ledger.db", saved_at, (directory / "dovecot" / "dovecot.log").read_text()
        )
        figures.fixed = {
            poller.interval: [
                estimate - saved_at[message_id]
                for message_id, estimate in poller.estimates.items()
                if message_id in saved_at
            ]
            for poller in pollers
        }
        figures.plugin = [
            told - (saved_at[message_id] - taken)
            for told, (message_id, taken) in zip(said, transit.plugin_mail, strict=False)
        ]
        return figures


def _ours(ledger: Path, saved_at: dict[str, float], log: str) -> Figures:
    figures = Figures()
    connection = sqlite3.connect(ledger)
    rows = connection.execute(
        "SELECT id, probe, created_at + connected_mono - created_mono, delivery_seconds, uncertainty_seconds "
        "FROM messages WHERE state = ? ORDER BY created_at",
        (str(MessageState.DELIVERED),),
    ).fetchall()
    connection.close()
    found: dict[tuple[str, int], int] = defaultdict(int)
    for message_id, probe, connected, delivery, uncertainty in rows:
        protocol, _, number = probe.partition("-")
        route = protocol, int(number)
        found[route] += 1
        truth = saved_at[f"<{message_id}@{DOMAIN}>"] - connected
        if found[route] > LEARNING:
            off = delivery - truth
            figures.ours[route].append(Error(off, truth, abs(off) <= uncertainty, off < -uncertainty))
    for (protocol, number), count in found.items():
        if protocol == "pop3":
            logins = log.count(f"pop3-login: Info: Login: user=<pop3-{number}@")
            figures.logins[number] = logins / count
    return figures


def main() -> None:
    """Print the errors, by delay and in total."""
    figures = measure()
    print(
        f"error of the estimated arrival against Dovecot's log, {SECONDS:g} s, each route in its own mailbox:"
    )
    print(
        "  watched by  held back   messages   median |error|   of the delay   truth inside   logins a message"
    )
    for (protocol, number), errors in sorted(figures.ours.items()):
        median = statistics.median(abs(error.seconds) for error in errors)
        share = statistics.median(abs(error.seconds) / error.delay for error in errors)
        inside = statistics.mean(error.is_inside for error in errors)
        logins = f"{figures.logins[number]:16.1f}" if protocol == "pop3" else ""
        print(
            f"  {protocol:10} {DELAYS[number]:8.2f} s {len(errors):10} {1000 * median:13.1f} ms"
            f" {100 * share:13.1f} % {100 * inside:12.1f} % {logins}"
        )
    _print_totals(figures)


def _print_totals(figures: Figures) -> None:
    for protocol in ("imap", "pop3"):
        errors = [e for (p, _), found in figures.ours.items() if p == protocol for e in found]
        median = 1000 * statistics.median(abs(error.seconds) for error in errors)
        share = statistics.median(abs(error.seconds) / max(0.01, 0.05 * error.delay) for error in errors)
        inside = 100 * statistics.mean(error.is_inside for error in errors)
        seen_first = 100 * statistics.mean(error.was_seen_first for error in errors)
        goal = "5 ms" if protocol == "imap" else "1.00 times max(10 ms, 5 %)"
        print(
            f"  {protocol} in all: median {median:.1f} ms, {share:.2f} times max(10 ms, 5 %), inside in "
            f"{inside:.1f} %, read before Dovecot logged it {seen_first:.1f} %   "
            f"goal: at most {goal}, at least 99 %"
        )
    for interval, found in figures.fixed.items():
        median = 1000 * statistics.median(map(abs, found))
        print(f"  POP3 every {interval:g} s: median {median:.1f} ms over {len(found)} messages")
    median = 1000 * statistics.median(map(abs, figures.plugin))
    print(f"  check_email_delivery: median {median:.1f} ms over {len(figures.plugin)} messages")
