"""The sandbox mail server as a child process that ends with its parent."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

_STDERR_TAIL = 2000
_STOP_SECONDS = 3.0


class SandboxError(Exception):
    """The sandbox mail server did not start; the text says why, for the user of the demo."""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """The ports of a running sandbox on 127.0.0.1, and its login."""

    smtp_port: int
    """SMTP submission; STARTTLS, then AUTH."""
    pop3_port: int
    """POP3 over implicit TLS."""
    ca_file: Path
    """PEM certificate of the CA of this run's server certificate."""
    address: str
    username: str
    password_file: Path
    """File with the password only, readable by this user only."""


@asynccontextmanager
async def started_sandbox(
    directory: Path,
    *,
    seed: int | None = None,
    loss: float = 0.04,
    delay_min: float = 0.05,
    delay_max: float = 3.0,
    slow_max: float = 8.0,
    start_timeout: float = 20.0,
) -> AsyncIterator[Sandbox]:
    """Run a sandbox mail server that writes its CA and its password into the existing ``directory``.

    ``loss`` is a probability, 0 to 1; everything else is in seconds. The child ends with the block, or when
    this process ends in any way. Raises SandboxError if it does not start within ``start_timeout``.
    """
    options = {"loss": loss, "delay-min": delay_min, "delay-max": delay_max, "slow-max": slow_max}
    arguments = [f"--directory={directory}", *(f"--{name}={value}" for name, value in options.items())]
    if seed is not None:
        arguments.append(f"--seed={seed}")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "monitor.demo.sandbox",
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,  # otherwise a Ctrl-C at the start would end it with a traceback
    )
    stderr = asyncio.create_task(_tail(process.stderr))
    try:
        yield await _announced(process, stderr, start_timeout)
    finally:
        await _stop(process)
        await stderr


async def _announced(
    process: asyncio.subprocess.Process, stderr: asyncio.Task[str], start_timeout: float
) -> Sandbox:
    assert process.stdout is not None  # noqa: S101 - it is a pipe; told to the type checker
    try:
        async with asyncio.timeout(start_timeout):
            line = await process.stdout.readline()
    except TimeoutError:
        raise SandboxError(f"the sandbox mail server did not start within {start_timeout:g} s") from None
    if not line:
        raise SandboxError(
            f"the sandbox mail server did not start: {(await stderr).strip() or 'no reason given'}"
        )
    announced = json.loads(line)
    return Sandbox(
        smtp_port=announced["smtp_port"],
        pop3_port=announced["pop3_port"],
        ca_file=Path(announced["ca_file"]),
        address=announced["address"],
        username=announced["username"],
        password_file=Path(announced["password_file"]),
    )


async def _tail(stream: asyncio.StreamReader | None) -> str:
    """Read a stream to its end, so that its writer never blocks, and return its last part."""
    tail = b""
    while stream is not None and (chunk := await stream.read(4096)):
        tail = (tail + chunk)[-_STDERR_TAIL:]
    return tail.decode(errors="replace")


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.stdin is not None:
        process.stdin.close()
    try:
        async with asyncio.timeout(_STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
