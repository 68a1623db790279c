"""The textfile for node_exporter: its metrics, and that it is always complete."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

from monitor.collector import AgentCollector
from monitor.commands import main
from monitor.ledger.counters import Counters, Total
from monitor.state import AgentState
from monitor.textfile import ONE_SHOT, TextfileError, one_shot_text, write_textfile
from probes.core.reasons import Reason
from probes.core.verdict import MessageState, Verdict
from tests.fakes.agent_state import RouteProbe, smtp_probe

LEFT_OUT = {
    # counted from the start of a process
    "mailsonde_probe_runs",
    "mailsonde_probe_reasons",
    "mailsonde_probe_duration_seconds",
    "mailsonde_delivery_seconds",
    "mailsonde_slow_deliveries",
    "mailsonde_probe_failed_runs",
    "mailsonde_probe_failing_since_timestamp_seconds",
    "mailsonde_arrival_issues",
    "mailsonde_slo_runs",
    "mailsonde_mailbox_unexpected",
    "mailsonde_oauth2_token_requests",
    "mailsonde_throttled_requests",
    # of the process, and without the label `probe`
    "mailsonde_oauth2_token_obtained_timestamp_seconds",
    "mailsonde_oauth2_token_expires_timestamp_seconds",
    "mailsonde_oauth2_credential_not_after_timestamp_seconds",
    # the agent's schedule, objectives and own state
    "mailsonde_slo_objective_ratio",
    "mailsonde_slo_within_seconds",
    "mailsonde_schedule_skipped",
    "mailsonde_agent_overloaded",
    "mailsonde_schedule_lag_seconds",
    "mailsonde_clock_steps",
    "mailsonde_config_last_reload_successful",
    "mailsonde_config_last_reload_success_timestamp_seconds",
    "mailsonde_build",
    # of the agent, which knows the pauses
    "mailsonde_probe_in_maintenance",
    "mailsonde_maintenance_begins_timestamp_seconds",
    "mailsonde_maintenance_ends_timestamp_seconds",
}


@pytest.fixture
def state() -> AgentState:
    made = AgentState(["canary"], "fra1")
    for name in ("smtp", "other"):
        made.add(smtp_probe(name), now=1000.0)
    return made


def _families(text: bytes) -> dict[str, dict[tuple[str, ...], float]]:
    """Return each family's values by label values, in the order of the label names."""
    return {
        family.name: {tuple(sample.labels.values()): sample.value for sample in family.samples}
        for family in text_string_to_metric_families(text.decode())
    }


def test_every_family_is_kept_or_left_out_on_purpose() -> None:
    """Every metric is explicitly included or excluded, by its meaning in a one-shot process."""
    families = {family.name for family in AgentCollector(AgentState(), Counters).collect()}
    assert families == ONE_SHOT | LEFT_OUT
    assert not ONE_SHOT & LEFT_OUT


def test_only_what_ran_is_in_the_file(state: AgentState) -> None:
    """A probe that did not run has no series, not even a last run."""
    state.ran("smtp", "out", Verdict(Reason.NONE, phases={"connect": 0.25}), ended_at=1060.0, duration=0.3)
    text = one_shot_text(AgentCollector(state, Counters), {"smtp"})
    assert _families(text) == {
        "mailsonde_probe_info": {("[fd00::1]:587", "smtp", "fra1", "smtp", "critical", "out"): 1.0},
        "mailsonde_probe_success": {("1m", "smtp", "fra1", "smtp", "out"): 1.0},
        "mailsonde_probe_last_run_timestamp_seconds": {("smtp", "fra1", "smtp", "out"): 1060.0},
        "mailsonde_probe_phase_seconds": {("smtp", "fra1", "connect", "smtp", "out"): 0.25},
        "mailsonde_threshold_seconds": {("smtp", "fra1", "smtp", "out", "stale"): 210.0},
    }


def test_messages_are_the_ledgers_totals(state: AgentState) -> None:
    """Counts of messages continue across runs, because they come from the ledger."""
    state.add(RouteProbe(), now=1000.0)
    counters = Counters().updated(
        [Total("trip", "out", MessageState.DELIVERED, entered=41, held=0, oldest=None)]
    )
    families = _families(one_shot_text(AgentCollector(state, lambda: counters), {"trip"}))
    labels = "1m", "roundtrip", "fra1", "trip", "delivered", "out"
    assert families["mailsonde_messages"][labels] == 41


def test_unknown_run_has_no_success(state: AgentState) -> None:
    """A fault of ours is neither success nor failure: the series is missing."""
    state.ran("smtp", "out", Verdict(Reason.INTERNAL), ended_at=1060.0, duration=0.3)
    families = _families(one_shot_text(AgentCollector(state, Counters), {"smtp"}))
    assert "mailsonde_probe_success" not in families
    assert families["mailsonde_probe_last_run_timestamp_seconds"]["smtp", "fra1", "smtp", "out"] == 1060.0


def test_no_sample_has_a_timestamp(state: AgentState) -> None:
    """No sample has a timestamp, which node_exporter would refuse."""
    state.ran("smtp", "out", Verdict(Reason.NONE, phases={"connect": 0.25}), ended_at=1060.0, duration=0.3)
    lines = one_shot_text(AgentCollector(state, Counters), {"smtp"}).decode().splitlines()
    samples = [line for line in lines if not line.startswith("#")]
    assert samples
    assert all(len(line.partition("} ")[2].split()) == 1 for line in samples)


def test_written_file_is_readable_for_all(tmp_path: Path) -> None:
    """The mode is 0644 for any umask, because the exporter is another user; no other file remains."""
    path = tmp_path / "mail.prom"
    path.write_text("old")
    path.chmod(0o600)
    before = os.umask(0o077)
    try:
        write_textfile(path, b"new")
    finally:
        os.umask(before)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert [entry.name for entry in tmp_path.iterdir()] == ["mail.prom"]


@pytest.mark.parametrize("step", ["fdopen", "fchmod", "fsync"])
def test_failed_write_leaves_the_old_file(tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the disk is full, the old file is unchanged, no other file remains, and the error says why."""
    path = tmp_path / "mail.prom"
    path.write_text("old")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(
        TextfileError, match=r"No space left on device; the directory .* must exist, have free space"
    ):
        write_textfile(path, b"new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["mail.prom"]


def test_directory_that_is_missing_or_in_the_way(tmp_path: Path) -> None:
    """A missing directory, or one with the file's name, is an error without a traceback."""
    with pytest.raises(TextfileError, match=r"cannot write .*/absent/mail.prom: No such file or directory"):
        write_textfile(tmp_path / "absent" / "mail.prom", b"new")
    (tmp_path / "mail.prom").mkdir()
    with pytest.raises(TextfileError, match="Is a directory"):
        write_textfile(tmp_path / "mail.prom", b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["mail.prom"]


KILLED = """
import os, pathlib, signal, sys
from monitor.textfile import write_textfile

def killed(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

step = sys.argv[2]
if step == "write":
    opened = os.fdopen
    class HalfWritten:
        def __init__(self, file): self.file = file
        def __enter__(self): return self
        def __exit__(self, *_): self.file.close()
        def write(self, text):
            self.file.write(text[: len(text) // 2]); self.file.flush(); killed()
    os.fdopen = lambda *arguments: HalfWritten(opened(*arguments))
elif step == "rename":
    pathlib.Path.replace = killed
elif step == "cleaning":
    pathlib.Path.unlink = killed
else:
    setattr(os, step, killed)
write_textfile(pathlib.Path(sys.argv[1]), b"new" * 100_000)
"""


@pytest.mark.parametrize(
    ("step", "left"),
    [
        ("fdopen", b"old"),
        ("write", b"old"),
        ("fchmod", b"old"),
        ("fsync", b"old"),
        ("rename", b"old"),
        ("cleaning", b"new" * 100_000),
    ],
)
def test_killed_while_writing(tmp_path: Path, step: str, left: bytes) -> None:
    """After kill -9 at any step, the old or the new file is there, and nothing else for the exporter."""
    path = tmp_path / "mail.prom"
    path.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", KILLED, path, step], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == left
    assert [entry.name for entry in tmp_path.glob("*.prom")] == ["mail.prom"]


REWRITING = """
import pathlib, sys
from monitor.textfile import write_textfile
for number in range(10**9):
    write_textfile(pathlib.Path(sys.argv[1]), b"%d\\n" % (number % 10) * 200_000)
    print(flush=True)
"""


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """After a kill during rapid writing, the file is one complete version."""
    path = tmp_path / "mail.prom"
    for count in range(1, 8):
        with subprocess.Popen([sys.executable, "-c", REWRITING, path], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            for _ in range(count):
                writer.stdout.readline()
            writer.kill()
        lines = path.read_bytes().splitlines()
        assert len(lines) == 200_000
        assert len(set(lines)) == 1


@pytest.mark.parametrize("name", ["mail.txt", "mail", "mail.prom.txt", ".prom"])
def test_other_name_is_refused(name: str, tmp_path: Path) -> None:
    """A name that node_exporter would ignore is refused before the run, with a valid one."""
    done = CliRunner().invoke(main, ["check", "-c", "absent.yaml", "--textfile", str(tmp_path / name)])
    assert done.exit_code == 2
    assert f"{name!r} does not end in .prom, and node_exporter reads only such files; name it " in done.stderr
    assert done.stderr.strip().endswith(".prom")
