"""The first ten minutes: `make demo` in a fresh clone, and `mailsonde init` with a mail server.

Packages are downloaded first, as configured for pip. Then `make demo` is timed twice: with pip's index and
cache, and with the packages in a folder, without the network.
"""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from tests.benchmarks.processes import workplace
from tests.real_servers.bind import Named
from tests.real_servers.dovecot import Dovecot
from tests.real_servers.newcomer import ANSWERS, QUESTION, Place, zones
from tests.real_servers.postfix import Postfix

ROOT = Path(__file__).parents[2]
GOAL = 60.0
GOAL_IN_FOLDER = 15.0
"""Seconds from `make demo` to the first delivered message."""

INSTALLED = (".[demo]", "hatchling", "editables", "pip")
"""What the Makefile installs for it."""


def _fetch(directory: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", directory, *INSTALLED]
    subprocess.run(command, cwd=ROOT, check=True, stderr=subprocess.DEVNULL)


def _demo(clone: Path, **settings: str) -> tuple[float, float]:
    """Return the seconds to the first delivered message in a fresh clone, and the processor seconds."""
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    environment = {**os.environ, **settings}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # set, it would make both processes compile everything
    before, begun = _processor_seconds(), time.monotonic()
    # In its own process group, so that Ctrl-C reaches all of it, as on a terminal.
    demo = subprocess.Popen(
        ["make", "demo"],
        cwd=clone,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert demo.stdout is not None
    delivered = any(re.match(r"[\d:]{8}  delivered  ", line) for line in demo.stdout)
    seconds = time.monotonic() - begun
    if delivered:
        os.killpg(demo.pid, signal.SIGINT)
    demo.communicate(timeout=15)
    if not delivered:
        raise SystemExit("make demo ended without a message")
    return seconds, _processor_seconds() - before


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _init() -> tuple[float, int]:
    """Return how long `init` takes if everything is accepted at once, and its number of questions."""
    with workplace() as (directory, tls), ExitStack() as stack:
        dovecot = Dovecot(directory / "dovecot", tls)
        stack.callback(dovecot.stop)
        postfix = Postfix(directory / "postfix", dovecot, tls)
        stack.callback(postfix.stop)
        named = Named(directory / "named", zones(postfix, dovecot, dovecot))
        stack.callback(named.stop)
        place = Place(directory, named, tls, postfix, dovecot)
        begun = time.monotonic()
        done = place.run(typed=ANSWERS)
        seconds = time.monotonic() - begun
    if done.returncode != 0:
        raise SystemExit(f"init failed: {done.stdout}{done.stderr}")
    return seconds, len(QUESTION.findall(done.stdout + done.stderr))


def main() -> None:
    """Print the figures, and the machine's other load."""
    load, *_ = os.getloadavg()
    print(f"the first ten minutes, begun at a load of {load:.1f}:")
    with tempfile.TemporaryDirectory(prefix="mailsonde-bench-", dir="/var/tmp") as name:
        packages = Path(name) / "packages"
        _fetch(packages)
        _show("pip's index and cache", _demo(Path(name) / "index"), GOAL)
        in_folder = _demo(Path(name) / "folder", PIP_NO_INDEX="1", PIP_FIND_LINKS=str(packages))
        _show("packages in a folder", in_folder, GOAL_IN_FOLDER)
    seconds, questions = _init()
    print(f"  init against Postfix and Dovecot: {seconds:.1f} s, {questions} questions")


def _show(what: str, took: tuple[float, float], goal: float) -> None:
    print(
        f"  make demo to the first message, {what}: {took[0]:.1f} s (of the processor {took[1]:.1f})   "
        f"goal: at most {goal:g} s",
        flush=True,
    )
