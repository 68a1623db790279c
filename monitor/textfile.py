"""Results of one-shot runs as a file for node_exporter's textfile collector."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from prometheus_client import generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

SUFFIX = ".prom"
"""The required suffix of the file's name: node_exporter reads only such files."""

ONE_SHOT = frozenset(
    {
        "mailsonde_probe",
        "mailsonde_probe_success",
        "mailsonde_probe_last_run_timestamp_seconds",
        "mailsonde_threshold_seconds",
        "mailsonde_probe_failure",
        "mailsonde_probe_phase_seconds",
        "mailsonde_tls_certificate_not_after_timestamp_seconds",
        "mailsonde_finding",
        "mailsonde_messages",
        "mailsonde_messages_in_flight",
        "mailsonde_oldest_in_flight_timestamp_seconds",
        "mailsonde_oldest_intent_timestamp_seconds",
        "mailsonde_delivery_last_seconds",
        "mailsonde_delivery_uncertainty_seconds",
        "mailsonde_hop_delay_seconds",
        "mailsonde_hops_skewed",
        "mailsonde_authentication",
        "mailsonde_exchange_stage_seconds",
        "mailsonde_exchange_end_to_end_seconds",
        "mailsonde_exchange_filter",
    }
)
"""The families that keep their meaning in a process that runs each probe once and exits.

An agent's own counters would restart at 0 with every run, and its schedule, objectives and state do not
apply to cron. The ledger counts messages, so these counters continue. Each family has the label
``probe``, so that files for different probes never contain the same series, which node_exporter would
refuse.
"""


class TextfileError(Exception):
    """The file could not be written, and the old one is unchanged; the text says why."""


class _OneShot(Collector):
    """The metrics in `ONE_SHOT` that have a sample, for the probes that ran."""

    def __init__(self, collector: Collector, probes: Collection[str]) -> None:
        self._collector = collector
        self._probes = probes

    def collect(self) -> Iterator[Metric]:
        for family in self._collector.collect():
            family.samples = [s for s in family.samples if s.labels.get("probe") in self._probes]
            if family.name in ONE_SHOT and family.samples:
                yield family


def one_shot_text(collector: Collector, probes: Collection[str]) -> bytes:
    """Return the metrics of a one-shot run of ``probes``, in Prometheus' text format 0.0.4.

    No sample has a timestamp: node_exporter refuses files with timestamps.
    """
    return generate_latest(_OneShot(collector, probes))


def write_textfile(path: Path, text: bytes) -> None:
    """Replace the file at ``path`` with ``text``, readable for all (mode 0644).

    Readers always find the complete old or new text, even if this process is killed. A kill may leave
    a hidden file behind, which node_exporter ignores. Raises `TextfileError`.
    """
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".unfinished")
    except OSError as error:
        raise _failure(path, error) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(text)
            os.fchmod(descriptor, 0o644)
            file.flush()
            os.fsync(descriptor)
        Path(name).replace(path)
    except OSError as error:
        raise _failure(path, error) from error
    finally:
        with suppress(OSError):
            Path(name).unlink()


def _failure(path: Path, error: OSError) -> TextfileError:
    return TextfileError(
        f"cannot write {path}: {error.strerror}; the directory {path.parent} must exist, have free space and "
        f"be writable for user {os.geteuid()}, and node_exporter needs it in "
        "--collector.textfile.directory"
    )
