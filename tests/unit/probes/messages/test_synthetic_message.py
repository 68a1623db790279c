"""Finding our token in the subject of a returned message."""

from __future__ import annotations

import base64
import tracemalloc
from email.header import Header

import pytest

from probes.messages.synthetic_message import subject_token
from probes.messages.token import Token, TokenSigner

SIGNER = TokenSigner(b"key")
TOKEN = SIGNER.sign(Token("trip", "0" * 32, 1_700_000_000_000_000))


def encoded_word(text: str, encoding: str = "b", charset: str = "utf-8") -> str:
    octets = text.encode()
    how = (
        base64.b64encode(octets).decode() if encoding == "b" else "".join(f"={octet:02X}" for octet in octets)
    )
    return f"=?{charset}?{encoding}?{how}?="


@pytest.mark.parametrize(
    "subject",
    [
        f"mailsonde test message {TOKEN}",
        f"Re: Fwd: [EXTERNAL] mailsonde test message\r\n {TOKEN} (was: x)",
        f"Re: mailsonde test message {TOKEN[:40]}\r\n {TOKEN[40:]}",
        Header(f"Antw: Prüfung {TOKEN}", "utf-8", maxlinelen=60).encode(linesep="\r\n"),
        TOKEN,
        f"Re: mailsonde test message\r\n {TOKEN}",
        f"Automatic reply: [EXTERNAL] mailsonde test message {TOKEN} (out of office)",
        f"Fwd: {TOKEN[:40]}\r\n {TOKEN[40:]} [bulk]",
        f"Fwd: {TOKEN[:40]} \r\n\t {TOKEN[40:80]}\r\n\t{TOKEN[80:]}",
        f"{encoded_word('Réponse : ')} {TOKEN}",
        encoded_word(f"Re: {TOKEN}"),
        encoded_word(f"Re: {TOKEN}", "Q"),
        encoded_word(f"Re: {TOKEN}", charset="x-unheard-of"),
        encoded_word(f"Re: {TOKEN}", charset="utf-8*en"),
        f"{encoded_word(TOKEN[:30])}\r\n {encoded_word(TOKEN[30:], 'q')}",
        f"{encoded_word('AW: ' + TOKEN[:50])}\r\n {TOKEN[50:]}",
        f"=?utf-8?b?x?= {TOKEN}",
    ],
)
def test_token_survives_in_the_subject(subject: str) -> None:
    """The token is found, whatever a gateway or person adds around it or folds into it."""
    found = subject_token(f"X: y\r\nSubject: {subject}\r\n\r\nbody\r\n".encode())
    assert found == TOKEN
    assert SIGNER.verify(found) is not None


def test_token_in_body_is_no_subject() -> None:
    """A token in the body does not count as one in the subject."""
    assert subject_token(f"Subject: hello\r\n\r\nSubject: {TOKEN}\r\n".encode()) is None


@pytest.mark.parametrize(
    "fields",
    [
        "Subject: Re: mailsonde test message",
        f"Subject: {TOKEN[:-1]}",
        f"Subject: {TOKEN[:40]}-{TOKEN[40:]}",
        f"X-Subject: {TOKEN}",
        f"Subject: Re:\r\nComments: {TOKEN}",
        f"Subject: Re:\r\n\r\nSubject: {TOKEN}",
        f"Subject: {'x' * 5000} {TOKEN}",
    ],
)
def test_no_token_in_the_subject(fields: str) -> None:
    """A token that is incomplete, too far back or in another field does not count."""
    assert subject_token(f"{fields}\r\n".encode()) is None


def test_no_foreign_name_of_a_charset_is_kept() -> None:
    """Invented charset names do not make the agent's memory grow."""
    subjects = [f"Subject: =?x{number}-{'y' * 30}?q?a?=\r\n".encode() for number in range(2000)]
    subject_token(subjects[0])
    tracemalloc.start()
    for subject in subjects:
        subject_token(subject)
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert grown < 50_000
