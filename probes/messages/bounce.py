"""Delivery reports (RFC 3464): what became of which message, and why."""

from __future__ import annotations

import re
from dataclasses import dataclass

from probes.core.faults import legible
from probes.core.reasons import Reason
from probes.messages.header_section import first_value_of, split
from probes.messages.mime import content_type, decoded, parts
from probes.messages.synthetic_message import token_text

REPORT_LIMIT = 256 * 1024
"""How much of a report is read, in octets."""

RECIPIENTS_LIMIT = 50
"""Most recipients of one report that are looked at."""

_CLASS_OF_ACTION = {"failed": 5, "delayed": 4, "delivered": 2, "relayed": 2, "expanded": 2}
_ACTION = re.compile(rf"({'|'.join(_CLASS_OF_ACTION)})(?![\w-])", re.IGNORECASE)  # RFC 3464 section 2.3.3
_STATUS = re.compile(r"([245])\.([0-9]{1,3})\.([0-9]{1,3})(?![\w.-])")  # RFC 3463 section 2
_REPLY = re.compile(r"\s*smtp\s*;\s*[245][0-9][0-9][ -]\s*#?", re.IGNORECASE)
_TYPE = re.compile(r"^[A-Za-z][A-Za-z0-9-]{0,30}\s*;\s*")  # RFC 3464 section 2.1.2
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

_BY_DETAIL = {
    **dict.fromkeys(("1.0", "1.1", "1.2", "1.3", "1.6", "1.10"), Reason.BOUNCE_NO_MAILBOX),
    "2.1": Reason.BOUNCE_MAILBOX_DISABLED,
    "2.2": Reason.BOUNCE_MAILBOX_FULL,
    "2.3": Reason.BOUNCE_TOO_LARGE,
    "3.4": Reason.BOUNCE_TOO_LARGE,
    "4.7": Reason.BOUNCE_EXPIRED,
}
_BY_SUBJECT = {
    "3": Reason.BOUNCE_SYSTEM,
    "4": Reason.BOUNCE_ROUTING,
    "5": Reason.BOUNCE_PROTOCOL,
    "6": Reason.BOUNCE_CONTENT,
    "7": Reason.BOUNCE_POLICY,
}


@dataclass(frozen=True, slots=True)
class DeliveryReport:
    """What a report says of its first recipient that failed, or of its first. All texts are fit to show."""

    action: str  # failed, delayed, delivered, relayed or expanded
    enhanced_status_code: str  # such as 5.1.1
    diagnostic: str
    reporting_mta: str
    recipient: str
    token: str | None  # what our token field in the returned message holds; not verified


def may_be_report(header_section: bytes) -> bool:
    """Return whether the header section is that of a delivery report (RFC 6522, RFC 3464 section 2)."""
    media_type, parameters = content_type(header_section)
    return media_type == "multipart/report" and parameters.get("report-type", "").lower() == "delivery-status"


def read_report(raw: bytes) -> DeliveryReport | None:
    """Return what the report says; ``raw`` may be cut off anywhere. ``None`` where it is no sound report.

    Not more than `REPORT_LIMIT` octets and `RECIPIENTS_LIMIT` recipients of it are looked at.
    """
    header_section, body = split(raw[:REPORT_LIMIT])
    if not may_be_report(header_section):
        return None
    groups: list[bytes] = []
    token = None
    for part_header, part_body in parts(body, content_type(header_section)[1].get("boundary", "")):
        media_type = content_type(part_header)[0]
        if media_type in _STATUS_TYPES and not groups:
            text = _content(part_header, part_body).replace(b"\r\n", b"\n").strip()
            groups = _BLANK_LINES.split(text, RECIPIENTS_LIMIT)
        elif media_type in _RETURNED_TYPES and token is None:
            token = token_text(_content(part_header, part_body).lstrip(b"\r\n"))
    recipients = [group for group in groups if first_value_of(group, "Action")]
    actions = [_ACTION.match(first_value_of(group, "Action")) for group in recipients]
    words = [action[1].lower() if action else "" for action in actions]
    wanted = words.index("failed") if "failed" in words else 0
    if not recipients or not words[wanted]:
        return None
    return DeliveryReport(
        action=words[wanted],
        enhanced_status_code=_status_of(recipients[wanted], words[wanted]),
        diagnostic=_shown(recipients[wanted], "Diagnostic-Code"),
        reporting_mta=_shown(groups[0], "Reporting-MTA"),
        recipient=_shown(recipients[wanted], "Final-Recipient"),
        token=token,
    )


def _content(header_section: bytes, body: bytes) -> bytes:
    """Return what a part holds, also of base64 that is cut off within a quantum."""
    if first_value_of(header_section, "Content-Transfer-Encoding").lower() == "base64":
        body = b"".join(body.split())
        body = body[: len(body) // 4 * 4]
    return decoded(header_section, body)


def _status_of(recipient: bytes, action: str) -> str:
    """Return the status, with the detail of the remote server's reply where the status has none, as Exim's.

    Where there is no sound status, the action says the class.
    """
    status = _STATUS.match(first_value_of(recipient, "Status"))
    if status is None:
        return f"{_CLASS_OF_ACTION[action]}.0.0"
    diagnostic = first_value_of(recipient, "Diagnostic-Code")
    reply = _REPLY.match(diagnostic)
    said = _STATUS.match(diagnostic, reply.end()) if reply else None
    numbers = [int(number) for number in status.groups()]
    if said and numbers == [int(said[1]), 0, 0]:
        numbers = [int(number) for number in said.groups()]
    return ".".join(map(str, numbers))


def _shown(group: bytes, name: str) -> str:
    """Return a value fit to show, without the type in front of it."""
    return legible(" ".join(_TYPE.sub("", first_value_of(group, name), count=1).split()))


def reason_of(enhanced_status_code: str) -> Reason:
    """Return the reason that an enhanced status code (RFC 3463) of a failed delivery stands for."""
    subject, _, detail = enhanced_status_code.partition(".")[2].partition(".")
    return _BY_DETAIL.get(f"{subject}.{detail}") or _BY_SUBJECT.get(subject, Reason.BOUNCE_OTHER)
