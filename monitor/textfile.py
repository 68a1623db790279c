"""Results of one-shot runs as a file that node_exporter's textfile collector reads."""

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
"""How the file's name must end: node_exporter reads no other."""

ONE_SHOT = frozenset(
    {
        "mailsonde_probe_success",
        "mailsonde_probe_last_run_timestamp_seconds",
        "mailsonde_probe_phase_seconds",
        "mailsonde_tls_certificate_not_after_timestamp_seconds",
        "mailsonde_finding",
        "mailsonde_messages",
        "mailsonde_messages_in_flight",
        "mailsonde_oldest_in_flight_timestamp_seconds",
        "mailsonde_delivery_last_seconds",
        "mailsonde_delivery_uncertainty_seconds",
        "mailsonde_hop_delay_seconds",
        "mailsonde_hops_skewed",
        "mailsonde_authentication_passed",
    }
)
"""The families that mean the same in a process that runs each probe once and ends.

What an agent counts from its start on would begin at 0 with every run, and its schedule, objectives
and own state are not those of cron. Messages are counted by the ledger, and so go on. Each family
has the label ``probe``, so that two files for different probes never hold the same series, which
node_exporter would refuse.
"""


class TextfileError(Exception):
    """The file could not be written, and what was there before is whole; the text says why."""


class _OneShot(Collector):
    """Of a collector's metrics, those of `ONE_SHOT` that have a sample, for the probes that ran."""

    def __init__(self, collector: Collector, probes: Collection[str]) -> None:
        self._collector = collector
        self._probes = probes

    def collect(self) -> Iterator[Metric]:
        for family in self._collector.collect():
            family.samples = [s for s in family.samples if s.labels.get("probe") in self._probes]
            if family.name in ONE_SHOT and family.samples:
                yield family


def one_shot_text(collector: Collector, probes: Collection[str]) -> bytes:
    """Return what a one-shot run may say of ``probes``, in Prometheus's text format 0.0.4.

    No sample has a timestamp: node_exporter refuses a file that has one.
    """
    return generate_latest(_OneShot(collector, probes))


def write_textfile(path: Path, text: bytes) -> None:
    """Put ``text`` in place of the file at ``path``, readable for all (mode 0644).

    Whoever reads it, and whenever this process is killed, finds the old text or the new one; a kill
    may leave a hidden file beside it, whose name node_exporter passes over. Raises `TextfileError`.
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
        f"cannot write {path}: {error.strerror}; the directory {path.parent} must exist, have room and be "
        f"writable for user {os.geteuid()}, and node_exporter must be told of it with "
        "--collector.textfile.directory"
    )
