"""A configuration of real servers with probes that run once, as `mailsonde check` runs them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import yaml

from monitor.config.load import load
from monitor.config.models import Configuration
from monitor.runner import Result
from monitor.runtime import open_runtime
from probes.core.clock import SystemClock
from probes.core.reasons import Reason
from probes.core.verdict import MessageState
from tests.real_servers.dovecot import DOMAIN, PASSWORD, USERS, TlsFiles

SENDER = f"sender@{DOMAIN}"
"""The sender of all round trips, and so the recipient of all bounces."""

Settings = dict[str, Any]

_SECRET = {"password": {"file": "password"}}


def server(
    protocol: str, port: int, tls: TlsFiles | None, how: str = "starttls", **given: object
) -> Settings:
    """Return the settings of a server on 127.0.0.1: with TLS as in ``how`` and a login, or without both."""
    settings: Settings = {"protocol": protocol, "host": "127.0.0.1", "port": port, "timeout": "20s"}
    if tls is None:
        return {**settings, "tls": "none", **given}
    login = {"username": SENDER, **_SECRET}
    return {**settings, "tls": how, "tls_ca": str(tls.authority), **login, **given}


def trip(name: str = "trip", **settings: object) -> Settings:
    """Return the settings of a round trip from `SENDER` through the server ``out`` to ``canary``.

    Only the mailbox ``to`` is polled often, so tests of bounces set it to ``sender``.
    """
    probe = {"name": name, "kind": "roundtrip", "interval": "60s", "deadline": "30s"}
    return {**probe, "from": SENDER, "send_via": "out", "to": "canary", **settings}


def configured(
    directory: Path,
    servers: dict[str, Settings],
    *probes: Settings,
    password: str = PASSWORD,
    oauth2: dict[str, Settings] | None = None,
) -> Configuration:
    """Return a configuration of ``servers`` and ``probes``, written to a file of ``directory``.

    The mailboxes of `USERS` are on the server ``in``. Every login uses ``password``, except those with an
    entry of ``oauth2``: a mailbox has the one of its name.
    """
    entries = oauth2 or {}
    (directory / "password").write_text(password)
    document = {
        "agent": {"ledger": f"sqlite:{directory}/ledger.db"},
        "servers": servers,
        "oauth2": entries,
        "mailboxes": {
            user: {
                "address": f"{user}@{DOMAIN}",
                "server": "in",
                "username": f"{user}@{DOMAIN}",
                **({"oauth2": user} if user in entries else _SECRET),
            }
            for user in USERS
        }
        if "in" in servers
        else {},
        "probes": list(probes),
    }
    path = directory / "mailsonde.yaml"
    path.write_text(yaml.safe_dump(document))
    return load(path)


async def run_once(
    directory: Path,
    servers: dict[str, Settings],
    *probes: Settings,
    password: str = PASSWORD,
    oauth2: dict[str, Settings] | None = None,
) -> list[Result]:
    """Return the results of ``probes``, run at the same time, in their order; see `configured`."""
    configuration = configured(directory, servers, *probes, password=password, oauth2=oauth2)
    async with open_runtime(configuration, SystemClock(), "check") as runtime:
        async with asyncio.timeout(90):
            results = await asyncio.gather(*map(runtime.runner.run, runtime.assembly.probes.values()))
        assert await runtime.ledger.discrepancies() == []
    return results


async def run_on_mailboxes(
    directory: Path, servers: dict[str, Settings], password: str = PASSWORD
) -> list[Result]:
    """Return the results of a POP3 probe and of an IMAP probe, of the servers ``pop3`` and ``imap``."""
    probes: list[Settings] = [{"name": kind, "kind": kind, "server": kind} for kind in ("pop3", "imap")]
    return await run_once(directory, servers, *probes, password=password)


def assert_delivered(result: Result) -> None:
    """Fail unless the message of a round trip was delivered, with nothing wrong."""
    message = result.verdict.message
    assert result.verdict.reason is Reason.NONE, result.verdict.detail
    assert message is not None
    assert message.state is MessageState.DELIVERED, message


def assert_wrong_password(result: Result, password: str) -> None:
    """Fail unless the login was refused as `auth_failed`, and the result keeps ``password`` to itself."""
    assert result.verdict.reason is Reason.AUTH_FAILED, result.verdict.detail
    assert password not in str(result.as_object())
