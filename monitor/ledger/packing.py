"""Texts of the history are kept compressed (RFC 1950), because runs and dialogues are much alike."""

from __future__ import annotations

import zlib

LIMIT = 8 * 2**20
"""Maximum octets of a text: far more than a run and its dialogue can have."""

_WORDS = (
    '{"by": "", "sender": "", "protocol": "ESMTPS", "stamped_at": 17, "delay_seconds": null, "skewed": fal'
    "se, "
    '"clock_error_seconds": 0.0}], "authentication_results": null}, "arrival_issues": [], "hops": [], '
    '"findings": [{"check": "", "severity": "warning", "subject": "", "seen": "", "expected": "", "remedy"'
    ': ""}], '
    '"state": "rejected", "deferred", "ambiguous", "bounced", "lost", "late", '
    '"detail": " failed", "outcome": "unknown", "reason": "timeout", "connect_refused", "local_resources", '
    '"certificate_days_left": , "folders": ["INBOX"], "kind": "mx", "domain": "'
    '"values": {"greeting": "IMAP4rev1 ", "features": ["8BITMIME", "AUTH PLAIN LOGIN", "CHUNKING", "DSN", '
    '"ENHANCEDSTATUSCODES", "ETRN", "PIPELINING", "SIZE ", "SMTPUTF8", "STARTTLS", "VRFY"]}}'
    '"values": {"greeting": "Dovecot ready.", "capabilities": ["AUTH-RESP-CODE", "CAPA", "PIPELINING", '
    '"RESP-CODES", "SASL PLAIN LOGIN", "STLS", "TOP", "UIDL", "USER"], "messages": 0, "octets": 0, '
    '"unreadable_ids": 0}}'
    ' S: * OK [CAPABILITY IMAP4rev1 SASL-IR LOGIN-REFERRALS ID ENABLE IDLE LITERAL+ AUTH=PLAIN] ready.", "'
    "   0.0"
    ' C: a1 CAPABILITY", "   0.0 S: * LIST (\\\\HasNoChildren) \\".\\" INBOX", "   0.0 S: * BYE Logging ou'
    't", "   0.0'
    ' S: a1 OK [READ-ONLY] Examine completed", "   0.0 C: a2 EXAMINE INBOX", "   0.0 C: a3 LOGOUT", "   0.0'
    ' S: +OK Dovecot ready.", "   0.0 C: CAPA", "   0.0 S: +OK", "   0.0 S: CAPA", "   0.0 S: TOP", "   0.0'
    ' S: UIDL", "   0.0 S: RESP-CODES", "   0.0 S: PIPELINING", "   0.0 S: AUTH-RESP-CODE", "   0.0 S: STL'
    'S", "   0.0'
    ' S: USER", "   0.0 S: SASL PLAIN LOGIN", "   0.0 C: AUTH PLAIN (withheld)", "   0.0 S: +OK Logged in.'
    '", "   0.0'
    ' C: STAT", "   0.0 S: +OK 0 0", "   0.0 C: UIDL", "   0.0 C: QUIT", "   0.0 S: +OK Logging out."]'
    '["   0.001 #: connected to 127.0.0.1 port 25", "   0.010 S: 220 mail.example.com ESMTP Postfix", "   '
    "0.01"
    ' C: EHLO [127.0.0.1]", "   0.0 S: 250-mail.example.com", "   0.0 S: 250-PIPELINING", "   0.0'
    ' S: 250-SIZE ", "   0.0 S: 250-VRFY", "   0.0 S: 250-ETRN", "   0.0 S: 250-STARTTLS", "   0.0'
    ' S: 250-AUTH PLAIN LOGIN", "   0.0 S: 250-ENHANCEDSTATUSCODES", "   0.0 S: 250-8BITMIME", "   0.0'
    ' S: 250-DSN", "   0.0 S: 250-SMTPUTF8", "   0.0 S: 250 CHUNKING", "   0.0 C: STARTTLS", "   0.0'
    ' S: 220 2.0.0 Ready to start TLS", "   0.0 #: TLSv1.3, TLS_AES_256_GCM_SHA384", "   0.0'
    ' C: AUTH PLAIN (withheld)", "   0.0 S: 235 2.7.0 Authentication successful", "   0.0 C: MAIL FROM:<'
    'canary@example.com> SIZE=1000 ENVID=mailsonde-envelope1:", "   0.0 S: 250 2.1.0 Ok", "   0.0 C: RCPT '
    "TO:<"
    'canary@example.com>", "   0.0 S: 250 2.1.5 Ok", "   0.0 C: DATA", "   0.0'
    ' S: 354 End data with <CR><LF>.<CR><LF>", "   0.0 #: the message: 1,000 octets, and the final dot", "'
    "   0.0"
    ' S: 250 2.0.0 Ok: queued as ", "   0.0 C: QUIT", "   0.0 S: 221 2.0.0 Bye", "   0.0'
    ' #: delivered: in mailbox canary 0.1 s \\u00b1 0.0 s after connecting"]'
    '{"run": "", "probe": "", "kind": "imap", "kind": "pop3", "kind": "smtp", "kind": "roundtrip", "target'
    '": "", '
    '"location": "", "outcome": "failed", "outcome": "ok", "reason": "none", "detail": "", "started_at": "202'
    '+00:00", "duration_seconds": 0.0, "phases": {"dns": 0.000, "connect": 0.000, "capa": 0.0, "login": 0.0, '
    '"stat": 0.0, "uidl": 0.0, "list": 0.0, "examine": 0.0, "logout": 0.0, "greeting": 0.000, "ehlo": 0.000, '
    '"starttls": 0.000, "tls": 0.00, "auth": 0.00, "mail": 0.000, "rcpt": 0.000, "data": 0.0, "quit": 0.00}, '
    '"values": {"reply_code": 250, "enhanced_status_code": "2.0.0", "arrival_issues": [], "hops": [{"by": "'
    '"}, "message": {"id": "", "state": "sent", "state": "delivered", "submission_seconds": 0.0, '
    '"transit_seconds": 0.0, "delivery_seconds": 0.0, "uncertainty_seconds": 0.0}}'
)
_DICTIONARY = _WORDS.encode()
"""What a text is likely to contain, the likeliest at the end (RFC 1950 section 2.2, preset dictionary).

Never change it: ledgers could not be read any more. A better one needs another column or a new schema.
"""

# A small window costs half as much. To copy this costs a third of making one that knows the dictionary.
_COMPRESSOR = zlib.compressobj(5, wbits=13, memLevel=6, zdict=_DICTIONARY)


def packed(text: str) -> bytes:
    """Return ``text`` compressed."""
    compressor = _COMPRESSOR.copy()
    return compressor.compress(text.encode()) + compressor.flush()


def unpacked(kept: str | bytes) -> str:
    """Return the text that was `packed`; a text from before they were is returned as it is.

    Raises ValueError if it is broken, or longer than `LIMIT`.
    """
    if isinstance(kept, str):
        return kept
    expander = zlib.decompressobj(zdict=_DICTIONARY)
    try:
        text = expander.decompress(kept, LIMIT)
    except zlib.error as error:
        raise ValueError(f"cannot be decompressed: {error}") from error
    if not expander.eof:
        raise ValueError(f"is cut, or longer than {LIMIT} octets")
    return text.decode()
