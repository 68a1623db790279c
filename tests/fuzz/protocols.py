"""Targets for protocol parsers, each a pure function of a server's or file's text."""

from __future__ import annotations

import base64
import dataclasses
import ssl
from contextlib import suppress
from typing import cast

import dns.message

from probes.core.faults import legible
from probes.core.reasons import Reason
from probes.core.redaction import Redaction
from probes.posture.mx import Gathered, Host, MxRecord, conclude, judge
from probes.protocols import dns as our_dns
from probes.protocols import imap, pop3, replies, resolver_files, sasl, smtp, tls
from probes.protocols.dns import Resolver, ResolverSettings
from tests.fuzz.target import Target, or_fault, require_shown

PASSWORD = "s3cret-Pa55word"


def smtp_reply(octets: bytes) -> None:
    """Read SMTP replies one after the other, and the extensions that each may offer."""
    closing = or_fault(smtp.closing_reply, octets)
    assert closing is None or closing.code == 421
    said = octets.replace(b"\r\n", b"\n")
    while (match := smtp.WHOLE_REPLY.match(said)) is not None:
        said = said[match.end() :]
        reply = or_fault(smtp.Reply.parse, match[0].removesuffix(b"\n"))
        if reply is None:
            continue
        assert 200 <= reply.code <= 599
        assert reply.enhanced_status_code is None or reply.enhanced_status_code[0] in "245"
        require_shown(reply.fault().detail)
        offered = smtp.extensions_of(reply.text)
        for listed in offered.listed:
            require_shown(listed, 100)
        assert all(keyword == keyword.upper() for keyword in offered.features)


def smtp_content(octets: bytes) -> None:
    """Stuff a message's dots; a receiver must restore it, and nothing in it may end it early."""
    lines = octets.replace(b"\r", b"").split(b"\n")
    content = b"".join(line + b"\r\n" for line in lines)
    stuffed = smtp.stuffed(content).split(b"\r\n")
    assert stuffed[-2:] == [b".", b""]
    assert [pop3.unstuffed(line) for line in stuffed[:-1]] == [*lines, None]


def pop3_lines(octets: bytes) -> None:
    """Read a POP3 server's possible answers to each command."""
    lines = octets.split(b"\n")
    capabilities = pop3.Capabilities.parse(lines)
    for listed in capabilities.listed():
        require_shown(listed, 200)
    assert capabilities.login_delay is None or 0 <= capabilities.login_delay <= replies.LONGEST_PAUSE
    assert all(word == word.upper() for word in capabilities.sasl_mechanisms)
    for line in lines:
        or_fault(pop3.status, line)
        counts = or_fault(pop3.parse_stat, line)
        assert counts is None or (counts[0] >= 0 and (counts[1] or 0) >= 0)
        listing = pop3.parse_unique_id(line)
        if listing is not None:
            assert listing[0] >= 0
            require_shown(listing[1], len(line))
            assert " " not in listing[1]
        stamp = pop3.timestamp_of(line)
        assert stamp is None or (stamp in line and stamp.isascii())


def imap_response(octets: bytes) -> None:
    """Read any IMAP response; every other line of ``octets`` is a literal."""
    parts = octets.split(b"\n")
    texts, literals = parts[::2], parts[1 : len(parts) // 2 * 2 : 2]
    text = b"\n".join(texts[: len(literals) + 1])
    or_fault(imap.literal_size, text)
    for prefix in (b"", b"* LIST ", b"* 1 FETCH ", b"* STATUS ", b"* SEARCH ", b"* NAMESPACE ", b"M1 NO "):
        response = or_fault(imap.Response.parse, prefix + text, literals)
        if response is None or response.text.count(b"\n") != len(literals):
            continue
        require_shown(imap.refusal(response, Reason.IMAP_NO).detail)
        for word in imap.capabilities_of(response) or ():
            require_shown(word, 1000)
        fetched = or_fault(imap.parse_fetch, response)
        assert fetched is None or 0 <= fetched[0] < 10**10
        assert all(number >= 0 for number in or_fault(imap.parse_search, response) or ())
        or_fault(imap.parse_status, response)
        or_fault(imap.parse_namespace, response)
        folder = or_fault(imap.parse_list, response)
        if folder is not None:
            require_shown(folder.delimiter or "")
            for attribute in folder.attributes:
                require_shown(attribute)
            _comes_back(folder.name)


def imap_folder_name(octets: bytes) -> None:
    """Decode a folder's name; the result must fit in a command, and decode back from it."""
    _comes_back(imap.decode_folder(octets))


def _comes_back(name: str) -> None:
    coded = imap.encode_folder(name)
    require_shown(coded.decode("ascii"), 10 * len(name) + 20)
    (value,) = imap.parse_values(imap.Response(b"*", b"X", coded))
    assert isinstance(value, bytes)
    assert imap.decode_folder(value) == name


def sasl_challenge(octets: bytes) -> None:
    """Answer challenges with every mechanism; the answers must be base64, and withheld."""
    offered = octets.decode("utf-8", "backslashreplace").upper().split()
    or_fault(lambda: sasl.choose(offered, "auto", encrypted=True))
    or_fault(lambda: sasl.choose(offered, "login", encrypted=False, own={"APOP": True}))
    for mechanism in sasl.MECHANISMS.values():
        if mechanism.needs_ticket:
            continue  # of a realm, which is not here
        redaction = Redaction()
        exchange = mechanism("canary", PASSWORD, redaction)
        initial = exchange.initial_response()
        answers = [initial] if initial is not None else []
        for challenge in (octets, base64.b64encode(octets), octets):
            answer = or_fault(exchange.answer, challenge)
            answers += [answer] if answer is not None else []
        assert len(answers) <= 3
        for answer in answers:
            if base64.b64decode(answer, validate=True) in (b"canary", b"", b"\1"):
                continue  # a user name, or the acknowledgement of an error
            assert PASSWORD not in redaction.text(answer.decode())
            assert redaction.text(answer.decode()) != answer.decode()


def shown_text(octets: bytes) -> None:
    """Make any text safe to show, without the password that it repeats."""
    for text in (octets, octets.decode("utf-8", "surrogateescape"), octets.decode("latin-1")):
        for limit in (1, 80, 300):
            require_shown(legible(text, limit), limit)
    redaction = Redaction()
    redaction.add(PASSWORD)
    text = octets.decode("utf-8", "backslashreplace")
    assert redaction.text(text) in {text} or "(withheld)" in redaction.text(text)
    for secret in (PASSWORD, PASSWORD.upper(), base64.b64encode(PASSWORD.encode()).decode()):
        assert secret not in redaction.text(f"{text}{secret}{text}")


def resolver_file(octets: bytes) -> None:
    """Read possible contents of resolv.conf, hosts and nsswitch.conf."""
    text = octets.decode("utf-8", "replace")
    stub = resolver_files.stub_resolver_of(text, "me.example.com")
    assert 1 <= len(stub.nameservers) <= resolver_files.MOST_NAMESERVERS
    assert all(map(resolver_files.is_ip_address, stub.nameservers))
    assert all(0 <= value <= 30 for value in stub.options.values())
    assert len(stub.names_for("mail")) == len(stub.search) + 1
    for name, addresses in resolver_files.hosts_of(text).items():
        assert name == name.lower()
        assert all(map(resolver_files.is_ip_address, addresses))
    assert all("[" not in source or "]" not in source for source in resolver_files.host_sources_of(text))


_RESOLVER = Resolver(ResolverSettings(address="192.0.2.53"))


def dns_answer(octets: bytes) -> None:
    """Read a resolver's answer to a query for MX, SRV or addresses, and judge the MX records."""
    for rdtype in ("MX", "A", "SRV"):
        question = our_dns._question("example.com", rdtype, has_edns=True)
        question.id = 0x4D53
        with suppress(our_dns._EdnsRefusedError):
            found = or_fault(_RESOLVER._response, [question], octets)
            if found is None or found[1] is None:
                continue
            answer = or_fault(_RESOLVER._answer, found[0], cast("dns.message.Message", found[1]))
            if answer is None:
                continue
            assert 0 <= answer.ttl < 2**32
            texts = [record.to_text() for record in answer.records]
            if rdtype == "MX":
                _judged([text.split(" ", 1) for text in texts], answer.ttl)


def _judged(records: list[list[str]], ttl: int) -> None:
    """Judge MX records, with addresses for every host that may have some."""
    named = tuple(
        MxRecord(int(preference), exchange.lower().removesuffix(".") or ".", ttl)
        for preference, exchange in records
    )
    hosts = {record.host: Host(("192.0.2.1",), record.host, ttl) for record in named}
    gathered = Gathered(named, len(named), hosts) if named else Gathered((), 0, {"example.com": Host()})
    findings = judge("example.com", gathered, ["mx.example.com"], allow_private=False)
    for finding in findings:
        for text in dataclasses.astuple(finding):
            require_shown(str(text), 1000)
    require_shown(conclude(gathered, findings)[1], 1000)


class _Connection:
    """A connection whose peer showed an unverified certificate."""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE

    def __init__(self, certificate: bytes) -> None:
        self._certificate = certificate

    def getpeercert(self, binary_form: bool) -> bytes:
        return self._certificate


def certificate(octets: bytes) -> None:
    """Read a certificate's expiry."""
    expiry = tls.certificate_expiry(cast("ssl.SSLObject", _Connection(octets)))
    if expiry is not None:
        require_shown(expiry.subject, tls.CERTIFICATE_SUBJECT_LIMIT)
        require_shown(tls.expiry_warning(expiry, 2e9, 1e12)[1])


def _dns_seeds() -> tuple[bytes, ...]:
    seeds = []
    for rdtype, record in (
        ("MX", "MX 10 mx.example.com."),
        ("A", "A 192.0.2.1"),
        ("SRV", "SRV 1 2 993 a.b."),
    ):
        query = our_dns._question("example.com", rdtype, has_edns=True)
        query.id = 0x4D53
        response = dns.message.make_response(query, recursion_available=True)
        text = f"example.com. 300 IN CNAME other.example.com.\nother.example.com. 60 IN {record}"
        response.answer = dns.message.from_text(f";ANSWER\n{text}").answer
        seeds.append(response.to_wire())
    return tuple(seeds)


CERTIFICATE_IN_DER = base64.b64decode(
    "MIIBBDCBt6ADAgECAgEBMAUGAytlcDAsMRcwFQYDVQQDDA5teC5leGFtcGxlLmNvbTERMA8GA1UECgwIRXjDpG1wbGUwHhcNMjQw"
    "MTAxMDAwMDAwWhcNMzQwMTAxMDAwMDAwWjAsMRcwFQYDVQQDDA5teC5leGFtcGxlLmNvbTERMA8GA1UECgwIRXjDpG1wbGUwKjAF"
    "BgMrZXADIQD784TmHOlUvCENBoyaAm/MamC9bbcvEdxTpF8znCPZZjAFBgMrZXADQQAl4fDA+fKz4uek5gquI9jH2AFyQi4UJUn2"
    "SDxJZHglDeV6yeF1YtYP37WoeZbRC+sn4HsyUSSxtNbKUmlRyE4D"
)

TARGETS = (
    Target(
        "smtp_reply",
        smtp_reply,
        (
            b"250-mx\r\n250-SIZE 10\r\n250-AUTH=LOGIN\r\n250 AUTH PLAIN\r\n",
            b"421-a\r\n421 4.3.2 b\r\n",
            b"550 5.1.1 x\n",
        ),
        (b"250-", b"250 ", b"421-", b"\r\n", b"\n", b"AUTH ", b"SIZE", b"\xc3\x9f", b"5.1.1 "),
        smtp.REPLY_LIMIT,
    ),
    Target("smtp_content", smtp_content, (b".\n..\na", b""), (b"\r\n.\r\n", b".", b"\n"), 64 * 1024),
    Target(
        "pop3_lines",
        pop3_lines,
        (
            b"+OK 2 320\nUIDL\nSASL PLAIN\nLOGIN-DELAY 900 USER\n1 u1\n2 \xff\n3 a b\n-ERR [IN-USE] x",
            b"+OK <1.2@[a.b]> ready",
        ),
        (
            b"+OK ",
            b"-ERR ",
            b"[LOGIN-DELAY] ",
            b"Suggested Backoff Time: 9 milliseconds",
            b"\n",
            b"1 ",
            b"<a.",
            b"@",
        ),
        pop3.POP3_LINE_LIMIT,
    ),
    Target(
        "imap_response",
        imap_response,
        (
            b'(\\HasNoChildren \\Junk) "/" "Junk &AOQ-"',
            b'(\\Junk) "/" \nJunk\n',
            b"(UID 1 BODY[HEADER.FIELDS (A B)]<0> \nA: b\n)",
            b"1 2 3 (MODSEQ 4)",
            b'"Junk" (MESSAGES 1 UIDNEXT 2 UIDVALIDITY 3)',
            b'(("" "/")) NIL NIL',
            b"[LIMIT 3] too many connections, Suggested Backoff Time: 5 milliseconds",
            b"* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] ready",
        ),
        (b"(", b")", b'"', b"\\", b"NIL ", b"\n", b"BODY[", b"]", b"UID ", b"{3}", b"&", b"&AOQ-", b"[A "),
        imap.RESPONSE_LIMIT,
    ),
    Target(
        "imap_folder_name",
        imap_folder_name,
        (b"INBOX", b"Entw&APw-rfe", b"a&-b", b"&2D3eAA-", b"\xc3\xa4"),
        (b"&", b"-", b"&AOQ-", b"&AAA-", b"&2D0-", b"inbox"),
        imap.RESPONSE_LIMIT,
    ),
    Target(
        "sasl_challenge",
        sasl_challenge,
        (b"PDE4OTYuNjk3MTcwOTUyQHBvc3RvZmZpY2U+", b"", b"PLAIN LOGIN CRAM-MD5", b"VXNlcm5hbWU6"),
        (b"=", b"PLAIN", b"CRAM-MD5", b" ", b"APOP", b"\n"),
        2048,
    ),
    Target(
        "shown_text",
        shown_text,
        (b"250 2.0.0 ok\r\n250 x", b"M1 NO [AUTHENTICATIONFAILED] \x1b[31m", b"-ERR \xe2\x80\xae\xff"),
        (b"\\n250 ", b"\n250-", b"s3cret-", b"Pa55word", b"250 ", b"M1 ", b"\xed\xa0\x80", b"[A] "),
        4096,
    ),
    Target(
        "resolver_files",
        resolver_file,
        (
            b"nameserver 192.0.2.53\nnameserver fe80::1%eth0\nsearch a.example b.\noptions ndots:3 rotate\n",
            b"127.0.0.1 localhost a # x\n::1 localhost\n",
            b"hosts: files [NOTFOUND=return] mdns4 dns # x\n",
        ),
        (
            b"\n",
            b"nameserver ",
            b"options ",
            b"ndots:",
            b"search ",
            b"192.0.2.1 ",
            b"hosts: ",
            b"9" * 400,
            b"1.1.1.1 a\n",
        ),
    ),
    Target(
        "dns_answer",
        dns_answer,
        _dns_seeds(),
        (
            b"MS\x81\x80",
            b"\xc0\x0c",
            b"\x00\x0f\x00\x01",
            b"\x07example\x03com\x00",
            b"\x01a",
            b"\x00\x05\x00\x01",
        ),
    ),
    Target(
        "certificate",
        certificate,
        (CERTIFICATE_IN_DER,),
        (b"\x30", b"\x17\x0d", b"Z", b"\x06\x03U\x04\x03", b"\x0c"),
    ),
)
