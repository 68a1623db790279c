"""`mailsonde check --textfile` as in cron, with real servers, read as by node_exporter."""

from __future__ import annotations

import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.real_servers.dovecot import TlsFiles
from tests.real_servers.process import PATIENCE, require
from tests.real_servers.site import MAILSONDE, Site


@pytest.fixture(scope="module")
def site(server_tls: TlsFiles, server_directory: Callable[[str], Path]) -> Iterator[Site]:
    with Site(server_directory("textfile"), server_tls) as running:
        yield running


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mailsonde.prom"


def _check(site: Site, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [*MAILSONDE, "check", "--config", site.config, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)


def _values(path: Path) -> dict[str, dict[tuple[str, ...], float]]:
    """Return each sample's value by name, and by its label values in the order of the label names.

    The location and the class of the interval are left out: they are the same everywhere.
    """
    values: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(path.read_text()):
        for sample in family.samples:
            assert sample.timestamp is None
            labels = [sample.labels[name] for name in sorted(sample.labels.keys() - {"location", "cadence"})]
            values.setdefault(sample.name, {})[tuple(labels)] = sample.value
    return values


def test_all_probes(site: Site, path: Path) -> None:
    """After a run of all probes, the file has success, times, phases, certificates and message counts."""
    before = time.time()
    done = _check(site, "--textfile", path)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    values = _values(path)
    probes = {("roundtrip", "trip", "submission"), ("smtp", "smtp", "submission"), ("pop3", "pop3", "pop")}
    assert values["mailsonde_probe_success"] == dict.fromkeys(probes, 1.0)
    last_run = values["mailsonde_probe_last_run_timestamp_seconds"]
    assert set(last_run) == probes
    assert all(before < ended <= time.time() for ended in last_run.values())
    expiry = values["mailsonde_tls_certificate_not_after_timestamp_seconds"]
    assert all(instant > before for instant in expiry.values())
    assert values["mailsonde_probe_phase_seconds"]["roundtrip", "data", "trip", "submission"] > 0
    route = "roundtrip", "trip", "submission"
    assert values["mailsonde_messages_total"]["roundtrip", "trip", "delivered", "submission"] == 1
    assert values["mailsonde_messages_in_flight"] == {route: 0.0}
    assert 0 < values["mailsonde_delivery_last_seconds"][route] < PATIENCE
    assert 0 < values["mailsonde_delivery_uncertainty_seconds"][route] < PATIENCE
    assert "mailsonde_probe_runs_total" not in values

    _check(site, "trip", "--textfile", path)
    values = _values(path)
    assert values["mailsonde_messages_total"]["roundtrip", "trip", "delivered", "submission"] == 2
    assert set(values["mailsonde_probe_success"]) == {("roundtrip", "trip", "submission")}


def test_promtool_accepts_the_file(site: Site, path: Path) -> None:
    """Prometheus's linter has no complaint about the file."""
    assert _check(site, "--textfile", path).returncode == 0
    with path.open() as text:
        linted = subprocess.run(
            [require("promtool", "prometheus"), "check", "metrics"],
            stdin=text,
            capture_output=True,
            text=True,
            check=False,
        )
    assert (linted.returncode, linted.stdout, linted.stderr) == (0, "", "")


def test_failed_probe(site: Site, path: Path) -> None:
    """A failed probe has success 0 and its phases; the exit status is unchanged."""
    password = site.directory / "password"
    original = password.read_text()
    password.write_text("wr0ng-Passw0rd")
    try:
        done = _check(site, "smtp", "--textfile", path)
    finally:
        password.write_text(original)
    assert done.returncode == 2
    values = _values(path)
    assert values["mailsonde_probe_success"] == {("smtp", "smtp", "submission"): 0.0}
    assert ("smtp", "auth", "smtp", "submission") in values["mailsonde_probe_phase_seconds"]
    assert "wr0ng" not in path.read_text()


@pytest.mark.parametrize("form", ["text", "json", "nagios"])
def test_file_that_cannot_be_written(site: Site, path: Path, form: str) -> None:
    """If the file cannot be written, the results are still shown, with exit status 3 and the reason."""
    path.mkdir()
    done = _check(site, "smtp", "--format", form, "--textfile", path)
    assert done.returncode == 3
    told = done.stdout if form == "nagios" else done.stderr
    assert f"cannot write {path}: Is a directory; the directory {path.parent} must exist" in told
    if form == "nagios":
        assert told.startswith("MAILSONDE UNKNOWN - ")
        assert len(told.splitlines()) == 1
    else:
        assert "smtp" in done.stdout


def test_check_that_did_not_run_leaves_the_old_file(site: Site, path: Path) -> None:
    """If nothing could be checked, the old file keeps its time, so that an alert can notice."""
    path.write_text("old")
    original = site.config.read_text()
    site.config.write_text(original.replace("/ledger.db", "/absent/ledger.db"))
    try:
        done = _check(site, "smtp", "--textfile", path)
    finally:
        site.config.write_text(original)
    assert done.returncode == 3
    assert "directory" in done.stderr
    assert "does not exist; create it" in done.stderr
    assert path.read_text() == "old"


def test_beside_a_running_agent(site: Site, path: Path) -> None:
    """A check with a running agent writes the message and delivery of its own round trip."""
    agent = site.start_agent()
    done = _check(site, "trip", "--textfile", path)
    assert done.returncode == 0, done.stderr
    values = _values(path)
    assert values["mailsonde_probe_success"] == {("roundtrip", "trip", "submission"): 1.0}
    assert values["mailsonde_messages_total"]["roundtrip", "trip", "delivered", "submission"] >= 1
    assert agent.stop() == 0
