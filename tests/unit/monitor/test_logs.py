"""Logs of defects: enough to fix them, and no secrets."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Iterator
from typing import Literal

import httpx
import pytest

from monitor.logs import set_up_logs
from monitor.runner import Runner
from probes.core.clock import SystemClock
from probes.core.context import Context
from probes.core.reasons import Reason
from probes.core.settings import Site
from probes.protocols.sasl import CramMd5
from probes.protocols.security_context import NtlmContext
from probes.smtp import Smtp, SmtpSettings
from tests.fakes.scripted_server import PASSWORD, dialogue, scripted_server


@pytest.fixture(autouse=True)
def loggers_as_before() -> Iterator[None]:
    """Restore pytest's root logger."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for library in ("apscheduler", "uvicorn", "httpx", "httpcore", "spnego"):
        logging.getLogger(library).setLevel(logging.NOTSET)


def test_messages_of_ntlm_are_not_logged(capsys: pytest.CaptureFixture[str]) -> None:
    """No level of logging shows what NTLM sends."""
    set_up_logs("text", logging.DEBUG)
    token = NtlmContext("canary", PASSWORD, service="HTTP", host="localhost").step()
    assert base64.b64encode(token).decode() not in capsys.readouterr().err


@pytest.mark.parametrize("form", ["text", "json"])
async def test_a_defect_in_a_login_is_logged_without_the_password(
    form: Literal["text", "json"], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In each log format, a defect during a login is logged with its traceback but without the password."""

    def broken(mechanism: CramMd5, challenge: bytes) -> bytes:
        raise RuntimeError("a defect of ours")

    monkeypatch.setattr(CramMd5, "answer", broken)
    set_up_logs(form)
    ehlo = (rb"EHLO .*", b"250-hi\r\n250 AUTH CRAM-MD5")
    async with scripted_server(dialogue(b"220 hi", ehlo, (b"AUTH CRAM-MD5", b"334 PHg+"))) as server:
        site = Site("here", {"mail": server.settings("smtp", username="canary")}, {})
        probe = Smtp(SmtpSettings(name="mail", kind="smtp", server="mail"), Context(SystemClock(), site))
        result = await Runner(SystemClock(), "here").run(probe)
    logged = capsys.readouterr().err
    assert result.verdict.reason is Reason.INTERNAL
    assert "RuntimeError: a defect of ours" in logged
    assert "in _authenticate" in logged
    assert PASSWORD not in logged
    if form == "json":
        assert json.loads(logged)["level"] == "error"


async def test_no_request_is_logged_with_its_url(capsys: pytest.CaptureFixture[str]) -> None:
    """The HTTP library's own log lines are suppressed, because URLs may contain tokens."""
    set_up_logs("json")
    async with httpx.AsyncClient(transport=httpx.MockTransport(lambda _: httpx.Response(200))) as client:
        await client.post("https://collector.example.com/v1/metrics?token=s3cret-token")
    assert "s3cret-token" not in capsys.readouterr().err
