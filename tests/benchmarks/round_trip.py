"""Processor time of a round trip, compared with Debian's check_email_delivery.

Both send through the same Postfix with STARTTLS and AUTH, and read from the same Dovecot over TLS: the plugin
with its helpers for SMTP and IMAP, mailsonde as an agent, by POP3, with its ledger and /metrics.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import time
from pathlib import Path

import yaml

from tests.benchmarks.processes import cpu_seconds, workplace
from tests.real_servers.dovecot import Dovecot
from tests.real_servers.postfix import Postfix
from tests.real_servers.process import wait_until
from tests.real_servers.site import AgentProcess, Site

GOAL = 1 / 20
ROUTES = 40
ROUNDS = 5
SECONDS = 8.0
_PLUGINS = Path("/usr/lib/nagios/plugins")
_USER = "staff@example.test"


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


def _plugin(site: Site, authority: Path) -> float:
    """Return the processor seconds of one delivery seen by check_email_delivery."""
    command, environment = plugin_command(site.dovecot, site.postfix, authority)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if not done.stdout.startswith("EMAIL DELIVERY OK"):
        raise SystemExit(f"check_email_delivery failed: {done.stdout}{done.stderr}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _delivered(agent: AgentProcess) -> float:
    return sum(
        agent.metric(f'mailsonde_messages_total{{probe="trip-{n}",state="delivered"') for n in range(ROUTES)
    )


def measure() -> dict[str, float]:
    """Return milliseconds of processor time per round trip, for both, and their ratio: medians."""
    ours, theirs = [], []
    with workplace() as (directory, tls), Site(directory, tls) as site:
        document = yaml.safe_load(site.config.read_text())
        trip = document["probes"][0]
        document["probes"] = [{**trip, "name": f"trip-{n}"} for n in range(ROUTES)]
        site.config.write_text(yaml.safe_dump(document))
        agent = site.start_agent()
        wait_until(lambda: _delivered(agent) >= 3 * ROUTES, "the first deliveries")
        for _ in range(ROUNDS):
            count, used = _delivered(agent), cpu_seconds(agent.process.pid)
            time.sleep(SECONDS)  # the agent delivers one per second and route
            used = cpu_seconds(agent.process.pid) - used
            ours.append(1000 * used / (_delivered(agent) - count))
            theirs.append(1000 * _plugin(site, tls.authority))
    return {
        "mailsonde_ms": statistics.median(ours),
        "check_email_delivery_ms": statistics.median(theirs),
        "ratio": statistics.median(a / b for a, b in zip(ours, theirs, strict=True)),
    }
