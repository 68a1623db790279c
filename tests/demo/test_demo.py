"""`mailsonde demo` from start to end, as a user runs it."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import httpx


def _start(directory: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-u", "-m", "monitor", "demo"]
    environment = {"TMPDIR": str(directory), "PATH": "/usr/bin:/bin"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def test_demo_shows_deliveries_and_ends_cleanly(tmp_path: Path) -> None:
    """Deliveries show their error, page and metrics work, and Ctrl-C leaves only a line of totals."""
    demo = _start(tmp_path)
    assert demo.stdout is not None
    announced = r"live page: (http://127\.0\.0\.1:\d+)  metrics: \1/metrics  \(stop with Ctrl-C\)\n"
    address = re.fullmatch(announced, demo.stdout.readline())
    assert address is not None
    for line in demo.stdout:
        if re.match(r"\d\d:\d\d:\d\d  delivered  \d+\.\d{3} s  ± \d+\.\d{3} s", line):
            break
    metrics = httpx.get(f"{address[1]}/metrics", trust_env=False).text
    assert re.search(
        r'^mailsonde_probe_success\{.*probe="sandbox-roundtrip".*\} 1(\.0)?$', metrics, re.MULTILINE
    )
    assert "Mail flows: the last message took" in httpx.get(address[1], trust_env=False).text
    demo.send_signal(signal.SIGINT)
    output, errors = demo.communicate(timeout=120)
    assert (demo.returncode, errors) == (0, "")
    told = re.fullmatch(r"(\d+) messages: ((?:\d+ \w+, )+)(\d+) in flight", output.splitlines()[-1])
    assert told is not None
    assert int(told[1]) == sum(map(int, re.findall(r"\d+", told[2]))) + int(told[3]) > 0
    assert list(tmp_path.iterdir()) == []


def test_demo_takes_another_port_when_its_own_is_taken() -> None:
    """If port 9725 is in use, the demo takes a free port."""
    with socket.socket() as taken, tempfile.TemporaryDirectory() as directory:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):  # it is in use already, which is just as good
            taken.bind(("127.0.0.1", 9725))
            taken.listen()
        demo = _start(Path(directory))
        assert demo.stdout is not None
        line = demo.stdout.readline()
        assert "127.0.0.1:" in line
        assert ":9725" not in line
        demo.send_signal(signal.SIGTERM)
        demo.communicate(timeout=120)
        assert demo.returncode == 0
