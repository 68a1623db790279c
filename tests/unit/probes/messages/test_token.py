"""Tokens: forged messages count for nothing."""

from __future__ import annotations

import email
import email.policy
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.messages.synthetic_message import compose, token_text
from probes.messages.token import HEADER, Token, TokenSigner

SIGNER = TokenSigner(b"the agent's key")
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", fullmatch=True)
TOKENS = st.builds(
    Token,
    probe=NAMES,
    run=st.text("0123456789abcdef", min_size=32, max_size=32),
    created_us=st.integers(0, 9_999_999_999_999_999),
)
EXAMPLE = Token("hq-roundtrip", "0" * 32, 1_700_000_000_000_000)


@given(TOKENS)
def test_signed_token_verifies(token: Token) -> None:
    """A signed token is read back complete."""
    assert SIGNER.verify(SIGNER.sign(token)) == token


@given(TOKENS, st.data())
def test_any_changed_character_is_refused(token: Token, data: st.DataObject) -> None:
    """Any changed character invalidates a token."""
    text = SIGNER.sign(token)
    position = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.characters(codec="ascii").filter(lambda c: c != text[position]))
    assert SIGNER.verify(text[:position] + other + text[position + 1 :]) is None


@given(st.text(max_size=300))
def test_arbitrary_text_is_refused(text: str) -> None:
    """Text that was not signed is never accepted as a token."""
    assert SIGNER.verify(text) is None


def test_another_key_is_refused() -> None:
    """A token or envelope id signed by another agent proves nothing."""
    assert TokenSigner(b"another key").verify(SIGNER.sign(EXAMPLE)) is None
    assert TokenSigner(b"another key").verify_envelope_id(SIGNER.envelope_id(EXAMPLE.run)) is None


@given(TOKENS, st.data())
def test_envelope_id(token: Token, data: st.DataObject) -> None:
    """An envelope id gives its run, is signed, and needs no encoding in xtext (RFC 3461 section 4)."""
    text = SIGNER.envelope_id(token.run)
    assert SIGNER.verify_envelope_id(text) == token.run
    assert re.fullmatch(r"[!-*,-<>-~]{1,100}", text)  # RFC 3461 section 4
    position = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.characters(codec="ascii").filter(lambda c: c != text[position]))
    assert SIGNER.verify_envelope_id(text[:position] + other + text[position + 1 :]) is None


def test_token_and_envelope_id_do_not_stand_for_each_other() -> None:
    """Neither of the two can be made from the other."""
    token, envelope_id = SIGNER.sign(EXAMPLE), SIGNER.envelope_id(EXAMPLE.run)
    assert SIGNER.verify_envelope_id(token) is None
    assert SIGNER.verify(envelope_id) is None
    mac = token.rpartition(":")[2]
    assert SIGNER.verify_envelope_id(f"{envelope_id.rpartition(':')[0]}:{mac}") is None


def test_key_is_in_no_repr() -> None:
    """The key never shows in a repr."""
    assert "agent's key" not in repr(SIGNER)
    assert "agent's key" not in str(vars(TokenSigner).keys())


def _letter(probe: str = "hq-roundtrip") -> bytes:
    token = SIGNER.sign(Token(probe, "0" * 32, 1_700_000_000_000_000))
    return compose(
        probe=probe,
        location="fra1",
        sender="canary@example.com",
        recipient="inbox@example.net",
        run="0" * 32,
        token=token,
        created_at=1_700_000_000.0,
    ).content


@pytest.mark.parametrize("probe", ["a", "n" * 63])
def test_message_is_well_formed(probe: str) -> None:
    """A parser finds no defect, every required field, and the token in header, subject and body."""
    raw = _letter(probe)
    message = email.message_from_bytes(raw, policy=email.policy.strict)
    token = SIGNER.sign(Token(probe, "0" * 32, 1_700_000_000_000_000))
    assert message.defects == []
    assert message["From"] == "mailsonde <canary@example.com>"
    assert message["To"] == "inbox@example.net"
    assert message["Date"] == "Tue, 14 Nov 2023 22:13:20 +0000"
    assert message["Message-ID"] == f"<{'0' * 32}@example.com>"
    assert message["Auto-Submitted"] == "auto-generated"
    assert message[HEADER] == token
    assert token in message["Subject"]
    body = message.get_content()
    assert token in body
    assert "test message of mailsonde" in body
    assert all(len(line) <= 998 for line in raw.split(b"\r\n"))
    assert raw.replace(b"\r\n", b"").count(b"\n") == 0
    assert raw.isascii()


def test_token_is_found_in_the_header_only() -> None:
    """The token field is found in the header section; the subject and the body prove nothing."""
    raw = _letter()
    assert token_text(raw) == SIGNER.sign(EXAMPLE)
    without_field = b"\r\n".join(line for line in raw.split(b"\r\n") if not line.startswith(HEADER.encode()))
    assert token_text(without_field) is None
    assert token_text(b"Subject: x\r\n\r\n" + HEADER.encode() + b": y\r\n") is None


@pytest.mark.parametrize("colon", [":", " :", "\t:"])
def test_folded_token_is_unfolded(colon: str) -> None:
    """Folding, even inside the token, and a blank before the colon do not hide the field."""
    token = SIGNER.sign(EXAMPLE)
    folded = f"{HEADER.upper()}{colon}\r\n {token[:40]}\r\n\t{token[40:]}\r\nSubject: x\r\n\r\n"
    assert token_text(folded.encode()) == token


@given(st.binary(max_size=2000))
def test_no_header_section_breaks_the_search(raw: bytes) -> None:
    """For any octets in a mailbox, the search returns a text or nothing."""
    assert token_text(raw) is None
    found = token_text(HEADER.encode() + b": " + raw)
    assert found is None or "\n" not in found
