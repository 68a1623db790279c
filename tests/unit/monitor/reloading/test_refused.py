"""What a reload refuses: nothing of it is used, and the agent runs on."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from monitor.config.document import CHANGED
from monitor.config.load import load
from monitor.config.models import Configuration
from monitor.schedule import Schedule
from tests.unit.monitor.reloading.conftest import (
    Written,
    applied,
    reloaded,
)


async def test_a_mistake_refuses_all_of_it(written: Written) -> None:
    """Nothing of a configuration with a mistake is used; log, page, metric and outcome say what is wrong."""
    async with written.agent() as agent, httpx.AsyncClient(base_url=agent.address, trust_env=False) as client:
        before = agent.runtime.assembly
        written.parts["probes"] += [written.trip("good"), {**written.trip("bad"), "interval": "often"}]
        written.write()
        outcome = await reloaded(agent)
        assert not outcome.is_applied
        assert len(outcome.told) == 1
        line = written.path.read_text().splitlines().index("  interval: often") + 1
        assert outcome.told[0].startswith(f"{written.path}:{line}: probes[3].interval: 'often' is not")
        assert agent.runtime.assembly is before
        text = (await client.get("/metrics")).text
        assert 'mailsonde_config_last_reload_successful{location="local"} 0\n' in text
        page = (await client.get("/", headers={"accept": "text/html"})).text
        assert "The changed configuration is refused" in page
        assert f"{written.path}:{line}: probes[3].interval" in page
        del written.parts["probes"][3]
        written.write()
        assert await applied(agent) == "3 probes: 0 changed, 1 new, 0 removed"
        assert not agent.runtime.state.refused
        assert "is refused" not in (await client.get("/", headers={"accept": "text/html"})).text


@pytest.mark.parametrize("broken", ["include: [mailsonde.yaml]\n", "probes: [\n", "", None])
async def test_broken_files_are_refused(written: Written, broken: str | None) -> None:
    """A file that includes itself, is no YAML, is empty or is gone leaves the agent as it is."""
    async with written.agent() as agent:
        before = agent.runtime.assembly
        if broken is None:
            written.path.unlink()
        else:
            written.path.write_text(broken)
        outcome = await reloaded(agent)
        assert not outcome.is_applied
        assert outcome.told[0].startswith(str(written.path))
        assert agent.runtime.assembly is before


def _loop(written: Written) -> None:
    other = written.directory / "other.yaml"
    other.write_text(yaml.safe_dump({"include": ["mailsonde.yaml"]}))
    written.parts["include"] = ["other.yaml"]


def _ten_million(written: Written) -> None:
    (written.directory / "items.txt").write_text("\n".join(f"i{number}" for number in range(220)))
    items = {name: {"file": "items.txt"} for name in "abc"}
    probe = {"for_each": items, "name": "${a}-${b}-${c}", "kind": "mx", "domain": "a.example"}
    written.parts["probes"].append(probe)


def _endless_window(written: Written) -> None:
    written.parts["maintenance"] = {"ever": {"cron": "0 * * * *", "for": "1h", "probes": ["rare"]}}


def _pipe(written: Written) -> None:
    os.mkfifo(written.directory / "pipe")
    written.parts["servers"]["smtp"] |= {"username": "a", "password": {"file": "pipe"}}


def _web_config(text: str) -> Callable[[Written], None]:
    def write(written: Written) -> None:
        (written.directory / "web.yml").write_text(text)

    return write


@pytest.mark.parametrize(
    ("make", "file", "line", "told"),
    [
        (_loop, "other.yaml", "- mailsonde.yaml", "the file includes"),
        (_ten_million, "mailsonde.yaml", "- for_each:", "makes 10,648,000 entries"),
        (_endless_window, "mailsonde.yaml", "  ever:", "the window never ends"),
        (_pipe, "mailsonde.yaml", "    password:", "it is no regular file"),
        (_web_config("{}\nbasic_auth_users: ["), "web.yml", "basic_auth_users: [", "is not valid YAML"),
        (_web_config("basic_auth_users:\n  a: plain\n"), "web.yml", "  a: plain", "is no bcrypt hash"),
    ],
    ids=["loop of includes", "10 million probes", "endless window", "pipe", "web.yml", "password"],
)
async def test_what_is_refused_at_start_is_refused_again(
    written: Written, make: Callable[[Written], None], file: str, line: str, told: str
) -> None:
    """The mistake is told with its file and line, the agent runs on, and later takes a valid one."""
    (written.directory / "web.yml").write_text("{}\n")
    written.parts["agent"]["web_config"] = "web.yml"
    written.write()
    valid = written.path.read_text()
    async with written.agent() as agent:
        before = agent.runtime.assembly
        make(written)
        written.write()
        outcome = await reloaded(agent)
        number = (written.directory / file).read_text().splitlines().index(line) + 1
        assert not outcome.is_applied
        assert any(each.startswith(f"{written.directory / file}:{number}: ") for each in outcome.told)
        assert told in outcome.told[0]
        assert agent.runtime.assembly is before
        written.path.write_text(valid)
        (written.directory / "web.yml").write_text("{}\n")
        await applied(agent)


async def test_a_defect_is_told_and_the_next_reload_works(
    written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fails while a configuration is applied is answered, and does not end reloading."""

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a defect")

    async with written.agent() as agent:
        written.parts["probes"].append(written.trip("more"))
        written.write()
        with monkeypatch.context() as patch:
            patch.setattr(Schedule, "replace", broken)
            outcome = await reloaded(agent)
        assert not outcome.is_applied
        assert "applied only in part (RuntimeError)" in outcome.told[0]
        written.parts["probes"].append(written.trip("further"))
        written.write()
        assert "1 new" in await applied(agent)


async def test_a_file_that_changes_while_it_is_read(
    written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that change meanwhile are read again as a whole; if they never come to rest, they are refused."""
    monkeypatch.setattr("monitor.reloading.READ_PAUSE", 0.0)
    changes = 1
    readings = []

    def changing(path: Path, **options: Any) -> Configuration:
        readings.append(path)
        configuration = load(path, **options)
        if len(readings) <= changes:
            (written.directory / "password").write_text(f"secret-{len(readings)}")
        return configuration

    monkeypatch.setattr("monitor.reloading.load", changing)
    async with written.agent() as agent:
        await applied(agent)
        assert len(readings) == 2
        password = agent.runtime.assembly.configuration.mailboxes["box"].password
        assert password is not None
        assert password.get_secret_value() == "secret-1"
        changes = 99
        outcome = await reloaded(agent)
        assert not outcome.is_applied
        assert outcome.told == [f"{written.directory / 'password'}: {CHANGED}"]
        assert len(readings) == 5
