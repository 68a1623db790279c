"""Credentials that a server repeats in any form, and what is shown instead."""

from __future__ import annotations

import base64
import html
import json
import secrets
import traceback
import tracemalloc
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest

from probes.core.clock import SystemClock
from probes.core.faults import ProbeFault, legible
from probes.core.reasons import Reason
from probes.core.redaction import WITHHELD, Redaction
from probes.core.verdict import PhaseTimer

USER = "canary@example.com"
PASSWORD = "Sup3r!Sec ret/P4ssw0rd&x"
PLAIN = f"\0{USER}\0{PASSWORD}"


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.fixture
def redaction() -> Redaction:
    made = Redaction()
    made.add(PASSWORD, _base64(PLAIN), "0123456789abcdef0123456789abcdef")
    return made


ECHOES = {
    "clear": PASSWORD,
    "upper case": PASSWORD.upper(),
    "in a word": f"x{PASSWORD}x",
    "tail": PASSWORD[3:],
    "part": PASSWORD[9:16],
    "spaced": " ".join(PASSWORD),
    "two lines": f"{PASSWORD[:4]}\n535 {PASSWORD[4:10]}",
    "two escaped lines": f"{PASSWORD[:4]}\\n{PASSWORD[4:10]}",
    "URL": quote(PASSWORD, safe=""),
    "form": quote_plus(PASSWORD),
    "HTML": html.escape(PASSWORD),
    "JSON": json.dumps(PASSWORD).replace("/", "\\/"),
    "hexadecimal": PASSWORD.encode().hex(),
    "base64": _base64(PASSWORD),
    "base64 in lower case": _base64(PASSWORD).lower(),
    "base64 with user": _base64(f"{USER}:{PASSWORD}"),
    "base64 of PASS": _base64(f"PASS {PASSWORD}"),
    "base64 of PLAIN": _base64(PLAIN),
    "tail of PLAIN": _base64(PLAIN)[12:],
    "PLAIN in two lines": f"{_base64(PLAIN)[:6]}\n535 {_base64(PLAIN)[6:]}",
    "decoded PLAIN": PLAIN,
    "digest": "0123456789ABCDEF0123456789ABCDEF",
}


@pytest.mark.parametrize("echo", ECHOES.values(), ids=ECHOES)
def test_an_echo_is_withheld_and_its_codes_are_kept(echo: str, redaction: Redaction) -> None:
    """If a server repeats a password in any form, only its reply's codes are shown."""
    assert redaction.text(f"535 5.7.8 not {echo} here") == f"535 5.7.8 {WITHHELD}"
    assert redaction.text(legible(f"535 not {echo}")) == f"535 {WITHHELD}"


@pytest.mark.parametrize(
    ("reply", "shown"),
    [
        (f"-ERR [AUTH] {PASSWORD}", f"-ERR [AUTH] {WITHHELD}"),
        (f"[AUTH] {PASSWORD}", f"[AUTH] {WITHHELD}"),
        (f"M2 NO [AUTHENTICATIONFAILED] {PASSWORD}", f"M2 NO [AUTHENTICATIONFAILED] {WITHHELD}"),
        (f"* OK [CAPABILITY {PASSWORD}] in", f"* OK {WITHHELD}"),
        (f"* {PASSWORD}", f"* {WITHHELD}"),
        (PASSWORD, WITHHELD),
    ],
)
def test_codes_of_each_protocol_are_kept(reply: str, shown: str, redaction: Redaction) -> None:
    """The response codes of POP3 and IMAP are still shown."""
    assert redaction.text(reply) == shown


@pytest.mark.parametrize("password", ["535", "abc", "[auth]"])
def test_a_short_password_is_withheld_as_a_whole(password: str) -> None:
    """A password as short as a code is not shown in place of a code."""
    redaction = Redaction()
    redaction.add(password)
    assert redaction.text(f"{password.upper()} no") == WITHHELD
    assert redaction.text("no [AUT] 53 abx") == "no [AUT] 53 abx"


@pytest.mark.parametrize(
    "text",
    [
        "535 5.7.8 Error: authentication failed: UGFzc3dvcmQ6",
        "-ERR [AUTH] Invalid login or password",
        "550 5.1.1 <canary@example.com>: Recipient address rejected: 20241126 0706172656",
        "M3 NO [AUTHENTICATIONFAILED] Authentication failed.",
    ],
)
def test_what_a_server_says_otherwise_is_shown(text: str, redaction: Redaction) -> None:
    """A refused login is shown in the server's own words and codes."""
    assert redaction.text(text) == text


@pytest.mark.parametrize(
    "password", ["p\täss word", "p\x01ass\x02wo\x03rd", 'a"b\\c"d\\e"f', "пароль-пароль"]
)
def test_unusual_characters(password: str) -> None:
    """A password with tabs, controls, quotes or other letters is found plain, escaped and quoted."""
    redaction = Redaction()
    redaction.add(password)
    quoted = password.replace("\\", "\\\\").replace('"', '\\"')
    for echo in (password, legible(password.encode()), quoted):
        assert redaction.text(f"no {echo}") == WITHHELD


TOKEN_FORMS = {
    "clear": str,
    "upper case": str.upper,
    "URL": lambda token: quote(token, safe=""),
    "hexadecimal": lambda token: token.encode().hex(),
    "base64": _base64,
    "base64 of XOAUTH2": lambda token: _base64(f"user={USER}\1auth=Bearer {token}\1\1")[48:-8],
}


def _token() -> str:
    """Return a token of 1,600 characters, as Microsoft issues them; in base64, JSON begins with ``eyJ``."""
    parts = (b'{"typ"' + secrets.token_bytes(54), secrets.token_bytes(900), secrets.token_bytes(240))
    return ".".join(base64.urlsafe_b64encode(part).decode() for part in parts)


@pytest.mark.parametrize("form", TOKEN_FORMS.values(), ids=TOKEN_FORMS)
def test_any_part_of_a_token_is_withheld(form: Callable[[str], str]) -> None:
    """Wherever a server's text begins and ends in a token, in any form, 23 characters of it are not shown."""
    redaction, token = Redaction(), _token()
    redaction.add_token(token)
    echo = form(token)
    for begin in range(0, len(echo) - 23, 7):
        assert redaction.text(f"{'no ' * (begin % 5)}{echo[begin : begin + 23]}") == WITHHELD, begin
    for said in (
        f"not {echo} here",
        f"cut: {echo[:23]}",
        " ".join(echo[50:73]),
        f"{echo[:12]}\n535 {echo[12:23]}",
    ):
        assert redaction.text(f"535 5.7.8 {said}") == f"535 5.7.8 {WITHHELD}"


def test_the_beginning_of_a_token_is_withheld() -> None:
    """Where an answer is cut after 12 characters of a token, they are not shown."""
    redaction, token = Redaction(), _token()
    redaction.add_token(token)
    for before in range(12):
        assert redaction.text(f"{'x' * before}{token[:12]}") == WITHHELD
    assert redaction.text(f"no {token[:11]}") == f"no {token[:11]}"
    assert (
        redaction.text("535 5.7.8 Error: authentication failed") == "535 5.7.8 Error: authentication failed"
    )


@pytest.mark.parametrize("length", [1, 8, 13, 23, 24])
def test_a_short_token_is_withheld(length: int) -> None:
    """A token that is no longer than a password is found wherever it stands."""
    redaction, token = Redaction(), _token()[:length]
    redaction.add_token(token)
    for before in range(12):
        assert redaction.text(f"{'-' * before}{token}-") == WITHHELD


def test_a_session_of_weeks_keeps_the_latest_tokens() -> None:
    """A session that has one token after the other withholds the latest, and its memory does not grow."""
    redaction, tokens = Redaction(), [_token() for _ in range(50)]
    for token in tokens:
        redaction.add_token(token)
    assert [redaction.text(token) == WITHHELD for token in tokens] == [False] * 46 + [True] * 4


def test_the_memory_of_many_tokens() -> None:
    """200 sessions with tokens of their own need no more than 10 KB each to withhold them."""
    tokens, redactions = [_token() for _ in range(200)], [Redaction() for _ in range(200)]
    tracemalloc.start()
    try:
        for token, redaction in zip(tokens, redactions, strict=True):
            redaction.add_token(token)
            assert redaction.text(f"535 {token}") == f"535 {WITHHELD}"
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held < 200 * 10_000


def test_values_keep_their_form(redaction: Redaction) -> None:
    """Lists, tables and numbers of a verdict are unchanged, except texts that repeat a password."""
    values = {
        "listed": ["STARTTLS", f"X-{PASSWORD}"],
        "table": {"junk": PASSWORD, "sent": "Sent"},
        "count": 3,
    }
    assert redaction.values(values) == {
        "listed": ["STARTTLS", WITHHELD],
        "table": {"junk": WITHHELD, "sent": "Sent"},
        "count": 3,
    }


@pytest.mark.parametrize(
    "text", [f"501 PASS {PASSWORD}", "501 " + "x" * 285 + PASSWORD], ids=["whole", "cut"]
)
def test_a_fault_that_leaves_a_phase_shows_no_secret(text: str) -> None:
    """A fault's text, log line and traceback have no password, but keep codes and reason."""
    phases = PhaseTimer(SystemClock())
    phases.transcript.redaction.add(PASSWORD)

    def refused() -> None:
        with phases.phase("mail"):
            raise ProbeFault(Reason.SMTP_REJECTED, text, reply_code=501, retry_after=3.0) from OSError(text)

    with pytest.raises(ProbeFault) as caught:
        refused()
    fault = caught.value
    assert fault.detail == f"501 {WITHHELD}"
    assert str(fault) == f"smtp_rejected: 501 {WITHHELD}"
    assert PASSWORD[:6] not in "".join(traceback.format_exception(fault))
    assert (fault.reason, fault.reply_code, fault.retry_after) == (Reason.SMTP_REJECTED, 501, 3.0)
