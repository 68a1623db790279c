"""SASL mechanisms against their RFCs' examples, the choice among them, and refusals."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, Mapping

import pytest

from probes.core.faults import ProbeFault
from probes.core.mail_protocols import AUTH_METHODS
from probes.core.reasons import Reason
from probes.core.redaction import WITHHELD, Redaction
from probes.protocols.imap_session import ImapSession
from probes.protocols.pop3_session import Pop3Session
from probes.protocols.sasl import MECHANISMS, Mechanism, choose, log_in
from tests.fakes.ntlm import CHALLENGE


def mechanism(name: str, username: str, password: str) -> Mechanism:
    return MECHANISMS[name](username, password, Redaction())


def test_plain() -> None:
    """PLAIN's initial response is that of RFC 4616 section 4, and a server that asks gets it again."""
    plain = mechanism("PLAIN", "tim", "tanstaaftanstaaf")
    expected = b"AHRpbQB0YW5zdGFhZnRhbnN0YWFm"
    assert plain.initial_response() == expected
    assert plain.answer(b"") == expected


def test_plain_in_utf_8() -> None:
    """PLAIN has an empty authorization identity, and username and password in UTF-8."""
    expected = base64.b64encode("\0canary\0pässword".encode())
    assert mechanism("PLAIN", "canary", "pässword").initial_response() == expected


def test_login() -> None:
    """LOGIN begins with a challenge; username and password follow, with any prompts."""
    login = mechanism("LOGIN", "tim", "pässword")
    assert login.initial_response() is None
    assert login.answer(b"VXNlcm5hbWU6") == base64.b64encode(b"tim")
    assert login.answer(b"not base64") == base64.b64encode("pässword".encode())


def test_cram_md5() -> None:
    """CRAM-MD5 gives the response of the example in RFC 2195 section 2."""
    cram = mechanism("CRAM-MD5", "tim", "tanstaaftanstaaf")
    assert cram.initial_response() is None
    response = cram.answer(b"PDE4OTYuNjk3MTcwOTUyQHBvc3RvZmZpY2UucmVzdG9uLm1jaS5uZXQ+")
    assert response == b"dGltIGI5MTNhNjAyYzdlZGE3YTQ5NWI0ZTZlNzMzNGQzODkw"


@pytest.mark.parametrize("challenge", [b"not base64!", b"PHg", b"\xff\xfe"])
def test_a_challenge_that_makes_no_sense(challenge: bytes) -> None:
    """An undecodable challenge is the server's fault."""
    with pytest.raises(ProbeFault) as caught:
        mechanism("CRAM-MD5", "tim", "secret").answer(challenge)
    assert caught.value.reason is Reason.PROTOCOL_ERROR


CHALLENGES = {"NTLM": base64.b64encode(CHALLENGE)}
"""A challenge of each mechanism that does not take any text."""


WITHOUT_KDC = [name for name, each in MECHANISMS.items() if not each.needs_ticket]
"""The mechanisms that can be tried without a realm; test_kerberos.py has one for the others."""


@pytest.mark.parametrize("name", WITHOUT_KDC)
def test_a_server_that_never_stops_asking(name: str) -> None:
    """The number of challenges is limited."""
    exchange = mechanism(name, "tim", "secret")
    for _ in range(exchange.challenges):
        exchange.answer(CHALLENGES.get(name, b"PHg+"))
    with pytest.raises(ProbeFault) as caught:
        exchange.answer(b"PHg+")
    assert caught.value.reason is Reason.PROTOCOL_ERROR


@pytest.mark.parametrize(
    "name", [name for name in WITHOUT_KDC if not MECHANISMS[name].takes_token and name != "NTLM"]
)
def test_a_response_is_withheld_once_it_is_made(name: str) -> None:
    """Each response is secret before it is sent, in base64 and, if a digest, decoded."""
    redaction = Redaction()
    exchange = MECHANISMS[name]("tim", "tanstaaftanstaaf", redaction)
    responses = [response for response in [exchange.initial_response()] if response is not None]
    responses += [exchange.answer(b"PHg+") for _ in range(exchange.challenges)]
    secret = responses[-1].decode()
    assert redaction.text(f"-ERR what is {secret}") == f"-ERR {WITHHELD}"
    last_word = base64.b64decode(secret).decode().rpartition(" ")[2].rpartition("\0")[2]
    assert redaction.text(f"-ERR what is {last_word}") == f"-ERR {WITHHELD}"


@pytest.mark.parametrize(
    ("protocol", "own"),
    [("smtp", {}), ("pop3", Pop3Session.own_methods), ("imap", ImapSession.own_methods)],
)
def test_every_method_can_be_configured(protocol: str, own: Mapping[str, bool]) -> None:
    """``auth`` accepts exactly the methods that the protocol's sessions support."""
    assert {name.lower() for name in {*MECHANISMS, *own}} == AUTH_METHODS[protocol]


TOKEN = "eyJ0eXAiOiJKV1QifQ.eyJhdWQiOiJtYWlsIn0.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    ("name", "message", "acknowledgement"),
    [
        ("XOAUTH2", b"user=a=b@x\1auth=Bearer " + TOKEN.encode() + b"\1\1", b""),
        ("OAUTHBEARER", b"n,a=a=3Db@x,\1auth=Bearer " + TOKEN.encode() + b"\1\1", b"AQ=="),
    ],
)
def test_token(name: str, message: bytes, acknowledgement: bytes) -> None:
    """A token is sent in the mechanism's form, at once or when asked, and an error is acknowledged."""
    exchange = mechanism(name, "a=b@x", TOKEN)
    assert base64.b64decode(exchange.initial_response() or b"") == message
    assert base64.b64decode(exchange.answer(b" ")) == message
    error = base64.b64encode(b'{"status":"401","schemes":"bearer"}')
    assert exchange.answer(error) == acknowledgement
    assert exchange.explanation == "status 401"


@pytest.mark.parametrize("error", [b"no base64", b"e30=", b"W10=", base64.b64encode(b"[" * 20_000)])
def test_error_without_a_status(error: bytes) -> None:
    """A refusal without a status is quoted, and its exchange ends in order."""
    exchange = mechanism("OAUTHBEARER", "canary", TOKEN)
    assert exchange.answer(error) == b"AQ=="
    assert exchange.explanation.startswith(f"error {error[:20].decode()}")


@pytest.mark.parametrize("name", ["XOAUTH2", "OAUTHBEARER"])
def test_a_token_is_withheld(name: str) -> None:
    """Nothing that has 23 characters of a token is shown, in clear or as sent."""
    redaction = Redaction()
    response = MECHANISMS[name]("canary", TOKEN, redaction).initial_response() or b""
    for shown in (TOKEN, TOKEN[3:26], TOKEN.upper(), response.decode(), response[60:].decode()):
        assert redaction.text(f"535 5.7.8 what is {shown}") == f"535 5.7.8 {WITHHELD}"
    assert redaction.text("535 5.7.8 Authentication failed") == "535 5.7.8 Authentication failed"


@pytest.mark.parametrize(
    ("offered", "wanted", "chosen"),
    [
        ("PLAIN XOAUTH2 OAUTHBEARER", "auto", ["XOAUTH2"]),
        ("OAUTHBEARER XOAUTH2", "oauthbearer", ["OAUTHBEARER"]),
        ("LOGIN OAUTHBEARER USER", "auto", ["OAUTHBEARER"]),
    ],
)
def test_what_is_chosen_for_a_token(offered: str, wanted: str, chosen: list[str]) -> None:
    """A token is sent by a mechanism that takes one, and never as a password."""
    assert choose(offered.split(), wanted, encrypted=True, with_token=True, own=OWN) == chosen


def test_no_mechanism_for_a_token() -> None:
    """A server that takes only passwords gets no token."""
    with pytest.raises(ProbeFault) as caught:
        choose(["PLAIN", "USER"], "auto", encrypted=True, with_token=True, own=OWN)
    assert caught.value.reason is Reason.AUTH_NOT_OFFERED


OWN = {"USER": False, "APOP": True}


@pytest.mark.parametrize(
    ("offered", "wanted", "encrypted", "chosen"),
    [
        ("PLAIN LOGIN CRAM-MD5", "auto", True, ["PLAIN"]),
        ("PLAIN LOGIN CRAM-MD5", "auto", False, ["CRAM-MD5", "PLAIN"]),
        ("LOGIN PLAIN", "auto", True, ["PLAIN"]),
        ("USER APOP", "auto", True, ["USER"]),
        ("USER APOP", "auto", False, ["APOP", "USER"]),
        ("APOP CRAM-MD5 USER PLAIN", "auto", False, ["CRAM-MD5", "PLAIN"]),
        ("PLAIN LOGIN CRAM-MD5", "login", False, ["LOGIN"]),
        ("GSSAPI XOAUTH2 LOGIN", "auto", True, ["LOGIN"]),
        ("PLAIN CRAM-MD5 NTLM", "auto", True, ["NTLM", "PLAIN"]),
        ("PLAIN CRAM-MD5 NTLM", "auto", False, ["CRAM-MD5", "PLAIN"]),
        ("PLAIN NTLM", "auto", False, ["NTLM", "PLAIN"]),
        ("USER APOP NTLM", "auto", False, ["APOP", "USER"]),
        ("PLAIN NTLM", "ntlm", True, ["NTLM"]),
    ],
)
def test_what_is_chosen(offered: str, wanted: str, encrypted: bool, chosen: list[str]) -> None:
    """Without TLS, methods that hide the password come first, and one that sends it may follow.

    With TLS, NTLM comes first, and digests, which few servers can check, come last.
    """
    assert choose(offered.split(), wanted, encrypted=encrypted, own=OWN) == chosen


@pytest.mark.parametrize(
    ("offered", "wanted", "detail"),
    [
        (["XOAUTH2", "GSSAPI"], "auto", "wanted auto; the server offers: GSSAPI, XOAUTH2"),
        ([], "auto", "wanted auto; the server offers: none"),
        (["PLAIN"], "cram-md5", "wanted cram-md5; the server offers: PLAIN"),
    ],
)
def test_nothing_to_choose(offered: list[str], wanted: str, detail: str) -> None:
    """If no method fits, the detail has the wanted and the offered ones."""
    with pytest.raises(ProbeFault) as caught:
        choose(offered, wanted, encrypted=True)
    assert (caught.value.reason, caught.value.detail) == (Reason.AUTH_NOT_OFFERED, detail)


def server(tried: list[str], **faults: ProbeFault | None) -> Callable[[str], Awaitable[None]]:
    """Return attempts with a server that answers each method with its fault, or accepts it."""

    async def attempt(method: str) -> None:
        tried.append(method)
        if (fault := faults[method]) is not None:
            raise fault

    return attempt


def no(text: str = "no", reason: Reason = Reason.AUTH_FAILED) -> ProbeFault:
    return ProbeFault(reason, text)


async def test_a_refused_method_gives_way() -> None:
    """After a refusal, the next method is tried and logs in."""
    tried: list[str] = []
    await log_in(["APOP", "PLAIN"], server(tried, APOP=no(), PLAIN=None), Redaction())
    assert tried == ["APOP", "PLAIN"]


@pytest.mark.parametrize(
    ("first", "second", "reason", "detail"),
    [
        (no("[AUTH] no"), None, Reason.AUTH_FAILED, "APOP: [AUTH] no; PLAIN: no"),
        (no(), no("later", Reason.POP3_SYS_TEMP), Reason.POP3_SYS_TEMP, "APOP: no; PLAIN: later"),
        (no(), no("gone", Reason.CONNECTION_LOST), Reason.AUTH_FAILED, "APOP: no"),
        (no("", Reason.CONNECTION_LOST), None, Reason.CONNECTION_LOST, "APOP"),
        (no("busy", Reason.POP3_IN_USE), None, Reason.POP3_IN_USE, "APOP: busy"),
        (no("x" * 400), None, Reason.AUTH_FAILED, f"APOP: {'x' * 143}…; PLAIN: no"),
    ],
)
async def test_a_failed_login_names_its_methods(
    first: ProbeFault, second: ProbeFault | None, reason: Reason, detail: str
) -> None:
    """The fault has all failed methods and why; only refused credentials lead to a second attempt."""
    with pytest.raises(ProbeFault) as caught:
        await log_in(["APOP", "PLAIN"], server([], APOP=first, PLAIN=second or no()), Redaction())
    assert (caught.value.reason, caught.value.detail) == (reason, detail)


async def test_an_echoed_secret_is_withheld() -> None:
    """A refusal that repeats the password keeps only its code and the method's name."""
    redaction = Redaction()
    redaction.add("s3cret-Pa55word")
    with pytest.raises(ProbeFault) as caught:
        await log_in(["PLAIN"], server([], PLAIN=no("535 5.7.8 s3cret-Pa55word")), redaction)
    assert caught.value.detail == f"PLAIN: 535 5.7.8 {WITHHELD}"
