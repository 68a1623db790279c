"""POP3 parsing, without a connection."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.protocols import pop3 as pop3
from probes.protocols.pop3 import Capabilities
from probes.protocols.replies import LONGEST_PAUSE


def fault_of_status(line: bytes, refusal: Reason = Reason.POP3_ERROR) -> ProbeFault:
    with pytest.raises(ProbeFault) as caught:
        pop3.status(line, refusal)
    return caught.value


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"-ERR [IN-USE] Do you have another session?", Reason.POP3_IN_USE),
        (b"-ERR [in-use] lower case", Reason.POP3_IN_USE),
        (b"-ERR [LOGIN-DELAY] wait", Reason.POP3_LOGIN_DELAY),
        (b"-ERR [AUTH] wrong", Reason.AUTH_FAILED),
        (b"-ERR [SYS/TEMP] busy", Reason.POP3_SYS_TEMP),
        (b"-ERR [SYS/PERM] broken", Reason.POP3_SYS_PERM),
        (b"-ERR [X-OTHER] unheard of", Reason.POP3_ERROR),
        (b"-ERR [unclosed", Reason.POP3_ERROR),
        (b"-ERR text and then [IN-USE]", Reason.POP3_ERROR),
        (b"-ERR", Reason.POP3_ERROR),
        (b"+OKAY", Reason.PROTOCOL_ERROR),
        (b"+ok", Reason.PROTOCOL_ERROR),
        (b"220 mail.test ESMTP", Reason.PROTOCOL_ERROR),
        (b"\x16\x03\x01\x00", Reason.PROTOCOL_ERROR),
        (b"", Reason.PROTOCOL_ERROR),
    ],
)
def test_what_a_status_line_means(line: bytes, reason: Reason) -> None:
    """A response code (RFC 2449 section 8) at the start gives the reason; otherwise it is a plain -ERR."""
    assert fault_of_status(line).reason is reason


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"-ERR Logon failure: unknown user name or bad password.", Reason.AUTH_FAILED),
        (b"-ERR [SYS/TEMP] no database", Reason.POP3_SYS_TEMP),
        (b"-ERR [IN-USE] locked", Reason.POP3_IN_USE),
    ],
)
def test_a_refused_login(line: bytes, reason: Reason) -> None:
    """A plain -ERR to a login blames the credentials; a response code keeps its meaning."""
    assert fault_of_status(line, Reason.AUTH_FAILED).reason is reason


def test_a_throttled_login_is_no_wrong_password() -> None:
    """Exchange's throttling, which has no response code, asks for a pause in seconds."""
    line = b"-ERR Request is throttled. Suggested Backoff Time: 299910 milliseconds"
    fault = fault_of_status(line, Reason.AUTH_FAILED)
    assert fault.reason is Reason.THROTTLED
    assert fault.retry_after == pytest.approx(299.91)


def test_no_server_silences_us_for_long() -> None:
    """Whatever pause a server asks for, it gets at most an hour."""
    throttled = b"-ERR Request is throttled. Suggested Backoff Time: 999999999 milliseconds"
    assert fault_of_status(throttled).retry_after == LONGEST_PAUSE
    assert Capabilities.parse([b"LOGIN-DELAY 999999"]).login_delay == LONGEST_PAUSE


def test_the_text_of_a_status() -> None:
    """A positive status gives its text, which may be empty."""
    assert pop3.status(b"+OK 2 320") == b"2 320"
    assert pop3.status(b"+OK") == b""


def test_capabilities() -> None:
    """CAPA's lines (RFC 2449) give tags in any case, SASL mechanisms and the login delay."""
    capabilities = Capabilities.parse(
        [b"top", b"UIDL", b"STLS", b"SASL PLAIN login", b"LOGIN-DELAY 900 USER", b"PIPELINING", b""]
    )
    assert capabilities.has("TOP")
    assert capabilities.has("STLS")
    assert not capabilities.has("RESP-CODES")
    assert capabilities.sasl_mechanisms == {"PLAIN", "LOGIN"}
    assert capabilities.login_delay == 900.0
    assert capabilities.listed()[:2] == ["LOGIN-DELAY 900 USER", "PIPELINING"]


@pytest.mark.parametrize("line", [b"LOGIN-DELAY", b"LOGIN-DELAY soon", b"LOGIN-DELAY 1e9", b"UIDL"])
def test_no_sound_login_delay(line: bytes) -> None:
    """A delay that is not a number of seconds is ignored."""
    assert Capabilities.parse([line]).login_delay is None


@pytest.mark.parametrize(
    ("banner", "timestamp"),
    [
        (b"POP3 server ready <1896.697170952@dbc.mtview.ca.us>", b"<1896.697170952@dbc.mtview.ca.us>"),
        (
            b"Dovecot <2a.3.655f7a1b.Zm9vYmFy+/w==@mail.test> ready",
            b"<2a.3.655f7a1b.Zm9vYmFy+/w==@mail.test>",
        ),
        (b"ready <12.34@[192.0.2.1]>", b"<12.34@[192.0.2.1]>"),
        (b"ready <no-at-sign>", None),
        (b"ready <two@at@signs>", None),
        (b"ready <a b@mail.test>", None),
        (b"ready <a..b@mail.test>", None),
        (b"ready <\x80\x81@mail.test>", None),
        (b'ready <"a\x01"@mail.test>', None),
        (b"ready <open@mail.test", None),
        (b"The Microsoft Exchange POP3 service is ready.", None),
    ],
)
def test_a_banners_time_stamp(banner: bytes, timestamp: bytes | None) -> None:
    """Only a valid message id offers APOP: other forms help an attacker to find the password."""
    assert pop3.timestamp_of(banner) == timestamp


def test_apops_digest() -> None:
    """The digest is that of RFC 1939's own example."""
    digest = pop3.apop_digest(b"<1896.697170952@dbc.mtview.ca.us>", "tanstaaf")
    assert digest == b"c4c9334bac560ecc979e58001b3e22fb"


def test_stat() -> None:
    """STAT gives messages and octets; anything after them is ignored."""
    assert pop3.parse_stat(b"2 320") == (2, 320)
    assert pop3.parse_stat(b"0 0 (empty)") == (0, 0)


@pytest.mark.parametrize("text", [b"", b"two 320", b"-1 5", b"9" * 16 + b" 1", "٣ ٤".encode()])
def test_no_stat(text: bytes) -> None:
    """An answer that does not begin with a decimal number is a protocol error."""
    with pytest.raises(ProbeFault) as caught:
        pop3.parse_stat(text)
    assert caught.value.reason is Reason.PROTOCOL_ERROR


@pytest.mark.parametrize("octets", [b"-1891234567", b"", b"many", b"9" * 16])
def test_a_count_without_octets(octets: bytes) -> None:
    """If the octets are invalid, as after an overflow, the number of messages still counts."""
    assert pop3.parse_stat(b"20437 " + octets) == (20437, None)


@pytest.mark.parametrize("unique_id", ["~", "~" * 70, "~" * 71, "~" * 2000])
def test_a_unique_id(unique_id: str) -> None:
    """A line of UIDL gives a message number and an id, which may be longer than RFC 1939 allows."""
    assert pop3.parse_unique_id(f"17 {unique_id}".encode()) == (17, unique_id)


@pytest.mark.parametrize(
    "line",
    [b"", b"1", b"1 ", b"x abc", b"1 a b", b"1 a\x00b", "1 é".encode(), b"9" * 16 + b" a"],
)
def test_no_unique_id(line: bytes) -> None:
    """Any other line of UIDL gives no id."""
    assert pop3.parse_unique_id(line) is None


@given(st.lists(st.one_of(st.sampled_from([b"", b".", b"..", b".a"]), st.binary(max_size=20))))
def test_dot_stuffing_is_undone(lines: list[bytes]) -> None:
    """Stuffed lines (RFC 1939 section 3) are restored, and only a single dot ends the response."""
    stuffed = [b"." + line if line.startswith(b".") else line for line in lines]
    assert [pop3.unstuffed(line) for line in stuffed] == lines
    assert pop3.unstuffed(b".") is None


@given(st.binary(max_size=200))
def test_garbage_is_understood_or_refused(line: bytes) -> None:
    """Any octets are parsed or raise the expected fault."""
    Capabilities.parse([line]).listed()
    pop3.timestamp_of(line)
    for read in (pop3.status, pop3.parse_stat, pop3.parse_unique_id):
        with suppress(ProbeFault):
            read(line)
