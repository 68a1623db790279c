"""What an agent logs about probes that fail again and again."""

from __future__ import annotations

import pytest

from tests.fakes.scripted_server import Peer, dialogue
from tests.unit.web.conftest import StartAgent

SOUND = dialogue(b"220 hello", (rb"EHLO \S+", b"250 hello"), (b"QUIT", b"221 bye"))
REFUSING = dialogue(b"554 5.7.1 no")


async def test_runs_that_fail_again_and_again(
    start_agent: StartAgent, caplog: pytest.LogCaptureFixture
) -> None:
    """The first failed run is logged with its whole result, and then only the end of the trouble."""
    caplog.set_level("INFO", "mailsonde.agent")
    scripts = [REFUSING, REFUSING, REFUSING]

    async def recovering(peer: Peer) -> None:
        await (scripts.pop() if scripts else SOUND)(peer)

    async with start_agent(recovering, interval="1s") as watched:
        reasons = [(await watched.result()).verdict.reason for _ in range(4)]
    assert [str(reason) for reason in reasons] == [*["smtp_rejected"] * 3, "none"]
    first, last = (one for one in caplog.records if one.getMessage().startswith("hq-0 at mail: "))
    assert (first.levelname, first.__dict__["run"]["reason"]) == ("WARNING", "smtp_rejected")
    assert first.getMessage() == "hq-0 at mail: failed/smtp_rejected in phase greeting: 554 5.7.1 no"
    assert last.levelname == "INFO"
    assert last.getMessage().startswith("hq-0 at mail: works again after 3 failures in ")
