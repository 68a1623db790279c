"""`mailsonde check` on a terminal and elsewhere, with a slow or hostile server."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.scripted_server import Peer, ScriptedServer, scripted_server

CHECK = [sys.executable, "-m", "monitor", "check"]
HOSTILE_BANNER = b"554 \x1b[31mred\x1b]0;title\x07\x9b2J [bold]loud[/bold] [/] \xe2\x80\xae"
COLOUR = re.compile(rb"\x1b\[(?:\d+;)*(?:[349]|10)\d(?:;\d+)*m")
"""A sequence that sets a colour (ECMA-48 section 8.3.117), as against one that makes bold or moves."""

Configured = Callable[[ScriptedServer], Path]


@pytest.fixture
def configured(tmp_path: Path) -> Configured:
    """Write a configuration with one probe of the scripted server."""

    def write(server: ScriptedServer) -> Path:
        path = tmp_path / "site.yaml"
        path.write_text(f"""\
agent: {{ledger: "sqlite:{tmp_path}/ledger.db"}}
servers: {{out: {{protocol: smtp, host: 127.0.0.1, port: {server.port}, tls: none}}}}
probes: [{{name: banner, kind: smtp, server: out}}]
""")
        return path

    return write


async def _hostile(peer: Peer) -> None:
    await peer.send(HOSTILE_BANNER)


class Terminal:
    """A process with a terminal of 160 columns as its output, and everything that it wrote there."""

    def __init__(self, *command: str | Path, **environment: str) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**_plain(), "TERM": "xterm-256color", "COLUMNS": "160", "LINES": "50", **environment},
        )
        os.close(slave)
        self.written = b""

    async def until(self, pattern: bytes) -> bytes:
        """Read until the output matches the regular expression, or to the end without one."""
        async with asyncio.timeout(120):
            while not re.search(pattern, self.written, re.DOTALL):
                chunk = await asyncio.to_thread(self._read)
                assert chunk, f"ended without {pattern!r}: {self.written!r}"
                self.written += chunk
        return self.written

    async def end(self) -> int:
        """Read all remaining output, and return the exit status."""
        while chunk := await asyncio.to_thread(self._read):
            self.written += chunk
        os.close(self._master)
        return await asyncio.to_thread(self.process.wait, 30)

    def _read(self) -> bytes:
        try:
            return os.read(self._master, 65536)
        except OSError:  # on Linux: the other end is closed
            return b""


def _plain() -> dict[str, str]:
    """Return the environment without variables that affect colours and width."""
    ours = {"NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "MAILSONDE_CONFIG"}
    return {name: value for name, value in os.environ.items() if name not in ours}


async def _piped(config: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return await asyncio.to_thread(
        subprocess.run,
        [*CHECK, "--config", config, *arguments],
        capture_output=True,
        env={**_plain(), **environment},
        timeout=120,
    )


async def test_live_table_counts_the_seconds(configured: Configured) -> None:
    """A terminal shows how long a probe has been running, then its result and a summary."""
    answer = asyncio.Event()

    async def slow(peer: Peer) -> None:
        await answer.wait()
        await peer.send(b"554 not today")

    async with scripted_server(slow) as server:
        terminal = Terminal(*CHECK, "--config", configured(server))
        await terminal.until(rb"running.*(0\.[3-9]|[1-9]\.\d) s.*0 of 1 done after (0\.[3-9]|[1-9]\.\d) s")
        answer.set()
        assert await terminal.end() == 2
    assert b"554 not today" in terminal.written
    assert re.search(rb"1 of 1 done after \S+ s: 1 failed", terminal.written)
    assert COLOUR.search(terminal.written)


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}], ids=["colours", "NO_COLOR"])
async def test_banner_cannot_speak_to_the_terminal(
    configured: Configured, environment: dict[str, str]
) -> None:
    """Escapes and markup in a banner are shown as text; with NO_COLOR there is no colour."""
    async with scripted_server(_hostile) as server:
        terminal = Terminal(*CHECK, "--config", configured(server), **environment)
        assert await terminal.end() == 2
    assert rb"\x1b[31mred\x1b]0;title\x07" in terminal.written
    assert b"[bold]loud[/bold] [/]" in terminal.written
    for escape in (b"\x1b[31mred", b"\x1b]", b"\x07", b"\x9b2J", "\u202e".encode()):
        assert escape not in terminal.written
    assert bool(COLOUR.search(terminal.written)) is not bool(environment)


@pytest.mark.parametrize("environment", [{}, {"FORCE_COLOR": "1"}], ids=["plain", "FORCE_COLOR"])
async def test_plain_line_elsewhere(configured: Configured, environment: dict[str, str]) -> None:
    """In a pipe there is one plain line per run, without escapes, whatever the environment says."""
    async with scripted_server(_hostile) as server:
        done = await _piped(configured(server), **environment)
    assert done.returncode == 2
    assert done.stderr == b""
    (line,) = done.stdout.decode().splitlines()
    assert re.match(r"banner  smtp  out  failed  \d\.\d{3} s  [a-z_]+: in phase greeting: 554 ", line)
    assert line.isprintable()


async def test_dumb_terminal_gets_lines(configured: Configured) -> None:
    """A terminal that cannot move its cursor gets a line, not a repeated table."""
    async with scripted_server(_hostile) as server:
        terminal = Terminal(*CHECK, "--config", configured(server), TERM="dumb")
        assert await terminal.end() == 2
    assert re.fullmatch(rb"banner  smtp  out  failed[^\x1b\n]*\r\n", terminal.written)


@pytest.mark.parametrize("form", ["json", "nagios"])
async def test_other_forms_are_harmless_on_a_terminal(configured: Configured, form: str) -> None:
    """JSON and Nagios output on a terminal is also one line without escapes."""
    async with scripted_server(_hostile) as server:
        terminal = Terminal(*CHECK, "--config", configured(server), "--format", form)
        assert await terminal.end() == 2
    assert terminal.written.count(b"\n") == 1
    assert terminal.written.decode().rstrip("\r\n").isprintable()


@pytest.mark.parametrize("form", ["text", "json"])
async def test_reader_that_goes_away(configured: Configured, form: str) -> None:
    """If the reader of the output ends, as `head` does, the check ends without a traceback."""
    async with scripted_server(_hostile) as server:
        reading, writing = os.pipe()
        os.close(reading)
        done = await asyncio.to_thread(
            subprocess.run,
            [*CHECK, "--config", configured(server), "--format", form],
            stdout=writing,
            stderr=subprocess.PIPE,
            env=_plain(),
            timeout=120,
        )
        os.close(writing)
    assert (done.returncode, done.stderr) == (3, b"")


async def test_interrupted(configured: Configured) -> None:
    """Ctrl-C ends a check at once, restores the cursor, and says what happens to the messages."""
    asked = asyncio.Event()

    async def silent(_: Peer) -> None:
        asked.set()

    async with scripted_server(silent) as server:
        terminal = Terminal(*CHECK, "--config", configured(server))
        await terminal.until(b"running")
        await asked.wait()
        terminal.process.send_signal(signal.SIGINT)
        assert await terminal.end() == 3
    assert b"stopped; messages in flight stay in the ledger" in terminal.written
    assert b"Traceback" not in terminal.written
    assert terminal.written.rindex(b"\x1b[?25h") > terminal.written.rindex(b"\x1b[?25l")
