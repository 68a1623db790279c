"""The doctor: which step fails, and what it says to do."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from monitor.config.load import load
from monitor.doctor.mailbox import MailboxDoctor, Step
from monitor.runtime import open_runtime
from probes.core.clock import SystemClock
from tests.fakes.graph.http import Answer
from tests.fakes.graph.server import GraphDouble, graph_double
from tests.fakes.graph.tenant import ISSUES, TRACES
from tests.fakes.scripted_server import Peer, ScriptedServer, dialogue, scripted_server
from tests.fakes.token_endpoint import answer, token_endpoint

ANSWERS: dict[bytes, list[bytes]] = {
    b"CAPABILITY": [b"* CAPABILITY IMAP4rev1 AUTH=PLAIN AUTH=XOAUTH2 SASL-IR"],
    b"AUTHENTICATE": [],
    b"EXAMINE": [b"* 3 EXISTS", b"* OK [UIDVALIDITY 7] valid"],
    b"LOGOUT": [b"* BYE"],
}


async def answering(peer: Peer) -> None:
    """Answer each command with its entry in `ANSWERS`, which may end in a refusal."""
    await peer.send(b"* OK ready")
    while True:
        tag, verb = (await peer.expect(b".*")).split()[:2]
        *lines, last = ANSWERS[verb] or [b""]
        if last[:2] in (b"NO", b"BA"):
            await peer.send(*lines, tag + b" " + last)
        else:
            await peer.send(*lines, *([last] if last else []), tag + b" OK done")


async def examined(
    directory: Path,
    port: int,
    oauth2: dict[str, Any] | None = None,
    submission_port: int | None = None,
    **server: Any,
) -> list[Step]:
    """Return the steps for a mailbox of an IMAP server at ``port``.

    With ``submission_port``, a round trip to the mailbox sends through an SMTP server there.
    """
    (directory / "password").write_text("tr0mbone-and-Oboe")
    secret: dict[str, Any] = {"password": {"file": "password"}}
    imap = {"protocol": "imap", "host": "127.0.0.1", "port": port, "tls": "none", "timeout": "2s"}
    written: dict[str, Any] = {
        "agent": {"ledger": f"sqlite:{directory}/ledger.db"},
        "servers": {"in": imap | {"allow_insecure_auth": True} | server},
        "mailboxes": {"canary": {"address": "canary@example.com", "server": "in", "username": "canary"}},
        "probes": [{"name": "mx", "kind": "mx", "interval": "60s", "domain": "example.com"}],
    }
    if submission_port is not None:
        smtp = {"protocol": "smtp", "host": "127.0.0.1", "port": submission_port, "tls": "none"}
        login = {"username": "canary", "password": {"file": "password"}, "allow_insecure_auth": True}
        written["servers"]["out"] = smtp | login
        trip = {"name": "trip", "kind": "roundtrip", "interval": "60s", "deadline": "2s"}
        written["probes"].append(trip | {"from": "canary@example.com", "send_via": "out", "to": "canary"})
    if oauth2 is not None:
        written["oauth2"] = {"it": {"client_id": "a", "client_secret": {"file": "password"}} | oauth2}
        secret = {"oauth2": "it"}
    written["mailboxes"]["canary"] |= secret
    path = directory / "site.yaml"
    path.write_text(yaml.safe_dump(written))
    async with open_runtime(load(path), SystemClock(), "doctor") as runtime:
        return [step async for step in MailboxDoctor("canary", runtime).steps()]


def token(**claims: object) -> bytes:
    """Return a token endpoint's answer: a JWT with these claims."""
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in ({}, claims)]
    return answer({"access_token": f"{parts[0].decode()}.{parts[1].decode()}.c2ln", "expires_in": 3600})


def told(steps: list[Step]) -> list[tuple[str, str]]:
    return [(step.name, step.outcome) for step in steps]


async def test_mailbox_that_is_well(tmp_path: Path) -> None:
    """All steps are ok; without a round trip to the mailbox, the last one says how to add it."""
    async with scripted_server(answering) as server:
        steps = await examined(tmp_path, server.port)
    names = ["dns", "tcp", "tls", "login", "folder"]
    assert told(steps) == [*((name, "ok") for name in names), ("message", "skipped")]
    assert steps[4].detail == "INBOX: 3 messages"
    assert steps[-1].remedy == "Add one, and run the doctor again."


async def test_nothing_listens(tmp_path: Path) -> None:
    """A refused connection is the tcp step, and nothing after it is tried."""
    async with scripted_server(answering) as server:
        port = server.port
    steps = await examined(tmp_path, port)
    assert told(steps) == [("tcp", "failed")]
    assert (steps[0].reason, steps[0].remedy) == (
        "connect_refused",
        "Start the service, or correct `host` and `port`.",
    )


@pytest.mark.parametrize(
    ("verb", "said", "step", "reason"),
    [
        (b"AUTHENTICATE", b"NO [AUTHENTICATIONFAILED] no", "login", "auth_failed"),
        (b"EXAMINE", b"NO [NONEXISTENT] no such folder", "folder", "imap_no_folder"),
        (b"EXAMINE", b"BAD User is authenticated but not connected.", "folder", "not_granted"),
    ],
)
async def test_step_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: bytes, said: bytes, step: str, reason: str
) -> None:
    """Each refusal is told at its own step, with its reason and a remedy."""
    monkeypatch.setitem(ANSWERS, verb, [said])
    async with scripted_server(answering) as server:
        steps = await examined(tmp_path, server.port)
    assert (steps[-1].name, steps[-1].reason) == (step, reason)
    assert steps[-1].remedy
    assert all(before.outcome == "ok" for before in steps[:-1])


@pytest.mark.parametrize(
    ("said", "reason", "remedy"),
    [
        (
            "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Tenant.",
            "auth_disabled",
            "Use OAuth2, or turn SMTP AUTH on for the mailbox alone: Set-CASMailbox",
        ),
        (
            "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Mailbox.",
            "auth_disabled",
            "Use OAuth2, or Set-CASMailbox MAILBOX -SmtpClientAuthenticationDisabled $false.",
        ),
        (
            "550 5.7.30 Basic authentication is not supported for Client Submission.",
            "auth_disabled",
            "Use OAuth2: passwords are turned off here.",
        ),
        (
            "535 5.7.3 Authentication unsuccessful",
            "auth_failed",
            "Correct the credentials, and check that the account is not locked.",
        ),
    ],
)
async def test_submission_that_is_refused(tmp_path: Path, said: str, reason: str, remedy: str) -> None:
    """A refused login at the server that sends is the step before the message, which is not sent."""
    refusing = dialogue(b"220 ready", (b"EHLO.*", b"250-hi\r\n250 AUTH PLAIN"), (b"AUTH.*", said.encode()))
    async with scripted_server(answering) as server, scripted_server(refusing) as smtp:
        steps = await examined(tmp_path, server.port, submission_port=smtp.port)
        assert smtp.connections == 1
    assert told(steps)[-2:] == [("folder", "ok"), ("submission", "failed")]
    assert steps[-1].reason == reason
    assert steps[-1].detail.startswith("server out, in phase auth: ")
    assert said.split(" ", 2)[2] in steps[-1].detail
    assert steps[-1].remedy.startswith(remedy)


async def test_submission_that_is_well(tmp_path: Path) -> None:
    """After the login at the server that sends, the message is sent; its fate is a step of its own."""
    logging_in = ((b"EHLO.*", b"250-hi\r\n250 AUTH PLAIN"), (b"AUTH.*", b"235 2.7.0 welcome"))

    async def taking_one_login(peer: Peer) -> None:
        is_first, smtp.answered = not smtp.answered, True
        end = (b"QUIT", b"221 bye") if is_first else (b"MAIL.*", b"550 5.7.1 no")
        await dialogue(b"220 ready", *logging_in, end)(peer)

    smtp = SimpleNamespace(answered=False)
    async with scripted_server(answering) as server, scripted_server(taking_one_login) as opened:
        steps = await examined(tmp_path, server.port, submission_port=opened.port)
    assert told(steps)[-2:] == [("submission", "ok"), ("message", "failed")]
    assert steps[-2].detail == "server out as canary"


@pytest.mark.parametrize(
    ("said", "reason", "remedy"),
    [
        (
            b"NO Basic authentication is disabled.",
            "auth_disabled",
            "Use OAuth2: passwords are turned off here.",
        ),
        (
            b"NO [ALERT] Your account is not enabled for IMAP use.",
            "auth_disabled",
            "Turn the protocol on for the mailbox and its organization.",
        ),
    ],
)
async def test_login_that_is_turned_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: bytes, reason: str, remedy: str
) -> None:
    """Where passwords or the protocol are off, the login says which of them it is."""
    monkeypatch.setitem(ANSWERS, b"AUTHENTICATE", [said])
    async with scripted_server(answering) as server:
        steps = await examined(tmp_path, server.port)
    assert told(steps)[-1] == ("login", "failed")
    assert (steps[-1].reason, steps[-1].remedy) == (reason, remedy)


MICROSOFT = {"provider": "microsoft", "tenant": "contoso.example"}


async def with_token(directory: Path, server: ScriptedServer, said: bytes) -> list[Step]:
    async with token_endpoint(said) as opened:
        return await examined(directory, server.port, MICROSOFT | {"authority": opened.url})


async def test_token_that_is_well(tmp_path: Path) -> None:
    """A token for the right audience, with the permission and nothing more, brings no remark."""
    said = token(aud="https://outlook.office365.com", roles=["IMAP.AccessAsApp"], iat=SystemClock().time())
    async with scripted_server(answering) as server:
        steps = await with_token(tmp_path, server, said)
    assert told(steps)[:2] == [("token", "ok"), ("dns", "ok")]
    assert ("folder", "ok") in told(steps)


async def test_token_that_tells(tmp_path: Path) -> None:
    """Wrong audience, lacking and excessive permissions and a wrong clock are warnings with a remedy."""
    said = token(aud="https://graph.microsoft.com", roles=["Mail.ReadWrite"], iat=SystemClock().time() + 4000)
    async with scripted_server(answering) as server:
        steps = await with_token(tmp_path, server, said)
    remarks = [step for step in steps if step.outcome == "warning"]
    begin = [
        "the token is for https://graph.microsoft.com, not for https://outlook.office365.com",
        "the token has no permission IMAP.AccessAsApp or IMAP.AccessAsUser.All",
        "the token holds Mail.ReadWrite for every mailbox of the tenant",
        "this machine's clock is -4000 s off the provider's",
    ]
    assert [step.detail[:80] for step in remarks] == [detail[:80] for detail in begin]
    assert all(step.remedy for step in remarks)


async def test_token_with_several_audiences(tmp_path: Path) -> None:
    """A token for several resources is sound if the right one is among them."""
    said = token(aud=["https://else.example", "https://outlook.office365.com/"], scp="IMAP.AccessAsUser.All")
    async with scripted_server(answering) as server:
        steps = await with_token(tmp_path, server, said)
    assert {step.outcome for step in steps} == {"ok", "skipped"}


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": "https://\x1b[2J\u202e" + "x" * 1000, "roles": ["Mail.\x1b[2J"]},
        {"aud": [{}, ["https://x"], 7], "roles": [{}, [], None, 10**400]},
        {"aud": {"a": 1}, "roles": {"Mail.Read": 1}, "scp": 7},
        {"iat": 10**400},
        {"iat": 1e308},
        {"iat": float("nan")},
        {"iat": True},
        {"roles": ["Mail." + "x" * 50] * 60},
    ],
)
async def test_token_that_lies(tmp_path: Path, claims: dict[str, Any]) -> None:
    """Whatever a token says, the doctor goes on to the login, and shows nothing that is not fit to show."""
    async with scripted_server(answering) as server:
        steps = await with_token(tmp_path, server, token(**claims))
    assert ("folder", "ok") in told(steps)
    assert all(step.detail.isprintable() and len(step.detail) < 400 for step in steps)


OBJECT_ID = "0f7a6a2e-58d1-4b5c-9a55-3f3c1f2d7a10"


@pytest.mark.parametrize(
    ("claims", "remedy"),
    [
        ({"oid": OBJECT_ID}, f"Compare the object id in Get-ServicePrincipal with {OBJECT_ID}"),
        ({"oid": "ask\x1b[2J"}, "Correct the credentials"),
        ({"oid": OBJECT_ID, "scp": "IMAP.AccessAsUser.All"}, "Correct the credentials"),
    ],
)
async def test_token_that_the_server_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, claims: dict[str, str], remedy: str
) -> None:
    """If Exchange does not know the service principal, the login shows the object id that it must have."""
    monkeypatch.setitem(ANSWERS, b"AUTHENTICATE", [b"NO AUTHENTICATE failed."])
    rights = {"roles": ["IMAP.AccessAsApp"]} if "scp" not in claims else {}
    said = token(aud="https://outlook.office365.com", iat=SystemClock().time(), **rights, **claims)
    async with scripted_server(answering) as server:
        steps = await with_token(tmp_path, server, said)
    assert (steps[-1].name, steps[-1].reason) == ("login", "auth_failed")
    assert steps[-1].remedy.startswith(remedy)


async def test_token_without_any_permission(tmp_path: Path) -> None:
    """Without consent, a token has no permissions at all, which is told before the login is tried."""
    said = token(aud="https://outlook.office365.com", iat=SystemClock().time())
    async with scripted_server(answering) as server:
        steps = await with_token(tmp_path, server, said)
    assert steps[1].detail == "the token has no permission IMAP.AccessAsApp or IMAP.AccessAsUser.All"
    assert steps[1].remedy.endswith("to the application, and grant consent.")


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        ("AADSTS65001: The user or administrator has not consented.", "Grant admin consent"),
        ("AADSTS700024: Client assertion is not within its valid time range.", "Set this machine's clock"),
        ("AADSTS7000222: The provided client secret keys are expired.", "Make a new client secret"),
        ("AADSTS700016: Application not found", "Correct client_id and tenant"),
        ("nothing known", "Correct client_id and client_secret"),
    ],
)
async def test_token_that_is_refused(tmp_path: Path, error: str, remedy: str) -> None:
    """A refusal by the provider is the token step, before any connection to the mail server."""
    said = answer({"error": "invalid_client", "error_description": error}, 401)
    async with scripted_server(answering) as server:
        steps = await with_token(tmp_path, server, said)
        assert server.received == []
    assert told(steps) == [("token", "unknown")]
    assert steps[0].reason == "token_refused"
    assert steps[0].remedy.startswith(remedy)


async def examined_by_graph(directory: Path, graph: GraphDouble, **oauth2: bool) -> list[Step]:
    """Return the steps for a mailbox behind Graph."""
    (directory / "secret").write_text(graph.entra.secret)
    entry = {
        "provider": "microsoft",
        "tenant": graph.entra.tenant,
        "client_id": graph.entra.client_id,
        "client_secret": {"file": "secret"},
        "authority": graph.entra.url,
    }
    server = {"protocol": "graph", "oauth2": "contoso", "host": "127.0.0.1", "port": graph.port}
    address = "canary@contoso.com"
    site = {
        "agent": {"ledger": f"sqlite:{directory}/ledger.db"},
        "oauth2": {"contoso": entry | oauth2},
        "servers": {"graph": server | {"tls": "none", "allow_insecure_auth": True}},
        "mailboxes": {
            "canary": {"address": address, "server": "graph", "username": address, "oauth2": "contoso"}
        },
        "probes": [{"name": "mx", "kind": "mx", "interval": "60s", "domain": "example.com"}],
    }
    path = directory / "site.yaml"
    path.write_text(yaml.safe_dump(site))
    async with open_runtime(load(path), SystemClock(), "doctor") as runtime:
        return [step async for step in MailboxDoctor("canary", runtime).steps()]


@pytest.mark.parametrize(
    ("is_granted", "expected"),
    [
        (True, [("dns", "ok"), ("tcp", "ok"), ("tls", "ok"), ("folder", "ok"), ("message", "skipped")]),
        (False, [("folder", "failed")]),
    ],
)
async def test_mailbox_by_graph(tmp_path: Path, *, is_granted: bool, expected: list[tuple[str, str]]) -> None:
    """A mailbox that is read through Graph is examined up to its folder; one not granted fails there."""
    async with graph_double(SystemClock()) as graph:
        graph.granted = {"canary@contoso.com"} if is_granted else set()
        steps = await examined_by_graph(tmp_path, graph)
    assert ("token", "ok") in told(steps)
    assert [step for step in told(steps) if step[0] != "token"] == expected
    if not is_granted:
        assert (steps[-1].reason, "Mail.ReadWrite" in steps[-1].remedy) == ("not_granted", True)


async def test_rights_to_ask_the_tenant(tmp_path: Path) -> None:
    """Each right that the configuration counts on is tried, the missing one named, and the rest goes on."""
    async with graph_double(SystemClock()) as graph:
        graph.entra.roles += ["ServiceHealth.Read.All"]
        steps = await examined_by_graph(tmp_path, graph, message_trace=True, service_health=True)
        assert graph.tenant.asked == [TRACES, ISSUES]
    assert told(steps)[:3] == [("token", "ok"), ("token", "warning"), ("trace", "warning")]
    trace, health = steps[2:4]
    assert (trace.reason, trace.remedy) == (
        "not_granted",
        "Add the application permission ExchangeMessageTrace.Read.All of Microsoft Graph, and grant consent.",
    )
    assert told([health]) == [("health", "ok")]
    assert ("folder", "ok") in told(steps)


async def test_message_traces_without_their_service(tmp_path: Path) -> None:
    """A tenant without Microsoft's service principal for traces is told how to create it."""
    said = "Service principal-less Authentication failed: the service principal for App ID "
    said += "8bd644d1-64a1-4d4b-ae52-2e0cbf64e373 was not found."
    refusal = Answer(401, {"error": {"code": "Unauthorized", "message": said}})
    async with graph_double(SystemClock()) as graph:
        graph.instead = lambda request: refusal if "messageTraces" in request.path else None
        steps = await examined_by_graph(tmp_path, graph, message_trace=True)
    trace = next(step for step in steps if step.name == "trace")
    assert trace.outcome == "warning"
    assert "New-MgServicePrincipal -AppId 8bd644d1-64a1-4d4b-ae52-2e0cbf64e373" in trace.remedy


async def test_tenant_that_is_not_to_be_asked(tmp_path: Path) -> None:
    """Without these settings, nothing is asked about the tenant."""
    async with graph_double(SystemClock()) as graph:
        steps = await examined_by_graph(tmp_path, graph)
        assert graph.tenant.asked == []
    assert {"trace", "health"}.isdisjoint(step.name for step in steps)
