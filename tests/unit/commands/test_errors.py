"""Each error message of a command says what is wrong and what to do."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from monitor.commands import main

SITE = """\
agent: {{listen: "127.0.0.1:{port}", ledger: "sqlite:{ledger}"}}
servers: {{out: {{protocol: smtp, host: 127.0.0.1, port: 9, tls: none}}}}
probes:
  - {{name: hq-smtp, kind: smtp, interval: 1h, server: out}}
  - {{name: hq-banner, kind: smtp, interval: 1h, server: out}}
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    path = tmp_path / "site.yaml"
    path.write_text(SITE.format(port=0, ledger=tmp_path / "ledger.db"))
    return path


def _ended(*arguments: str | Path) -> tuple[int, str, str]:
    """Run the command in its own process, because it sets up logs and signals; return status and output."""
    done = subprocess.run(
        [sys.executable, "-m", "monitor", *arguments], capture_output=True, text=True, timeout=120
    )
    return done.returncode, done.stdout, done.stderr


@contextmanager
def _agent(config: Path) -> Iterator[subprocess.Popen[str]]:
    """Run an agent during the block, once it has reported that it is running."""
    command = [sys.executable, "-m", "monitor", "run", "--config", config]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as agent:
        try:
            assert agent.stderr is not None
            assert "agent started" in agent.stderr.readline()
            yield agent
        finally:
            agent.terminate()


def test_port_is_taken(site: Path, tmp_path: Path) -> None:
    """If the port is in use, the error has the port and the setting to change."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        site.write_text(SITE.format(port=port, ledger=tmp_path / "ledger.db"))
        assert _ended("run", "--config", site) == (
            2,
            "",
            f"mailsonde cannot start: cannot listen on 127.0.0.1:{port}: Address already in use; "
            "change agent.listen, or stop the process that uses the port\n",
        )


def test_ledger_of_a_running_agent(site: Path, tmp_path: Path) -> None:
    """A second agent on the ledger is refused with the first one's process and the remedy."""
    with _agent(site) as agent:
        assert _ended("run", "--config", site) == (
            2,
            "",
            f"mailsonde cannot start: ledger {tmp_path}/ledger.db: another agent (process {agent.pid}) uses "
            "it; stop that one, or give each agent a ledger of its own\n",
        )


@pytest.mark.parametrize("command", ["run", "check"])
def test_directory_of_the_ledger_is_missing(site: Path, tmp_path: Path, command: str) -> None:
    """If the ledger's directory is missing, the error says to create it."""
    site.write_text(SITE.format(port=0, ledger=tmp_path / "absent" / "ledger.db"))
    status, output, told = _ended(command, "--config", site)
    assert (status, output) == ((2, "") if command == "run" else (3, ""))
    assert told.startswith(f"mailsonde cannot {'start' if command == 'run' else 'check'}: ledger ")
    assert f"directory {tmp_path}/absent does not exist; create it, owned by mailsonde's user" in told
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize("command", ["run", "check"])
def test_ledger_is_another_file(site: Path, tmp_path: Path, command: str) -> None:
    """A file that is not a ledger is not changed and causes no traceback."""
    (tmp_path / "ledger.db").write_text("my notes\n" * 200)
    status, _, told = _ended(command, "--config", site)
    assert status == (2 if command == "run" else 3)
    assert "damaged or no SQLite database; move it away, or name another" in told
    assert "Traceback" not in told
    assert (tmp_path / "ledger.db").read_text() == "my notes\n" * 200


def test_trouble_of_ours_is_unknown_to_nagios(site: Path, tmp_path: Path) -> None:
    """If a check cannot be made, Nagios gets UNKNOWN, not that mail is down."""
    check = ("check", "--format", "nagios", "--config")
    for arguments, told in (
        ((*check, site, "hq-smpt"), "no probe is named 'hq-smpt', did you mean hq-smtp?"),
        ((*check, tmp_path / "absent.yaml"), "absent.yaml: cannot be read: No such file or directory"),
    ):
        done = CliRunner().invoke(main, [str(argument) for argument in arguments])
        assert done.exit_code == 3
        assert done.stdout.startswith("MAILSONDE UNKNOWN - ")
        assert told in done.stdout
        assert done.stdout.count("\n") == 1
    site.write_text(SITE.format(port=0, ledger=tmp_path / "absent" / "ledger.db"))
    status, output, _ = _ended(*check, site)
    assert status == 3
    assert output.startswith("MAILSONDE UNKNOWN - cannot check: ledger ")


def test_mistyped_probe(site: Path) -> None:
    """An unknown probe name is refused with the most similar name and all others."""
    done = CliRunner().invoke(main, ["check", "--config", str(site), "hq-baner"])
    assert done.exit_code == 2
    assert done.stderr == (
        "no probe is named 'hq-baner', did you mean hq-banner?; the probes are: hq-smtp, hq-banner\n"
    )


@pytest.mark.parametrize("command", ["run", "check", "validate", "render"])
@pytest.mark.parametrize("what", ["absent", "directory", "empty", "not YAML"])
def test_configuration_is_no_file(tmp_path: Path, command: str, what: str) -> None:
    """Each command refuses what is not a configuration file in two lines, and exits 2."""
    path = tmp_path / "site.yaml"
    if what == "directory":
        path.mkdir()
    elif what != "absent":
        path.write_text("" if what == "empty" else "probes: {")
    arguments = {
        "validate": ["validate", str(path)],
        "render": ["render", "alerts", "--out", str(tmp_path / "out"), "--config", str(path)],
    }.get(command, [command, "--config", str(path)])
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    mistake, end = done.stderr.splitlines()
    assert mistake.startswith(str(path))
    assert end == "1 mistake; nothing was started"
    assert not (tmp_path / "out").exists()


def test_render_into_what_is_no_directory(site: Path, tmp_path: Path) -> None:
    """If files cannot be written, the error says what --out must be."""
    for out, why in (
        (tmp_path / "site.yaml", "File exists"),
        (tmp_path / "site.yaml" / "x", "Not a directory"),
    ):
        done = CliRunner().invoke(main, ["render", "alerts", "--config", str(site), "--out", str(out)])
        assert done.exit_code == 2
        assert done.stderr == (
            f"cannot write to {out}: {why}; --out must name a directory that is writable for user "
            f"{os.geteuid()}, or can be created\n"
        )


def test_thresholds_are_for_alerts(site: Path, tmp_path: Path) -> None:
    """Thresholds are refused where they would be ignored."""
    done = CliRunner().invoke(
        main,
        [*("render", "dashboards", "--config", str(site)), "--out", str(tmp_path), "--thresholds", "x.yaml"],
    )
    assert done.exit_code == 2
    assert "--thresholds is for alerts, not for dashboards" in done.stderr


def test_thresholds_are_no_file(site: Path, tmp_path: Path) -> None:
    """A missing file of thresholds has the same error as a missing configuration."""
    done = CliRunner().invoke(
        main,
        [
            *("render", "alerts", "--config", str(site), "--out", str(tmp_path / "out")),
            *("--thresholds", str(tmp_path / "absent.yaml")),
        ],
    )
    assert done.exit_code == 2
    assert "absent.yaml: cannot be read: No such file or directory; check its path" in done.stderr


def test_password_variable_is_not_set(tmp_path: Path) -> None:
    """If the variable is not set, the error names the alternative option."""
    made = tmp_path / "site.yaml"
    assert _ended("init", "--address", "a@example.com", "--out", made, "--password-env", "UNSET") == (
        2,
        "",
        "mailsonde cannot continue: environment variable UNSET is not set; "
        "set it, or use --password-file PATH\n",
    )


@pytest.mark.parametrize("domain", ["foo-.com", "1.2.3.4", "x" * 64 + ".com"])
def test_address_in_no_domain(domain: str) -> None:
    """An address with an invalid domain is refused before any question or search."""
    status, output, told = _ended("init", "--yes", "--address", f"a@{domain}")
    assert (status, output) == (2, "")
    assert f"'a@{domain}' is not an e-mail address such as canary@example.com" in told
    assert "Traceback" not in told


def test_file_name_that_no_file_can_have() -> None:
    """An invalid file name for the configuration is refused first."""
    name = "x" * 300
    assert _ended("init", "--yes", "--address", "a@example.com", "--out", name) == (
        2,
        "",
        f"mailsonde cannot continue: {name} cannot be written: File name too long; "
        "name another file with --out\n",
    )


@pytest.mark.parametrize("username", ["canary\x85x", "canary\u2028x", "canary\tx", "canary\x1b[31m"])
def test_login_name_that_cannot_be_seen(username: str) -> None:
    """A login name with characters that a file or terminal would change is refused."""
    status, output, told = _ended("init", "--yes", "--address", "a@example.com", "--username", username)
    assert (status, output) == (2, "")
    assert "must be one line of 1 to 255 printable characters" in told
