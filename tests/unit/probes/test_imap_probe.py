"""The ``imap`` kind: its reports about servers and mailboxes."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import SecretStr

from probes.core.context import Context
from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.settings import MailboxSettings, ServerSettings, Site
from probes.core.verdict import PhaseTimer, Run, Verdict
from probes.imap import Imap, ImapSettings
from probes.protocols.imap import encode_folder
from tests.fakes.clock import InstantClock
from tests.fakes.scripted_server import PASSWORD, Peer, scripted_server
from tests.real_servers.dovecot import Dovecot, TlsFiles

USER = "canary@example.com"


async def verdict_of(configured: ServerSettings, **settings: Any) -> Verdict:
    mailbox = MailboxSettings.model_construct(
        address=USER, server="in", username=USER, password=SecretStr(PASSWORD)
    )
    site = Site("here", {"in": configured}, {"canary": mailbox})
    made = ImapSettings.model_validate({"name": "imap", "kind": "imap", **settings})
    clock = InstantClock()
    probe = Imap(made, Context(clock, site))
    assert probe.target == "in"
    return await probe.run(Run("0" * 32, clock.time(), PhaseTimer(clock)))


ANSWERS = {
    b"CAPABILITY": [b"* CAPABILITY IMAP4rev1 AUTH=PLAIN SASL-IR NAMESPACE SPECIAL-USE"],
    b"AUTHENTICATE": [],
    b"NAMESPACE": [b'* NAMESPACE (("" "/")) NIL NIL'],
    b"LIST": [b'* LIST (\\HasNoChildren) "/" INBOX', b'* LIST (\\Junk) "/" "Junk E-Mail"'],
    b"EXAMINE": [b"* 3 EXISTS", b"* OK [UIDVALIDITY 7] valid"],
    b"LOGOUT": [b"* BYE"],
}


async def answering(peer: Peer) -> None:
    """Answer each command with its entry in `ANSWERS`."""
    await peer.send(b"* OK ready")
    while True:
        tag, verb = (await peer.expect(b".*")).split()[:2]
        await peer.send(*ANSWERS[verb], tag + b" OK done")


async def test_a_mailbox_is_opened_and_counted() -> None:
    """With a mailbox, the probe logs in, lists special uses, counts, and opens the folder read-only."""
    async with scripted_server(answering) as server:
        verdict = await verdict_of(server.settings("imap"), mailbox="canary")
    assert verdict.reason is Reason.NONE
    assert verdict.values["messages"] == 3
    assert verdict.values["uid_validity"] == 7
    assert verdict.values["special_use"] == {"junk": "Junk E-Mail"}
    verbs = [line.split()[1] for line in server.received]
    assert b"SELECT" not in verbs
    assert {b"EXAMINE", b"LOGOUT"} <= set(verbs)


@pytest.mark.parametrize("told", [[], [b"* OK [UIDVALIDITY 0] none"]])
async def test_a_folder_without_uidvalidity(told: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """If the server sends no UIDVALIDITY, the probe shows null; it does not need one."""
    monkeypatch.setitem(ANSWERS, b"EXAMINE", [b"* 3 EXISTS", *told])
    async with scripted_server(answering) as server:
        verdict = await verdict_of(server.settings("imap"), mailbox="canary")
    assert verdict.reason is Reason.NONE
    assert (verdict.values["messages"], verdict.values["uid_validity"]) == (3, None)


@pytest.mark.parametrize(
    ("listing", "special_use"),
    [
        ([b'* LIST () "/" a\tb', b'* LIST (\\Junk) "/" Junk'], {"junk": "Junk"}),
        ([b'* LIST () "/" ' + b"x" * 9000], None),
        ([b"\xff"], None),
    ],
)
async def test_odd_folders_beside_the_one_to_open(
    listing: list[bytes], special_use: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trouble with listing other folders affects only their names, which are null if none are known."""
    monkeypatch.setitem(ANSWERS, b"LIST", listing)
    async with scripted_server(answering) as server:
        verdict = await verdict_of(server.settings("imap"), mailbox="canary")
    assert verdict.reason is Reason.NONE
    assert verdict.values["messages"] == 3
    assert verdict.values["special_use"] == special_use


async def test_a_farewell_that_goes_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mailbox that was opened is ok, whatever the server answers to LOGOUT."""
    monkeypatch.setitem(ANSWERS, b"LOGOUT", [b"* BYE", b"\xff not IMAP"])
    async with scripted_server(answering) as server:
        verdict = await verdict_of(server.settings("imap"), mailbox="canary")
    assert verdict.reason is Reason.NONE
    assert verdict.values["messages"] == 3


async def test_hostile_folder_names_are_shown_legibly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control characters in folder names, which UTF-7 allows, are escaped; long names are cut."""
    name = encode_folder("Junk\x1b[31m\u202e\n" + "x" * 1000)
    monkeypatch.setitem(ANSWERS, b"NAMESPACE", [b"* NAMESPACE ((" + name + b' "/")) NIL NIL'])
    monkeypatch.setitem(ANSWERS, b"LIST", [b'* LIST (\\Junk) "/" ' + name])
    async with scripted_server(answering) as server:
        verdict = await verdict_of(server.settings("imap"), mailbox="canary")
    (prefix,), junk = verdict.values["namespaces"], verdict.values["special_use"]["junk"]  # type: ignore[index,misc]
    for shown in (prefix, junk):
        assert shown.startswith("Junk\\x1b[31m\\u202e\\nxxx")
        assert shown.isprintable()
        assert len(shown) <= 300


async def test_a_server_alone() -> None:
    """Without credentials, the probe reads the greeting and the capabilities, and logs out."""
    async with scripted_server(answering) as server:
        verdict = await verdict_of(server.settings("imap"), server="in")
    assert [line.split()[1] for line in server.received] == [b"CAPABILITY", b"LOGOUT"]
    assert verdict.values == {
        "greeting": "ready",
        "capabilities": ["AUTH=PLAIN", "IMAP4REV1", "NAMESPACE", "SASL-IR", "SPECIAL-USE"],
    }


async def test_a_folder_that_is_not_there(dovecot: Dovecot, server_tls: TlsFiles) -> None:
    """A configured folder that does not exist on a real server has its own reason."""
    server = ServerSettings(
        protocol="imap",
        host="127.0.0.1",
        port=dovecot.imaps_port,
        tls="implicit",
        tls_server_name="localhost",
    ).model_copy(
        update={
            "tls_ca": server_tls.authority,
            "username": dovecot.username,
            "password": SecretStr(dovecot.password),
        }
    )
    assert (await verdict_of(server, server="in")).reason is Reason.NONE
    with pytest.raises(ProbeFault) as caught:
        await verdict_of(server, server="in", folder="Nowhere")
    assert caught.value.reason is Reason.IMAP_NO_FOLDER
    assert caught.value.detail.startswith('the probe\'s folder "Nowhere": ')
