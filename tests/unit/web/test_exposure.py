"""Where the agent says that people on other machines can read its pages."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from click.testing import CliRunner

from monitor.commands.validate import validate
from monitor.config.exposure import exposure
from monitor.config.models import AgentSettings
from monitor.config.web_config import WebConfig, read_web_config
from tests.fakes.scripted_server import Peer
from tests.unit.web.access_site import MUTUAL, TLS, install, users
from tests.unit.web.conftest import StartAgent

USER = users(alice="x")
ALL_MAY_READ = (
    "The agent listens on 0.0.0.0:9725, beyond this machine, and all who can connect read its pages; set "
    "agent.web_config, or listen on 127.0.0.1"
)
NOBODY_IS_ASKED = (
    "The agent listens on 0.0.0.0:9725, beyond this machine, and its web configuration asks for no password "
    "or client certificate"
)
UNENCRYPTED = (
    "The agent listens on 0.0.0.0:9725, beyond this machine, and passwords travel unencrypted; add "
    "tls_server_config to its web configuration"
)


def _settings(listen: str, *, web_config: bool) -> AgentSettings:
    return AgentSettings.model_validate(
        {"listen": listen, **({"web_config": "web.yml"} if web_config else {})}
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, ALL_MAY_READ),
        ("{}\n", NOBODY_IS_ASKED),
        (TLS, NOBODY_IS_ASKED),
        (MUTUAL.replace("RequireAndVerifyClientCert", "VerifyClientCertIfGiven"), NOBODY_IS_ASKED),
        (USER, UNENCRYPTED),
        (TLS + USER, ""),
        (MUTUAL, ""),
    ],
)
def test_what_the_web_configuration_lacks(tmp_path: Path, text: str | None, told: str) -> None:
    """Beyond this machine, the agent needs TLS, and a password or a client certificate."""
    install(tmp_path)
    found = None
    if text is not None:
        (tmp_path / "web.yml").write_text(text)
        found = read_web_config(tmp_path / "web.yml")
        assert isinstance(found, WebConfig)
    assert exposure(_settings("0.0.0.0:9725", web_config=text is not None), found) == told
    assert exposure(_settings("127.0.0.1:9725", web_config=text is not None), found) == ""


@pytest.mark.parametrize(
    ("listen", "is_exposed"),
    [
        ("127.0.0.2:1", False),
        ("[::1]:1", False),
        ("localhost:1", False),
        ("LocalHost.:1", False),
        ("[::]:1", True),
        ("[::ffff:192.0.2.1]:1", True),
        ("192.0.2.1:1", True),
        ("localhost.example.com:1", True),
    ],
)
def test_which_addresses_are_of_this_machine_only(listen: str, is_exposed: bool) -> None:
    """Only loopback addresses and the name localhost keep other machines out."""
    assert bool(exposure(_settings(listen, web_config=False), None)) is is_exposed


def _validated(folder: Path, text: str, *options: str) -> tuple[int, str]:
    (folder / "web.yml").write_text(text)
    site = folder / "site.yaml"
    agent = "agent: {listen: '0.0.0.0:9725', web_config: web.yml}\n"
    site.write_text(agent + "probes: [{name: hq-mx, kind: mx, domain: example.com}]\n")
    done = CliRunner().invoke(validate, [str(site), *options])
    return done.exit_code, done.stderr.replace(f"{site}: ", "")


def test_validate_warns(tmp_path: Path) -> None:
    """`validate` tells it as a warning; without secrets it does not know, and says nothing."""
    install(tmp_path)
    assert _validated(tmp_path, USER) == (0, f"warning: {UNENCRYPTED}\n")
    assert _validated(tmp_path, TLS + USER) == (0, "")
    assert _validated(tmp_path, USER, "--no-secrets") == (0, "")


async def _answer(peer: Peer) -> None:
    await peer.send(b"220 ready")


async def test_the_agent_warns_at_start_and_on_its_page(
    start_agent: StartAgent, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An agent that is open to other machines says so in its log and on the live page; others do not."""
    async with start_agent(_answer, interval="1h") as watched:
        assert "beyond this machine" not in (await watched.client.get("/")).text
    assert "beyond this machine" not in caplog.text
    monkeypatch.setattr("monitor.config.exposure._is_loopback", lambda _: False)
    async with start_agent(_answer, interval="1h") as watched:
        told = [each for each in caplog.records if "all who can connect read its pages" in each.message]
        assert [each.levelno for each in told] == [logging.WARNING]
        assert "all who can connect read its pages" in (await watched.client.get("/")).text
