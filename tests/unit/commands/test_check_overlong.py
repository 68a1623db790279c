"""Output of ``mailsonde check`` for a server that sends 100 KB where one line is expected."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from tests.fakes.overlong import OVERLONG
from tests.fakes.scripted_server import Script, scripted_server

SITE = """\
agent: {{ledger: "sqlite:{directory}/ledger.db"}}
servers: {{out: {{protocol: smtp, host: 127.0.0.1, port: {port}, tls: none}}}}
probes: [{{name: hq, kind: smtp, server: out}}]
"""


async def _checked(script: Script, directory: Path, *options: str) -> str:
    """Return the output of a check of a server that follows ``script``, in a separate process."""
    async with scripted_server(script) as server:
        (directory / "site.yaml").write_text(SITE.format(port=server.port, directory=directory))
        command = [
            sys.executable,
            "-m",
            "monitor",
            "check",
            "--config",
            str(directory / "site.yaml"),
            *options,
        ]
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
        out, err = await process.communicate()
        await server.peer_closed()
    assert (process.returncode, err) == (2, b"")
    return out.decode()


@pytest.mark.parametrize(("script", "begins"), OVERLONG.values(), ids=OVERLONG)
async def test_the_beginning_is_shown_and_no_more(script: Script, begins: str, tmp_path: Path) -> None:
    """Text, dialogue and JSON have the beginning of the 100 KB, escaped, cut and marked as cut."""
    result, *dialogue = (await _checked(script, tmp_path, "--verbose")).splitlines()
    assert result.startswith("hq  smtp  out  failed  ")
    assert f"line_too_long: {begins}"[:200] in result
    assert len(result) < 400
    said = [line for line in dialogue if " S: " in line]
    assert any(begins.rpartition(": ")[2] in line for line in said)
    assert said[-1].endswith("…")
    assert all(line.isprintable() and len(line) < 220 for line in dialogue)
    assert len(dialogue) < 40
    run = json.loads(await _checked(script, tmp_path, "--verbose", "--format", "json"))
    assert (run["outcome"], run["reason"]) == ("failed", "line_too_long")
    assert run["detail"].startswith(begins)
    assert run["detail"].endswith("…")
    assert [line[10:] for line in run["transcript"] if line[9] == "S"] == [line[12:] for line in said]
    nagios = await _checked(script, tmp_path, "--format", "nagios")
    assert nagios.startswith(f"MAILSONDE CRITICAL - hq line_too_long: {begins}")
    assert len(nagios) < 450
