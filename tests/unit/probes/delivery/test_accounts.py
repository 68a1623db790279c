"""Which mailboxes belong to an address or an account, and what a message with many mailboxes costs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from pydantic import SecretStr

from probes.core.clock import SystemClock
from probes.core.settings import MailboxSettings, ServerSettings, Site
from probes.delivery.accounts import Accounts
from probes.delivery.message_probe import MessageContext
from probes.messages.token import TokenSigner
from probes.roundtrip import Roundtrip, RoundtripSettings
from tests.fakes.visits import Visited

MAILBOXES = 500


def mailbox(address: str, username: str) -> MailboxSettings:
    return MailboxSettings.model_construct(
        address=address, username=username, server="in", password=SecretStr("x")
    )


def test_whose_mailboxes() -> None:
    """An account is found by login name and address, an address only by itself; case is ignored."""
    accounts = Accounts(
        {
            "one": mailbox("One@example.com", "login-1"),
            "shared": mailbox("shared@example.com", "LOGIN-1"),
            "same": mailbox("same@example.com", "same@example.com"),
        }
    )
    assert accounts.at("one@EXAMPLE.com") == ["one"]
    assert not accounts.at("login-1")
    assert accounts.of("Login-1") == ["one", "shared"]
    assert accounts.of("ONE@example.com") == ["one"]
    assert accounts.of("same@example.com") == ["same"]
    assert not accounts.of("other@example.com")


def test_a_message_does_not_walk_through_the_mailboxes() -> None:
    """Of many mailboxes, a message concerns its own, the sender's and the account's, and visits no other."""
    asked: list[tuple[str, str]] = []

    def watcher(name: str) -> Any:
        return SimpleNamespace(
            await_arrival=lambda message: asked.append(("arrival", name)),
            await_report=lambda message, arrival: asked.append(("report", name)),
            await_sent_copy=lambda message, arrival: asked.append(("copy", name)),
        )

    names = [f"m{number}" for number in range(MAILBOXES)]
    mailboxes = Visited((name, mailbox(f"{name}@example.com", f"login-{name}")) for name in names)
    out = ServerSettings.model_construct(protocol="smtp", username="login-m3", saves_sent_copies=True)
    site = Site("here", {"out": out}, mailboxes)
    watchers = {name: watcher(name) for name in names}
    context: Any = MessageContext(SystemClock(), site, None, TokenSigner(b"k"), watchers, "me")  # type: ignore[arg-type] # no ledger
    trip = {"name": "trip", "kind": "roundtrip", "from": "M7@example.com", "send_via": "out", "to": "m1"}
    probe = Roundtrip(RoundtripSettings.model_validate(trip), context)
    mailboxes.visits = 0
    message: Any = None
    probe.follow(message)
    assert asked == [("arrival", "m1"), ("report", "m7"), ("copy", "m3")]
    assert mailboxes.visits == 0
