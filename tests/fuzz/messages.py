"""Targets for stored messages: reading any message gives a result within its limits."""

from __future__ import annotations

import json
import math
import re

from probes.core.reasons import Area
from probes.messages import bounce, bounce_words, mime
from probes.messages.authentication_results import METHODS
from probes.messages.authentication_results import results as authentication_results
from probes.messages.auto_reply import is_auto_reply
from probes.messages.bounce import read_report
from probes.messages.content_digest import digest_of
from probes.messages.exchange_report import STAGES, exchange_report
from probes.messages.header_section import first_value_of, split, values_of, without_comments
from probes.messages.hops import HOPS_LIMIT, hops, waits
from probes.messages.junk import junk_mark
from probes.messages.synthetic_message import compose, subject_token, token_text
from probes.messages.token import Token, TokenSigner, token_in
from tests.corpus.files import ENVELOPE_ID, TOKEN, names
from tests.corpus.files import octets as octets_of_file
from tests.fuzz.target import Target, require_shown

HEADER_LIMIT = 64 * 1024
_SIGNER = TokenSigner(b"key of the fuzzer")
_SIGNED = _SIGNER.sign(Token("trip", "0" * 32, 1_700_000_000_000_000))
_CODE = re.compile(r"[245]\.[0-9]{1,3}\.[0-9]{1,3}")
_ACTIONS = {"failed", "delayed", "delivered", "relayed", "expanded"}


def header_section(octets: bytes) -> None:
    """Split a message and read its fields."""
    head, body = split(octets)
    assert head + body == octets or len(head) + len(body) in range(len(octets) - 4, len(octets))
    assert octets.startswith(head)
    assert octets.endswith(body)
    for name in ("X-A", "Subject", "Received"):
        values = values_of(octets, name)
        assert values == values_of(head, name), "a field was read from the body"
        assert first_value_of(octets, name) == (values[0] if values else "")
        for value in values:
            assert "\n" not in value
            assert len(without_comments(value)) <= len(value)


def mime_parts(octets: bytes) -> None:
    """Read a message's type, parts and subject."""
    head, body = split(octets)
    media_type, parameters = mime.content_type(head)
    assert media_type == media_type.strip().lower()
    mime.decoded_subject(head)
    found = mime.parts(body, parameters.get("boundary", ""))
    assert len(found) <= mime.PARTS_LIMIT
    for part_header, part_body in found:
        assert len(part_header) + len(part_body) <= len(body)
        assert len(mime.decoded(part_header, part_body)) <= len(part_body)


def report(octets: bytes) -> None:
    """Read a delivery report, whole and truncated in the middle."""
    for raw in (octets, octets[: len(octets) // 2]):
        found = read_report(raw)
        if found is None:
            continue
        for text in (found.diagnostic, found.reporting_mta, found.recipient):
            require_shown(text)
        assert found.action in _ACTIONS
        assert _CODE.fullmatch(found.enhanced_status_code)
        assert (found.reason is not None) is (found.action == "failed")
        assert found.reason is None or found.reason.area is Area.MESSAGE
        if found.token is not None:
            assert _SIGNER.verify(found.token) is None or _SIGNED.encode() in b"".join(octets.split())
        if found.envelope_id is not None:
            assert _SIGNER.verify_envelope_id(found.envelope_id) is None


def bounce_notice(octets: bytes) -> None:
    """Read the notice of a report."""
    text = octets.decode("utf-8", "backslashreplace")
    assert bounce_words.action_in(text) in {None, "failed", "delayed"}
    code = bounce_words.code_in(text)
    assert code is None or _CODE.fullmatch(code)
    assert len(bounce_words.excerpt(text)) <= bounce_words.TEXT_CHARACTERS
    assert bounce_words.reason_of("5.0.0", text).area is Area.MESSAGE
    assert bounce_words.reason_of(code or "5.1.1", "", text[:1000]).area is Area.MESSAGE


def received(octets: bytes) -> None:
    """Read the hops of a message, and what Exchange wrote about them."""
    found = hops(octets, sent_at=1_700_000_000.0, arrived_by=1_700_000_100.0)
    assert len(found) <= HOPS_LIMIT
    for hop in found:
        require_shown(hop.by, 255)
        require_shown(hop.sender, 255)
        require_shown(hop.protocol, 60)
        json.dumps(hop.as_object(), allow_nan=False)
    assert all(math.isfinite(seconds) and seconds >= 0.0 for seconds in waits(found).values())
    name = b"X-MS-Exchange-Organization-MessageLatency: "
    for fields in (octets, name + octets):
        if (report := exchange_report(fields, longest=60.0)) is not None:
            json.dumps(report.as_object(), allow_nan=False)
            assert report.stages.keys() <= set(STAGES)
            assert all(0.0 <= seconds <= 61.0 for seconds in report.stages.values())
            for server, build in report.builds.items():
                require_shown(server, 255)
                require_shown(build, 23)
            assert all(len(word) <= 6 for word in (report.scl, report.sfv, report.cat))


def authentication(octets: bytes) -> None:
    """Read the receiving host's SPF, DKIM and DMARC results."""
    for authserv_id in (None, "mx.example.com"):
        found = authentication_results(octets, authserv_id)
        if found is not None:
            require_shown(found.authserv_id, 255)
            assert found.methods.keys() <= set(METHODS)
            assert all(len(word) < 20 for word in found.methods.values())


def filter_marks(octets: bytes) -> None:
    """Look for marks of junk filters and auto-responders."""
    mark = junk_mark(octets)
    assert mark is None or mark.encode() in octets.lower()
    assert is_auto_reply(octets) in {True, False}


def digest(octets: bytes) -> None:
    """Compute the digest of a message, with either line end."""
    found = digest_of(octets)
    assert found is None or re.fullmatch("[0-9a-f]{32}", found)


def token(octets: bytes) -> None:
    """Look for our token in all places of a message; an unsigned one must never verify."""
    text = octets.decode("utf-8", "backslashreplace")
    for said in (text, token_in(text), token_text(octets), subject_token(octets), *text.split()):
        if said is not None and _SIGNER.verify(said) is not None:
            assert said == _SIGNED
        assert said is None or _SIGNER.verify_envelope_id(said) is None


_NAME = re.compile(r"[^A-Za-z0-9._-]")


def composed(octets: bytes) -> None:
    """Compose a message from valid settings; reading it must give the same values."""
    name, _, rest = octets.decode("utf-8", "replace").partition("\n")
    probe = "p" + _NAME.sub("", name)[:62]
    signed = _SIGNER.sign(Token(probe, "0123456789abcdef" * 2, 1_700_000_000_000_000))
    message = compose(
        probe=probe,
        location="l" + _NAME.sub("", rest)[:62],
        sender="canary@example.com",
        recipient="canary@example.com",
        run="0123456789abcdef" * 2,
        token=signed,
        created_at=1_700_000_000.0,
        attachment_octets=len(octets) % 300,
        invites_reply=bool(len(octets) % 2),
    )
    assert max(map(len, message.content.split(b"\r\n"))) <= 998  # RFC 5322 section 2.1.1
    assert token_text(message.content) == subject_token(message.content) == signed
    assert digest_of(message.content) == message.digest
    assert digest_of(message.content.replace(b"\r\n", b"\n")) == message.digest
    assert is_auto_reply(message.content) is False
    assert junk_mark(message.content) is None
    assert read_report(message.content) is None


_MESSAGE = compose(
    probe="trip",
    location="here",
    sender="canary@example.com",
    recipient="canary@example.com",
    run="0" * 32,
    token=_SIGNED,
    created_at=1_700_000_000.0,
    attachment_octets=100,
).content
_FIELDS = (
    b"\r\n",
    b"\r\n ",
    b"\r\n\r\n",
    b": ",
    b"Subject: ",
    b"X-A:",
    b"X-A \t:",
    b"Received: ",
    b"(",
    b")",
    b'"',
)
_REPORTS = tuple(octets_of_file("bounces", name) for name in names("bounces"))
_RECEIVED = (
    b"Received: from a.example.net (a.example.net [192.0.2.1]) by b.example.net with ESMTPS id x; "
    b"Tue, 14 Nov 2023 22:14:20.250 +0100 (CET)\r\n"
    b"Received: by c.example.net id y via LMTP; 14 Nov 23 22:13:20 GMT\r\n\r\n"
)
_AUTHENTICATION = (
    b"Authentication-Results: mx.example.com 1; spf=pass (x) smtp.mailfrom=a; dkim/1=hardfail; dmarc=none\r\n"
    b"Received: x\r\nAuthentication-Results: mx.example.com; spf=fail\r\n\r\n"
)
_MARKS = (
    b"X-Spam-Status: No, score=1\r\nX-Bogosity: Spam, tests\r\nX-Site-MailScanner-SpamCheck: spam, x\r\n",
    b"X-Forefront-Antispam-Report: CIP:192.0.2.1;SCL:5;SFV:SPM;CAT:SPM\r\nPrecedence: auto_reply\r\n",
    b"X-Proofpoint-Spam-Details: rule=inbound_spam policy=x\r\nX-MS-Exchange-Organization-SCL: 6\r\n",
    b"X-Rspamd-Action: add header\r\nAuto-Submitted: (a) auto-replied; x\r\nX-Autoreply: yes\r\n",
)

TARGETS = (
    Target(
        "header_section",
        header_section,
        (_MESSAGE, _RECEIVED, b"X-A: a\n b\n\nX-A: c"),
        _FIELDS,
        HEADER_LIMIT,
    ),
    Target(
        "mime",
        mime_parts,
        (
            _MESSAGE,
            b'Content-Type: multipart/mixed; boundary="a\\"b" (c)\r\n\r\n--a"b\r\n'
            b'Content-Transfer-Encoding: quoted-printable\r\n\r\na=20=\r\nb\r\n--a"b\r\n'
            b'Content-Transfer-Encoding: base64\r\n\r\nYQ==\r\n--a"b--\r\n',
            b"Subject: =?utf-8?b?YQ==?= =?iso-8859-1*de?q?=e4_?=\r\n\r\n",
        ),
        (
            *_FIELDS,
            b"=?utf-8?q?",
            b"=?utf-8?b?",
            b"=?a?b?b?=",
            b"?=",
            b"=\r\n",
            b"=3D",
            b"\n--b",
            b"; boundary=",
            b"\\",
        ),
        HEADER_LIMIT,
    ),
    Target(
        "report",
        report,
        _REPORTS,
        (
            *_FIELDS,
            *(
                b"Action: failed\r\n",
                b"Status: 5.1.1\r\n",
                b"Diagnostic-Code: smtp; ",
                b"X-Mailsonde-Token: ",
            ),
            *(b"Content-Type: message/delivery-status\r\n", b"Content-Transfer-Encoding: base64\r\n"),
            *(TOKEN.encode(), ENVELOPE_ID.encode(), _SIGNED.encode(), b"550 5.1.1 ", b"(#5.1.1)"),
        ),
        bounce.REPORT_LIMIT,
    ),
    Target(
        "bounce_notice",
        bounce_notice,
        tuple(raw.partition(b"\r\n\r\n")[2][:2000] for raw in _REPORTS[::8]),
        (
            *(
                b"user ",
                b"mailbox ",
                b"unknown ",
                b"550 5.1.1 ",
                b"550-",
                b"(#5.1.1)",
                b"over quota ",
                b"rate ",
            ),
            *(
                b"address ",
                b"account ",
                b"host ",
                b"size ",
                b"message ",
                b"not ",
                b"\n",
                b"0 hours ",
                b"deliver",
            ),
        ),
        bounce_words.TEXT_CHARACTERS,
    ),
    Target(
        "received",
        received,
        (_RECEIVED, _MESSAGE),
        (
            *_FIELDS,
            b"; ",
            b"from ",
            b"by ",
            b"with ",
            b"14 Nov 2023 ",
            b"22:14:20",
            b".5",
            b" +0100",
            b" -9999",
            b"GMT",
        ),
        HEADER_LIMIT,
    ),
    Target(
        "authentication_results",
        authentication,
        (_AUTHENTICATION,),
        (*_FIELDS, b"Authentication-Results:", b"spf=", b"dkim = ", b"/1", b";", b"mx.example.com"),
        HEADER_LIMIT,
    ),
    Target(
        "filter_marks",
        filter_marks,
        _MARKS,
        (*_FIELDS, b"X-a-", b"MailScanner", b"rule=", b"SCL:"),
        HEADER_LIMIT,
    ),
    Target(
        "digest",
        digest,
        (
            _MESSAGE,
            _MESSAGE.replace(b"\r\n", b"\n"),
            b"Content-Transfer-Encoding: quoted-printable\r\n\r\na=20=\r\n",
        ),
        (
            *_FIELDS,
            b"=\r\n",
            b" \r\n",
            b"Content-Transfer-Encoding: base64\r\n",
            b"charset=iso-8859-1",
            b"\r",
        ),
        HEADER_LIMIT,
    ),
    Target(
        "token",
        token,
        (_MESSAGE, _SIGNED.encode(), ENVELOPE_ID.encode(), b"Subject: =?utf-8?q?" + _SIGNED.encode() + b"?="),
        (
            *_FIELDS,
            b"X-Mailsonde-Token:",
            b"mailsonde1:",
            b"a" * 32,
            b":",
            b"mailsonde-envelope1:",
            b"=?utf-8?q?",
        ),
        HEADER_LIMIT,
    ),
    Target("composed", composed, (b"trip\nhere", b""), (b"\n", b"--", b"."), 200),
)
