"""A table at the end of a test run: kinds of probe by the real servers that they were tried with."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from tests.real_servers.unpacked import ROOT

PACKAGES = {
    "Postfix": "postfix",
    "Exim": "exim4-daemon-light",
    "OpenSMTPD": "opensmtpd",
    "Sendmail": "sendmail-bin",
    "Dovecot": "dovecot-core",
    "Courier": "courier-imap",
    "Cyrus": "cyrus-imapd",
    "Mailutils": "mailutils-imap4d",
    "BIND": "bind9",
    "Knot": "knot",
    "NSD": "nsd",
}
"""The package that each server's version is taken from."""

KINDS = ("smtp", "pop3", "imap", "mx", "autodiscover", "roundtrip")


@pytest.fixture(autouse=True)
def tried(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> None:
    """Record a test's marks ``tried(kind, server, …)``."""
    for mark in request.node.iter_markers("tried"):
        kind, *servers = mark.args
        assert kind in KINDS
        assert PACKAGES.keys() >= set(servers)
        for server in servers:
            record_property("tried", (server, kind))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many tests of each kind passed with each server, if any ran."""
    passed, failed = (_counted(terminalreporter.stats.get(outcome, [])) for outcome in ("passed", "failed"))
    if not passed and not failed:
        return
    terminalreporter.section("servers × probes: tests that passed")
    terminalreporter.write_line(_line("", KINDS))
    for server, package in PACKAGES.items():
        cells = [_cell(passed[server, kind], failed[server, kind]) for kind in KINDS]
        if any(cells):
            terminalreporter.write_line(_line(f"{server} {_version(package)}", cells))


def _counted(reports: list[pytest.TestReport]) -> Counter[tuple[str, str]]:
    """Count reports by server and kind; each test's last report has its records."""
    return Counter(
        tuple(value)
        for report in reports
        if report.when == "call"
        for name, value in report.user_properties
        if name == "tried"
    )


def _line(head: str, cells: Sequence[str]) -> str:
    return f"{head:36}{''.join(f' {cell:>12}' for cell in cells)}".rstrip()


def _cell(passed: int, failed: int) -> str:
    return f"{passed} ({failed} failed)" if failed else str(passed or "")


def _version(package: str) -> str:
    """Return the version of a package, unpacked or installed."""
    for packages in ROOT.glob("*/packages"):
        for line in packages.read_text().splitlines():
            name, version = line.split()
            if name == package:
                return version
    query = ["dpkg-query", "-W", "-f", "${Version}", package]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout
