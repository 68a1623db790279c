"""`mailsonde check`, as run by administrators and Nagios."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest

from tests.real_servers.dovecot import TlsFiles
from tests.real_servers.postfix import DEFERRED, REJECTED
from tests.real_servers.process import PATIENCE
from tests.real_servers.site import MAILSONDE, Site


@pytest.fixture(scope="module")
def site(server_tls: TlsFiles, server_directory: Callable[[str], Path]) -> Iterator[Site]:
    with Site(server_directory("check"), server_tls) as running:
        yield running


def _check(site: Site, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*MAILSONDE, "check", "--config", str(site.config), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)


def test_json_has_the_documented_object(site: Site) -> None:
    """JSON output is one object per run with every documented field; exit status 0 if all is ok."""
    done = _check(site, "--format", "json")
    assert done.returncode == 0, done.stderr
    runs = {run["probe"]: run for run in map(json.loads, done.stdout.splitlines())}
    assert set(runs) == {"trip", "smtp", "pop3"}
    trip = runs["trip"]
    assert list(trip) == [
        *("probe", "kind", "target", "location", "outcome", "reason", "detail"),
        *("started_at", "duration_seconds", "phases", "values", "message"),
    ]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00", trip["started_at"])
    assert datetime.fromisoformat(trip["started_at"]).tzinfo is not None
    message = trip["message"]
    assert message["state"] == "delivered"
    assert 0 < message["submission_seconds"] <= message["delivery_seconds"] + message["uncertainty_seconds"]
    assert message["transit_seconds"] >= 0
    assert list(trip["phases"]) == [
        *("connect", "greeting", "ehlo", "starttls", "tls", "auth", "mail", "rcpt", "data", "quit"),
    ]
    assert "STARTTLS" not in runs["smtp"]["values"]["features"]
    assert "PIPELINING" in runs["smtp"]["values"]["features"]
    assert runs["pop3"]["values"]["messages"] >= 0


def test_one_probe_by_name_as_text(site: Site) -> None:
    """Only the named probe runs; without a terminal, the result is one plain line."""
    done = _check(site, "trip")
    assert done.returncode == 0
    assert re.fullmatch(r"trip  roundtrip  submission  ok  \d+\.\d{3} s ± \d+\.\d{3} s\n", done.stdout)


def test_verbose_shows_the_dialogue(site: Site) -> None:
    """The dialogue with Postfix is below the result and in JSON, without the credentials."""
    done = _check(site, "trip", "--verbose")
    assert done.returncode == 0
    result, *said = done.stdout.splitlines()
    assert result.startswith("trip  roundtrip  submission  ok  ")
    assert all(re.fullmatch(r" {2} *\d+\.\d{3} [CS#]: .+", line) for line in said)
    shown = [line.split(maxsplit=1)[1] for line in said]
    assert "C: AUTH PLAIN (withheld)" in shown
    assert "S: 354 End data with <CR><LF>.<CR><LF>" in shown
    assert shown[-1].startswith("#: delivered: in mailbox canary ")
    password = (site.directory / "password").read_text()
    assert password not in done.stdout
    run = json.loads(_check(site, "smtp", "-v", "--format", "json").stdout)
    assert len(run["run"]) == 32
    assert run["transcript"][-1].endswith("221 2.0.0 Bye")
    refused = _check(site, "-v", "--format", "nagios")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "use --format text or json" in refused.stderr


def test_nagios_line_with_performance_data(site: Site) -> None:
    """The Nagios line has state, text and performance data; exit status 0."""
    done = _check(site, "trip", "--format", "nagios")
    assert done.returncode == 0
    assert re.fullmatch(
        r"MAILSONDE OK - 1 probe ok \| 'trip'=\d+\.\d{6}s;;;0 'trip_delivery'=\d+\.\d{6}s;;;0 "
        r"'trip_uncertainty'=\d+\.\d{6}s;;;0\n",
        done.stdout,
    )


@pytest.mark.parametrize(
    ("recipient", "reason", "state", "code", "enhanced"),
    [
        (REJECTED, "smtp_rejected", "rejected", 550, "5.1.1"),
        (DEFERRED, "smtp_deferred", "deferred", 450, "4.2.0"),
    ],
)
def test_refused_message(
    site: Site, recipient: str, reason: str, state: str, code: int, enhanced: str
) -> None:
    """A refusal exits 2 with its reason and the server's codes."""
    original = site.config.read_text()
    site.config.write_text(
        original.replace("canary:\n    {address: canary@example.test", f"canary:\n    {{address: {recipient}")
    )
    try:
        done = _check(site, "trip", "--format", "json")
        critical = _check(site, "trip", "--format", "nagios")
    finally:
        site.config.write_text(original)
    run = json.loads(done.stdout)
    assert done.returncode == critical.returncode == 2
    assert (run["outcome"], run["reason"]) == ("failed", reason)
    assert run["detail"].startswith(f"in phase rcpt: {code} {enhanced} ")
    assert run["values"] == {"reply_code": code, "enhanced_status_code": enhanced}
    assert critical.stdout.startswith(f"MAILSONDE CRITICAL - trip {reason}: in phase rcpt: {code}")


def test_wrong_password_names_the_step_and_not_the_password(site: Site) -> None:
    """A refused login shows the step and the server's answer, and never the password."""
    password = site.directory / "password"
    original = password.read_text()
    password.write_text("wr0ng-Passw0rd")
    try:
        done = _check(site, "--format", "json")
    finally:
        password.write_text(original)
    runs = {run["probe"]: run for run in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == 2
    assert {run["reason"] for run in runs.values()} == {"auth_failed"}
    assert runs["smtp"]["detail"].startswith("in phase auth: PLAIN: 535 5.7.8")
    assert runs["pop3"]["detail"].startswith("in phase login: ")
    assert "wr0ng-Passw0rd" not in done.stdout + done.stderr


def test_mistyped_probe_gets_a_suggestion(site: Site) -> None:
    """An unknown probe name gives a suggestion, and exits 2 before anything is sent."""
    done = _check(site, "tripp")
    assert done.returncode == 2
    assert done.stderr == "no probe is named 'tripp', did you mean trip?; the probes are: trip, smtp, pop3\n"


def test_check_beside_a_running_agent(site: Site) -> None:
    """A check with a running agent's ledger and mailbox gets its own message, and disturbs nothing."""
    agent = site.start_agent()
    done = _check(site, "trip", "--format", "json")
    assert json.loads(done.stdout)["message"]["state"] == "delivered"
    assert agent.metric("mailsonde_mailbox_unexpected_total") == 0
    assert agent.stop() == 0
