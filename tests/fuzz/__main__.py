"""Fuzzes every target, or those named, for a while: ``python -m tests.fuzz [--seconds 60] [TARGET…]``.

atheris mutates inputs so that they reach new code. What it learns is kept in ``build/fuzz`` for the next
time, and what breaks a target in ``tests/fuzz/found``, which `make test` replays.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import logging
import os
import re
import shutil
import sys
import tempfile
import traceback
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from random import Random
from time import monotonic

import atheris

with redirect_stderr(io.StringIO()), atheris.instrument_imports(include=["probes", "monitor", "dns"]):
    from tests.fuzz.targets import TARGETS  # atheris names every module that it instruments

from tests.fuzz.target import FOUND, REPEAT, Target

LEARNT = Path("build/fuzz")
LONGEST = 4096
"""Longest input, in octets, that atheris makes up."""

REPEATING = 0.1
"""Share of a target's time in which inputs are made longer, to see how their time grows."""

_TRACEBACK = "Traceback (most recent call last)"
_EXECUTIONS = re.compile(r"stat::number_of_executed_units:\s+([0-9]+)")


@dataclass(frozen=True)
class Outcome:
    """The result of fuzzing one target."""

    seconds: float
    executions: int
    learnt: int  # inputs that reach different code
    findings: list[Path]


def main() -> int:
    """Fuzz, print a table, and return 1 if anything was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="for all targets together (default 60)")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    arguments = parser.parse_args()
    logging.disable()
    chosen = [TARGETS[name] for name in arguments.targets or TARGETS]
    print(f"{'target':24} {'seconds':>8} {'executions':>11} {'learnt':>7} {'findings':>9}")
    executions, findings = 0, []
    for target in chosen:
        outcome = fuzz(target, arguments.seconds / len(chosen))
        executions += outcome.executions
        findings += outcome.findings
        print(
            f"{target.name:24} {outcome.seconds:8.1f} {outcome.executions:11,} {outcome.learnt:7,} "
            f"{len(outcome.findings):9}",
            flush=True,
        )
    print(f"{len(chosen)} targets, {executions:,} executions, {len(findings)} findings")
    for path in findings:
        print(f"kept: {path}")
    return 1 if findings else 0


def fuzz(target: Target, seconds: float) -> Outcome:
    """Fuzz one target in a separate process, because libFuzzer ends its process."""
    begun = monotonic()
    found = repeated(target, begun + seconds * REPEATING)
    learnt = LEARNT / target.name
    learnt.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        output = directory / "output"
        broke = directory / "broke"
        broke.mkdir()
        options = [
            f"-max_total_time={max(1, round(seconds - (monotonic() - begun)))}",
            f"-max_len={min(target.limit, LONGEST)}",
            f"-artifact_prefix={broke}/",
            *("-timeout=60", "-rss_limit_mb=2048", "-print_final_stats=1"),
            *([f"-dict={_dictionary(target, directory)}"] if target.words else []),
            *(str(learnt), str(_seeds(target, directory))),
        ]
        output.touch()
        child = os.fork()
        if not child:
            _run(target, options, output, broke)
        os.waitpid(child, 0)
        said = output.read_text("utf-8", "replace")
        if any(broke.iterdir()):
            print(said[max(0, said.find(_TRACEBACK)) :].split("stat::")[0][-2500:], file=sys.stderr)
        found += [_kept(target, path.read_bytes()) for path in broke.iterdir()]
    executed = _EXECUTIONS.search(said)
    if executed is None and not found:
        raise RuntimeError(f"atheris did not run:\n{said[-2000:]}")
    return Outcome(
        monotonic() - begun, int(executed[1]) if executed else 0, len(list(learnt.iterdir())), found
    )


def _run(target: Target, options: list[str], output: Path, broke: Path) -> None:
    """Run libFuzzer and end this process, without flushing what the parent process has buffered."""
    descriptor = os.open(output, os.O_WRONLY)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    executions = 0

    def run(octets: bytes) -> None:
        nonlocal executions
        executions += 1
        try:
            target.run(octets)
        except Exception:
            traceback.print_exc()
            (broke / "exception").write_bytes(octets)
            end()

    def end() -> None:
        print(f"stat::number_of_executed_units: {executions}", flush=True)
        os._exit(0)

    try:
        atheris.Setup([target.name, *options], run)
        atheris.Fuzz()
    finally:
        end()


def repeated(target: Target, until: float) -> list[Path]:
    """Make inputs longer, in random order, and return those kept because their time grows too fast."""
    pumped = list(target.pumped())
    Random().shuffle(pumped)  # noqa: S311 # nothing depends on what is left out
    for parts in pumped:
        if monotonic() > until:
            break
        try:
            target.replay(octets := REPEAT.join(parts))
        except Exception as error:
            print(f"{target.name}, with {parts[1]!r} repeated: {str(error)[:300]}", file=sys.stderr)
            return [_kept(target, octets)]
    return []


def _seeds(target: Target, directory: Path) -> Path:
    seeds = directory / "seeds"
    seeds.mkdir()
    for number, seed in enumerate(target.seeds):
        (seeds / f"seed-{number}").write_bytes(seed)
    for path in target.found():
        shutil.copy(path, seeds)
    return seeds


def _dictionary(target: Target, directory: Path) -> Path:
    path = directory / "words"
    entries = ("".join(f"\\x{octet:02x}" for octet in word) for word in target.words)
    path.write_text("".join(f'"{entry}"\n' for entry in entries))
    return path


def _kept(target: Target, octets: bytes) -> Path:
    path = FOUND / target.name / hashlib.sha256(octets).hexdigest()[:12]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(octets)
    return path


if __name__ == "__main__":
    sys.exit(main())
