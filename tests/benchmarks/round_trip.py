"""Processor time of a round trip, compared with Debian's check_email_delivery.

All send through the same Postfix with STARTTLS and AUTH, and read from the same Dovecot over TLS: the plugin
with its helpers for SMTP and IMAP; mailsonde as an agent with its ledger and /metrics. The plugin logs in to
the mailbox once a message, and so does mailsonde by POP3, where each route has a mailbox of its own. By IMAP
it keeps its sessions.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from operator import truediv
from pathlib import Path
from typing import NamedTuple

import httpx

from tests.benchmarks.processes import cpu_seconds, workplace
from tests.real_servers.dovecot import DOMAIN, Dovecot, TlsFiles
from tests.real_servers.postfix import Postfix
from tests.real_servers.process import free_port, wait_until
from tests.real_servers.site import AgentProcess

GOAL = 1 / 20
ROUTES = 10
"""For each protocol, each with a message every `INTERVAL` seconds."""

INTERVAL = 2

ROUNDS = 5
SECONDS = 10.0
USERS = {protocol: [f"{protocol}-{number}" for number in range(ROUTES)] for protocol in ("pop3", "imap")}
_PLUGINS = Path("/usr/lib/nagios/plugins")
_USER = f"staff@{DOMAIN}"
_CONFIGURATION = """\
agent: {{listen: '127.0.0.1:{listen}', ledger: 'sqlite:{directory}/ledger.db'}}
servers:
  submission: {{protocol: smtp, host: 127.0.0.1, port: {submission}, tls: starttls, {tls}, {login}}}
  mail: {{protocol: {protocol}, host: 127.0.0.1, port: {port}, tls: implicit, {tls}, logins_per_minute: 6000}}
mailboxes:
{mailboxes}
probes:
{probes}
"""


class _Reading(NamedTuple):
    """What an agent has done so far: its processor seconds, delivered messages, and logins to mailboxes."""

    seconds: float
    delivered: float
    logins: int


class _Agent:
    """An agent with `ROUTES` routes, each with a mailbox of its own that is read by ``protocol``."""

    def __init__(
        self, protocol: str, directory: Path, dovecot: Dovecot, postfix: Postfix, tls: TlsFiles
    ) -> None:
        self._logins = f"{protocol}-login: Info: Login:"
        self._log = dovecot.directory / "dovecot.log"
        directory.mkdir()
        (directory / "password").write_text(Dovecot.password)
        listen, config = free_port(), directory / "mailsonde.yaml"
        users = USERS[protocol]
        config.write_text(
            _CONFIGURATION.format(
                listen=listen,
                directory=directory,
                submission=postfix.submission_port,
                protocol=protocol,
                port=dovecot.imaps_port if protocol == "imap" else dovecot.pop3s_port,
                tls=f"tls_server_name: localhost, tls_ca: {tls.authority}",
                login=_login(_USER),
                mailboxes="\n".join(
                    f"  {user}: {{address: {user}@{DOMAIN}, server: mail, {_login(f'{user}@{DOMAIN}')}}}"
                    for user in users
                ),
                probes="\n".join(
                    f"  - {{name: {user}, kind: roundtrip, interval: {INTERVAL}s, deadline: 10s, "
                    f"from: {_USER}, send_via: submission, to: {user}}}"
                    for user in users
                ),
            )
        )
        self.process = AgentProcess(config, directory / "agent.log", listen)
        wait_until(lambda: self.reading().delivered >= 5 * ROUTES, "the first deliveries", 120.0)

    def reading(self) -> _Reading:
        metrics = httpx.get(f"{self.process.address}/metrics", trust_env=False).text
        delivered = sum(
            float(line.rpartition(" ")[2])
            for line in metrics.splitlines()
            if line.startswith("mailsonde_messages_total{") and 'state="delivered"' in line
        )
        logins = self._log.read_text(errors="replace").count(self._logins)
        return _Reading(cpu_seconds(self.process.process.pid), delivered, logins)


def _login(user: str) -> str:
    return f"username: {user}, password: {{file: password}}"


def plugin_command(dovecot: Dovecot, postfix: Postfix, authority: Path) -> tuple[list[str], dict[str, str]]:
    """Return the command and environment for check_email_delivery with the user staff."""
    account = f"-H localhost -U {_USER} -P {Dovecot.password}"
    send = (
        f"{_PLUGINS}/check_smtp_send {account} -p {postfix.submission_port} --tls "
        f"--mailto {_USER} --mailfrom {_USER} --header 'Subject: %TOKEN1%'"
    )
    receive = (
        f"{_PLUGINS}/check_imap_receive {account} -p {dovecot.imaps_port} --ssl "
        "-s SUBJECT -s %TOKEN1% --imap-check-interval 1 --imap-retries 30"
    )
    command = [f"{_PLUGINS}/check_email_delivery", "-p", send, "-p", receive]
    return command, {**os.environ, "SSL_CERT_FILE": str(authority)}


def _plugin(dovecot: Dovecot, postfix: Postfix, authority: Path) -> float:
    """Return the processor seconds of one delivery seen by check_email_delivery."""
    command, environment = plugin_command(dovecot, postfix, authority)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if not done.stdout.startswith("EMAIL DELIVERY OK"):
        raise SystemExit(f"check_email_delivery failed: {done.stdout}{done.stderr}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _round(agents: Mapping[str, _Agent]) -> Iterator[tuple[str, float, float]]:
    """Yield the name of each agent with its processor seconds and its logins a message in `SECONDS`."""
    before = {name: agent.reading() for name, agent in agents.items()}
    time.sleep(SECONDS)
    for name, agent in agents.items():
        seconds, delivered, logins = (b - a for a, b in zip(before[name], agent.reading(), strict=True))
        yield name, seconds / delivered, logins / delivered


def measure() -> dict[str, float]:
    """Return milliseconds of processor time per round trip, of all, and the ratio by POP3: medians."""
    seconds, logins = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
    with workplace() as (directory, tls), ExitStack() as stack:
        users = ("staff", *USERS["pop3"], *USERS["imap"])
        dovecot = Dovecot(directory / "dovecot", tls, users=users)
        stack.callback(dovecot.stop)
        postfix = Postfix(directory / "postfix", dovecot, tls)
        stack.callback(postfix.stop)
        agents = {}
        for protocol in USERS:
            agents[protocol] = _Agent(protocol, directory / protocol, dovecot, postfix, tls)
            stack.callback(agents[protocol].process.stop)
        for _ in range(ROUNDS):
            for name, used, logged_in in _round(agents):
                seconds[name].append(used)
                logins[name].append(logged_in)
            seconds["plugin"].append(_plugin(dovecot, postfix, tls.authority))
    if statistics.median(logins["pop3"]) < 1.0:
        raise SystemExit("mailsonde logged in less than once a message; that is no fair comparison")
    return {
        "POP3, ms": 1000 * statistics.median(seconds["pop3"]),
        "POP3, logins a message": statistics.median(logins["pop3"]),
        "IMAP, ms": 1000 * statistics.median(seconds["imap"]),
        "IMAP, logins a message": statistics.median(logins["imap"]),
        "check_email_delivery, ms": 1000 * statistics.median(seconds["plugin"]),
        "ratio": statistics.median(map(truediv, seconds["pop3"], seconds["plugin"])),
    }
