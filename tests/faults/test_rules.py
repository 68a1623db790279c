"""Each client is held to each rule of "What a server may cost" in the developer guide."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import dns.message
import dns.rcode
import pytest
import trustme

from probes.core.clock import SystemClock
from probes.core.context import Context
from probes.core.reasons import Reason
from probes.core.settings import Site
from probes.core.verdict import MessageState, Verdict
from probes.mx import Mx, MxSettings
from tests.fakes.dns_server import Script, dns_server, response, zone
from tests.fakes.imap_server import ImapServer
from tests.fakes.pop3_server import Pop3Server
from tests.fakes.scripted_server import Peer, scripted_server, server_context
from tests.fakes.smtp_server import SmtpServer
from tests.faults.dialogues import DIALOGUES, POP3
from tests.faults.misdeeds import Misdeed, close, endless_line, flood, says, says_tagged, silence
from tests.faults.round_trip import FINAL_DOT, Once, round_trip
from tests.faults.running import (
    PATIENCE,
    TIMEOUT,
    beside_a_healthy_run,
    bounded_memory,
    hold_to_promises,
    probe_of,
    run,
    server_settings,
    undisturbed,
)
from tests.faults.test_http_faults import search

GUIDE = Path(__file__).parents[2] / "docs" / "develop.md"


@dataclass(frozen=True)
class Place:
    """What a test has at hand: a directory, and an authority of certificates with its file."""

    directory: Path
    certificates: trustme.CA
    authority: Path


Held = Callable[[Place], Awaitable[None]]
"""Holds one client to one rule."""


async def verdict_of(kind: str, commit: Misdeed, state: str, patience: float = PATIENCE) -> Verdict:
    """Return what a probe says of a server that does this in ``state``."""
    async with scripted_server(DIALOGUES[kind].committing(commit, state)) as server:
        ran = await run(probe_of(kind, server_settings(kind, server.port, timeout=patience)))
    hold_to_promises(ran)
    return ran.result.verdict


def delivers(kind: str, state: str, commit: Misdeed, *, at_once: bool = False) -> Held:
    """Return what holds a mailbox's client: the message is delivered, ``at_once`` by the first poll."""

    async def hold(place: Place) -> None:
        mailbox = Pop3Server() if kind == "pop3" else ImapServer()
        add = mailbox.add if isinstance(mailbox, Pop3Server) else mailbox.folders["INBOX"].add
        server, once = SmtpServer(lambda raw: add(raw) and None), Once(state, commit)
        async with round_trip(mailbox, server, place.directory, of_mailbox=once) as trip:
            ran = await trip.run()
            assert once.is_done
            assert not at_once or trip.mail.connections == 1
            assert (await trip.message(ran.result.run)).state is MessageState.DELIVERED
            assert trip.entered(MessageState.LOST) == 0

    return hold


def ends_well(kind: str, state: str, commit: Misdeed) -> Held:
    """Return what holds a probe: it is ok all the same."""

    async def hold(_: Place) -> None:
        verdict = await verdict_of(kind, commit, state)
        assert verdict.reason is Reason.NONE, verdict.detail

    return hold


async def one_odd_keyword(_: Place) -> None:
    verdict = await verdict_of(
        "smtp", says(b"250-hi\r\n250-\xff\x01 ?\r\n250-SIZE 9\r\n250 AUTH PLAIN"), "ehlo"
    )
    assert verdict.reason is Reason.NONE
    assert {"SIZE 9", "AUTH PLAIN"} <= set(verdict.values["features"])  # type: ignore[call-overload] # a list


async def one_host_without_answer(_: Place) -> None:
    sound = zone(
        *(f"example.test. 300 IN MX {n} mx{n}.example.test." for n in (1, 2)),
        "mx1.example.test. 300 IN A 9.9.9.9",
    )

    def script(query: dns.message.Message) -> Sequence[bytes | dns.message.Message] | None:
        is_odd = query.question[0].name.to_text().startswith("mx2")
        return [response(query, rcode=dns.rcode.SERVFAIL)] if is_odd else sound(query)

    first, second = (await mx_verdict(script)).values["records"]  # type: ignore[misc] # a list
    assert (first["addresses"], first["fault"]) == (["9.9.9.9"], None)
    assert (second["addresses"], second["fault"]) == ([], "dns_servfail")


async def mx_verdict(script: Script, patience: float = PATIENCE) -> Verdict:
    """Return what an ``mx`` probe says of example.test by this name server."""
    async with dns_server(script) as server:
        resolver = {"address": "127.0.0.1", "port": server.port, "timeout": f"{patience}s"}
        settings = {"name": "mx", "kind": "mx", "domain": "example.test", "resolver": resolver}
        made = MxSettings.model_validate({**settings, "deadline": "5s"})
        ran = await run(Mx(made, Context(SystemClock(), Site("here", {}, {}))))
    hold_to_promises(ran)
    return ran.result.verdict


WITHOUT_CODES = replace(POP3, states={**POP3.states, "capa": (rb"CAPA", b"+OK\r\nSASL PLAIN\r\nUIDL\r\n.")})
"""A POP3 server whose refusals have no code that tells why (RFC 3206)."""


def does_not_blame_credentials(kind: str, state: str, refusal: Misdeed, reason: Reason) -> Held:
    """Return what holds a login that worked before: an ambiguous refusal is not for wrong credentials."""
    dialogue = WITHOUT_CODES if kind == "pop3" else DIALOGUES[kind]
    sound, odd = dialogue.sound, dialogue.committing(refusal, state)

    async def hold(_: Place) -> None:
        scripts = iter([sound, odd])
        async with scripted_server(lambda peer: next(scripts)(peer)) as server:
            settings = server_settings(kind, server.port)
            assert (await run(probe_of(kind, settings))).result.verdict.reason is Reason.NONE
            assert (await run(probe_of(kind, settings))).result.verdict.reason is reason

    return hold


async def taken_without_an_answer(place: Place) -> None:
    mailbox = Pop3Server()
    server = SmtpServer(mailbox.add)

    async def commit(peer: Peer) -> None:
        server.deliver()
        await peer.close()

    async with round_trip(mailbox, server, place.directory, of_submission=Once(FINAL_DOT, commit)) as trip:
        ran = await trip.run()
        assert (await trip.message(ran.result.run)).state is MessageState.DELIVERED
        assert trip.entered(MessageState.LOST) == 0


async def deletes_again(place: Place) -> None:
    mailbox, once = Pop3Server(), Once("QUIT", close)
    async with round_trip(mailbox, SmtpServer(mailbox.add), place.directory, of_mailbox=once) as trip:
        assert (await trip.run()).result.verdict.reason is Reason.NONE
        async with asyncio.timeout(PATIENCE):
            while mailbox.messages or not once.is_done:
                await trip.watcher.poll_now()
        assert trip.watcher.fault is None


def ends_in_time(kind: str) -> Held:
    """Return what holds a probe: silence and a flood end, in little memory."""

    async def hold(_: Place) -> None:
        assert (await verdict_of(kind, silence, "greeting", TIMEOUT)).reason is Reason.COMMAND_TIMEOUT
        with bounded_memory():
            assert (await verdict_of(kind, endless_line, "greeting")).reason is Reason.LINE_TOO_LONG

    return hold


async def silent_and_flooding_resolvers(_: Place) -> None:
    assert (await mx_verdict(lambda query: [], TIMEOUT)).reason is Reason.DNS_TIMEOUT
    flooding = await mx_verdict(lambda query: [bytes(1000)] * 200, TIMEOUT)
    assert flooding.reason is Reason.DNS_TIMEOUT


def finds_other_servers(commit: Misdeed) -> Held:
    """Return what holds the search for servers: pages that go wrong leave the other sources."""

    async def hold(place: Place) -> None:
        context = server_context(place.certificates, "*.example.test", "example.test")

        async def script(peer: Peer) -> None:
            await peer.start_tls(context)
            await peer.octets()
            await commit(peer)

        async with scripted_server(script) as server:
            with bounded_memory():
                found, beside = await beside_a_healthy_run(search(server.port, place.authority))
        assert not found
        undisturbed(beside)

    return hold


RULES: dict[str, dict[str, Held]] = {
    "about one thing": {
        "smtp": one_odd_keyword,
        "pop3": delivers("pop3", "UIDL", says(b"+OK", b"2 \xff\xfe", b"1 u1", b"."), at_once=True),
        "imap": delivers(
            "imap", "LIST", says_tagged(b"OK", before=b'* LIST () "/" a\tb"\r\n* LIST ((('), at_once=True
        ),
        "mx": one_host_without_answer,
        "init": finds_other_servers(close),
    },
    "QUIT, LOGOUT": {
        "smtp": ends_well("smtp", "quit", close),
        "pop3": ends_well("pop3", "quit", close),
        "imap": ends_well("imap", "logout", close),
        "roundtrip by POP3": deletes_again,
    },
    "Credentials that worked before": {
        "smtp": does_not_blame_credentials("smtp", "auth", says(b"454 4.7.0 no"), Reason.SMTP_DEFERRED),
        "pop3": does_not_blame_credentials("pop3", "login", says(b"-ERR no"), Reason.LOGIN_REFUSED),
        "imap": does_not_blame_credentials("imap", "login", says_tagged(b"NO no"), Reason.LOGIN_REFUSED),
    },
    "lost before a new search": {
        "smtp": taken_without_an_answer,
        "pop3": delivers("pop3", "TOP", flood(b"x" * 65536, b"+OK\r\n")),
        "imap": delivers("imap", "UID FETCH", says_tagged(b"OK")),
    },
    "Every wait ends": {
        "smtp": ends_in_time("smtp"),
        "pop3": ends_in_time("pop3"),
        "imap": ends_in_time("imap"),
        "mx": silent_and_flooding_resolvers,
        "init": finds_other_servers(flood(b"X-Field: x\r\n" * 4096, b"HTTP/1.1 200 OK\r\n")),
    },
}
"""Who holds each client to each rule, by words of the guide's sentence."""


@pytest.mark.parametrize(
    ("kind", "rule"), [(kind, rule) for rule, clients in RULES.items() for kind in clients]
)
async def test_each_client_keeps_each_rule(
    kind: str, rule: str, tmp_path: Path, certificate_authority: trustme.CA
) -> None:
    """What the guide promises of every client holds for this one."""
    authority = tmp_path / "ca.pem"
    certificate_authority.cert_pem.write_to_path(str(authority))
    await RULES[rule][kind](Place(tmp_path, certificate_authority, authority))


def test_the_rules_are_the_guides() -> None:
    """A rule that the guide states is tried, and one that is tried is stated there."""
    (section,) = re.findall(r"## What a server may cost\n(.*?)\n## ", GUIDE.read_text(), re.DOTALL)
    stated = re.findall(r"^- (.*)$", section, re.MULTILINE)
    assert [rule for rule, sentence in zip(RULES, stated, strict=True) if rule not in sentence] == []
