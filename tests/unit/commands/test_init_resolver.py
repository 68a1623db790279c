"""The use of `mailsonde init --resolver`, and its limits."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from monitor.commands import main
from monitor.init.endpoint import Endpoint


@pytest.mark.parametrize("resolver", [["--resolver", "127.0.0.1:5353"], []])
def test_name_that_only_the_resolver_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resolver: list[str]
) -> None:
    """A server that does not resolve here is refused, and the error says that --resolver does not help.

    If the trial used that resolver, init would write a file with which the agent cannot connect.
    """

    async def unknown(endpoints: Sequence[Endpoint], *_: object) -> list[tuple[Endpoint, str]]:
        return [(endpoint, "dns_nxdomain: no such name") for endpoint in endpoints]

    monkeypatch.setattr(sys.modules["monitor.commands.init"], "reach", unknown)
    monkeypatch.setenv("CANARY_PASSWORD", "s3cret")
    servers = ["--smtp", "mail.example.com:587", "--mailbox", "imap://mail.example.com"]
    account = ["--address", "a@example.com", "--password-env", "CANARY_PASSWORD"]
    arguments = ["init", "--yes", *account, *servers, *resolver, "--out", str(tmp_path / "site.yaml")]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    hint = "its name must resolve on this machine: the agent connects without --resolver"
    assert (hint in done.stderr) == bool(resolver)
