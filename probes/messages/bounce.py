"""Reads delivery reports (RFC 3464, and older forms): which message, whether it failed, and why."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from probes.core.faults import legible
from probes.core.reasons import Reason
from probes.messages.bounce_words import (
    TEXT_CHARACTERS,
    action_in,
    code_in,
    excerpt,
    is_vague,
    reason_of,
    sound_code,
    tells_expiry,
)
from probes.messages.header_section import first_value_of, split, values_of, without_comments
from probes.messages.mime import content_type, decoded, decoded_subject, parts
from probes.messages.synthetic_message import token_text
from probes.messages.token import HEADER

REPORT_LIMIT = 256 * 1024
"""Maximum octets to read of a report."""

RECIPIENTS_LIMIT = 50
"""Maximum number of recipients to examine in a report."""

NOTICE_OCTETS = 16 * 1024
"""Maximum octets to read of the notice, the part of a report that is written for people."""

_CODE_OF_ACTION = {
    "failed": "5.0.0",
    "expired": "5.4.7",  # not in RFC 3464, but some gateways use it
    "delayed": "4.0.0",
    "delivered": "2.0.0",
    "relayed": "2.0.0",
    "expanded": "2.0.0",
}
_ACTION = re.compile(rf"({'|'.join(_CODE_OF_ACTION)})(?![\w-])", re.IGNORECASE)  # RFC 3464 section 2.3.3
_TYPE = re.compile(r"^([A-Za-z][A-Za-z0-9-]{0,30})\s*;\s*")  # RFC 3464 section 2.1.2
_BLANK_LINES = re.compile(rb"\n[ \t]*\n\s*")
_STATUS_TYPES = frozenset({"message/delivery-status", "message/global-delivery-status"})
_RETURNED_TYPES = frozenset(
    {
        "message/rfc822",
        "message/rfc822-headers",
        "message/global",
        "message/global-headers",
        "text/rfc822-headers",
    }
)
_DAEMONS = frozenset({"mailer-daemon", "mail-daemon", "maildaemon"})
_MAIL_SYSTEMS = _DAEMONS | {"postmaster"}
_ADDRESS = re.compile(r"<([^<>]{0,320})>\s*$")
_TOKEN_FIELD = re.compile(rb"^%s[ \t]*:" % HEADER.encode(), re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class DeliveryReport:
    """What a report says about the first failed recipient, or else the first. All texts are safe to show."""

    action: str  # failed, delayed, delivered, relayed or expanded
    enhanced_status_code: str  # such as 5.1.1
    diagnostic: str
    reporting_mta: str
    recipient: str
    token: str | None  # from our token field in the returned message; not verified
    envelope_id: str | None  # the ENVID of the MAIL command (RFC 3461 section 4.4); not verified
    reason: Reason | None  # why it failed; None for all other actions


@dataclass(frozen=True, slots=True)
class _Contents:
    """The contents of a report's parts."""

    groups: Sequence[bytes] = ()  # groups of fields: one for the message, then one for each recipient
    token: str | None = None
    notice: str = ""


def may_be_report(header_section: bytes) -> bool:
    """Return whether the header section may be that of a delivery report.

    Either its media type says so (RFC 6522, RFC 3464 section 2), or it is a text or multipart from a mail
    system; see `is_from_mail_system`.
    """
    media_type, parameters = content_type(header_section)
    if media_type == "multipart/report" and "report-type" in parameters:
        return parameters["report-type"].lower() == "delivery-status"
    return media_type.startswith(("text/", "multipart/")) and is_from_mail_system(header_section)


def is_from_mail_system(header_section: bytes) -> bool:
    """Return whether a mail system wrote the message, and not a person or an auto-responder.

    Two conditions must hold. The message is from MAILER-DAEMON or postmaster, or it names failed recipients.
    And its return path, which the delivering host adds (RFC 5321 section 4.4), is null. Neither is enough
    alone: auto-responders also use the null return path, and a postmaster may be a person who forwards our
    message. If there is no return path, MAILER-DAEMON is enough, because nobody else uses that name. Other
    messages must then say that they were generated automatically (``Auto-Submitted``, RFC 3834 section 5).
    """
    sender = _local_part(first_value_of(header_section, "From"))
    if sender not in _MAIL_SYSTEMS and not first_value_of(header_section, "X-Failed-Recipients"):
        return False
    return_paths = values_of(header_section, "Return-Path")
    if return_paths:  # some hosts write MAILER-DAEMON for the null path
        return _local_part(return_paths[0]) in {"", *_DAEMONS}
    if sender in _DAEMONS:
        return True
    submitted = without_comments(first_value_of(header_section, "Auto-Submitted")).partition(";")[0]
    return submitted.strip().lower() in {"auto-replied", "auto-generated"}


def _local_part(value: str) -> str:
    """Return the local part of an address, in lower case and without quotes."""
    address = without_comments(value[:2000]).strip()
    if match := _ADDRESS.search(address):
        address = match[1]
    return address.rpartition("@")[0 if "@" in address else 2].strip().strip('"').lower()


def read_report(raw: bytes) -> DeliveryReport | None:
    """Return the contents of a report, which may be truncated anywhere; ``None`` if it is not a valid report.

    At most `REPORT_LIMIT` octets and `RECIPIENTS_LIMIT` recipients are examined.
    """
    header_section, body = split(raw[:REPORT_LIMIT])
    if not may_be_report(header_section):
        return None
    contents = _contents_of(header_section, body)
    if contents.groups:
        return _from_status(contents)
    return _from_notice(header_section, contents) if is_from_mail_system(header_section) else None


def _contents_of(header_section: bytes, body: bytes) -> _Contents:
    """Return the contents of the report's parts: of each kind, the first part."""
    media_type, parameters = content_type(header_section)
    if not media_type.startswith("multipart/"):
        return _without_parts(_content(header_section, body))
    groups: list[bytes] = []
    token, notice = None, b""
    for part_header, part_body in _parts_of_report(parts(body, parameters.get("boundary", ""))):
        media_type = content_type(part_header)[0]
        if media_type in _STATUS_TYPES and not groups:
            text = _content(part_header, part_body).replace(b"\r\n", b"\n").strip()
            groups = _BLANK_LINES.split(text, RECIPIENTS_LIMIT)
        elif media_type in _RETURNED_TYPES and token is None:
            token = token_text(_content(part_header, part_body).lstrip(b"\r\n"))
        elif media_type == "text/plain" and not notice:
            notice = _content(part_header, part_body)
    return _Contents(groups, token, _text(notice))


def _parts_of_report(found: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return the parts of the report, even if a gateway wrapped it in another message."""
    if not _has_status(found):
        for part_header, part_body in found:
            inner = parts(part_body, content_type(part_header)[1].get("boundary", ""))
            if _has_status(inner):
                return inner
    return found


def _has_status(found: list[tuple[bytes, bytes]]) -> bool:
    return any(content_type(part_header)[0] in _STATUS_TYPES for part_header, _ in found)


def _without_parts(text: bytes) -> _Contents:
    """Return the contents of a report without parts: a notice, then perhaps our header section."""
    text = text.replace(b"\r\n", b"\n")
    field = _TOKEN_FIELD.search(text)
    if field is None:
        return _Contents(notice=_text(text))
    begin = text.rfind(b"\n\n", 0, field.start())
    returned = text[begin + 2 :] if begin >= 0 else text
    # A token field alone is a quotation, not a returned message.
    token = token_text(returned) if first_value_of(returned, "Message-ID") else None
    return _Contents(token=token, notice=_text(text[: max(begin, 0)]))


def _content(header_section: bytes, body: bytes) -> bytes:
    """Return the decoded content of a part, even if its base64 is truncated."""
    if first_value_of(header_section, "Content-Transfer-Encoding").lower() == "base64":
        body = b"".join(body.split())
        body = body[: len(body) // 4 * 4]
    return decoded(header_section, body)


def _text(octets: bytes) -> str:
    return octets[:NOTICE_OCTETS].replace(b"\r\n", b"\n").decode("utf-8", "backslashreplace")


def _from_status(contents: _Contents) -> DeliveryReport | None:
    """Read the fields of RFC 3464 sections 2.2 and 2.3 and, for what they leave out, the notice."""
    recipients = [group for group in contents.groups if first_value_of(group, "Action")]
    actions = [_ACTION.match(first_value_of(group, "Action")) for group in recipients]
    words = [action[1].lower() if action else "" for action in actions]
    wanted = next((number for number, word in enumerate(words) if word in {"failed", "expired"}), 0)
    if not recipients or not words[wanted]:
        return None
    recipient, action = recipients[wanted], words[wanted]
    has_expired = action == "expired" or tells_expiry(contents.notice)
    kind, diagnostic = _typed(first_value_of(recipient, "Diagnostic-Code"))
    said = "" if kind == "x-unix" else diagnostic  # contains only a program's exit status
    code = _code_of(first_value_of(recipient, "Status"), action, said or contents.notice)
    reason = Reason.BOUNCE_EXPIRED if has_expired else reason_of(code, diagnostic, contents.notice)
    action = "failed" if has_expired else action
    return DeliveryReport(
        action=action,
        enhanced_status_code=code,
        diagnostic=_shown(said or excerpt(contents.notice) or diagnostic),
        reporting_mta=_shown(_typed(first_value_of(contents.groups[0], "Reporting-MTA"))[1]),
        recipient=_shown(_typed(first_value_of(recipient, "Final-Recipient"))[1]),
        token=contents.token,
        envelope_id=first_value_of(contents.groups[0], "Original-Envelope-Id") or None,
        reason=reason if action == "failed" else None,
    )


def _from_notice(header_section: bytes, contents: _Contents) -> DeliveryReport | None:
    """Read a report for people only; it must mention a failure or delay and return our token."""
    said = f"{decoded_subject(header_section)}\n{contents.notice}"
    action = action_in(said)
    if contents.token is None or action is None:
        return None
    cause = excerpt(contents.notice)
    code = _code_of("", action, contents.notice)
    return DeliveryReport(
        action=action,
        enhanced_status_code=code,
        diagnostic=_shown(cause or contents.notice),
        reporting_mta="",
        recipient=_shown(first_value_of(header_section, "X-Failed-Recipients")),
        token=contents.token,
        envelope_id=None,
        reason=reason_of(code, cause, contents.notice) if action == "failed" else None,
    )


def _code_of(status: str, action: str, said: str) -> str:
    """Return the enhanced status code.

    If the status is vague, as Exim's is, a code of the same class in ``said`` replaces it. Without either,
    the action gives the class.
    """
    code = sound_code(status)
    if code is not None and not is_vague(code):
        return code
    by_action = _CODE_OF_ACTION[action]
    classes = code[0] if code else by_action[0].replace("5", "45")  # a persistent 4.x.x becomes a failure
    return code_in(said, classes) or code or by_action


def _typed(value: str) -> tuple[str, str]:
    """Return the type before a value, in lower case (empty if there is none), and the value."""
    match = _TYPE.match(value)
    return (match[1].lower(), value[match.end() :]) if match else ("", value)


def _shown(text: str) -> str:
    """Return a text that is safe to show."""
    return legible(" ".join(text[:TEXT_CHARACTERS].split()))
