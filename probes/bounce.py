"""Delivery reports (RFC 3464): what became of which message, and why."""

from __future__ import annotations

import re
from dataclasses import dataclass

from probes.faults import legible
from probes.header_section import first_value_of, split
from probes.letter import token_text
from probes.mime import content_type, decoded, parts
from probes.reasons import Reason

REPORT_LIMIT = 256 * 1024
"""How much of a report is read, in octets."""

RECIPIENTS_LIMIT = 50
"""Most recipients of one report that are looked at."""

_ACTIONS = frozenset({"failed", "delayed", "delivered", "relayed", "expanded"})  # RFC 3464 section 2.3.3
_STATUS = re.compile(r"([245])\.(\d{1,3})\.(\d{1,3})(?:\s|$|\()")
_BLANK_LINES = re.compile(rb"\n[ \t]*\n\s*")
_RETURNED = frozenset(
    {
        "message/rfc822",
        "text/rfc822-headers",
        "message/global",
        "message/global-headers",
        "message/rfc822-headers",
    }
)

_BY_DETAIL = {
    "1.2": Reason.BOUNCE_NO_MAILBOX,
    "2.1": Reason.BOUNCE_MAILBOX_DISABLED,
    "2.2": Reason.BOUNCE_MAILBOX_FULL,
    "2.3": Reason.BOUNCE_TOO_LARGE,
    "3.4": Reason.BOUNCE_TOO_LARGE,
    "4.7": Reason.BOUNCE_EXPIRED,
}
_BY_SUBJECT = {
    "1": Reason.BOUNCE_NO_MAILBOX,
    "3": Reason.BOUNCE_SYSTEM,
    "4": Reason.BOUNCE_ROUTING,
    "5": Reason.BOUNCE_PROTOCOL,
    "6": Reason.BOUNCE_CONTENT,
    "7": Reason.BOUNCE_POLICY,
}


@dataclass(frozen=True, slots=True)
class DeliveryReport:
    """What a report says of its first recipient that failed, or of its first. All texts are fit to show."""

    action: str
    enhanced_status_code: str
    diagnostic: str
    reporting_mta: str
    recipient: str
    token: str | None  # what our token field in the returned message holds; not verified


def may_be_report(header_section: bytes) -> bool:
    """Return whether the header section is that of a delivery report."""
    media_type, parameters = content_type(header_section)
    return media_type == "multipart/report" and parameters.get("report-type", "").lower() == "delivery-status"


def read_report(raw: bytes) -> DeliveryReport | None:
    """Return what the report says; ``raw`` may be cut off. ``None`` where it is no sound report."""
    header_section, body = split(raw[:REPORT_LIMIT])
    if not may_be_report(header_section):
        return None
    groups: list[bytes] = []
    token = None
    for part_header, part_body in parts(body, content_type(header_section)[1].get("boundary", "")):
        media_type = content_type(part_header)[0]
        if media_type in {"message/delivery-status", "message/global-delivery-status"} and not groups:
            text = decoded(part_header, part_body).replace(b"\r\n", b"\n").strip()
            groups = _BLANK_LINES.split(text, RECIPIENTS_LIMIT)
        elif media_type in _RETURNED and token is None:
            token = token_text(decoded(part_header, part_body).lstrip(b"\r\n"))
    about, *recipients = groups or [b""]
    actions = [first_value_of(group, "Action").lower() for group in recipients]
    wanted = next((n for n, action in enumerate(actions) if action == "failed"), 0)
    if not recipients or actions[wanted] not in _ACTIONS:
        return None
    return _report(about, recipients[wanted], actions[wanted], token)


def _report(about: bytes, recipient: bytes, action: str, token: str | None) -> DeliveryReport:
    status = _STATUS.match(first_value_of(recipient, "Status"))
    return DeliveryReport(
        action=action,
        enhanced_status_code=f"{status[1]}.{int(status[2])}.{int(status[3])}" if status else "5.0.0",
        diagnostic=_typed(recipient, "Diagnostic-Code"),
        reporting_mta=_typed(about, "Reporting-MTA"),
        recipient=_typed(recipient, "Final-Recipient"),
        token=token,
    )


def _typed(group: bytes, name: str) -> str:
    """Return a value without the type in front of it (RFC 3464 section 2.1.2)."""
    value = first_value_of(group, name)
    return legible(value.partition(";")[2].strip() or value)


def reason_of(enhanced_status_code: str) -> Reason:
    """Return the reason that an enhanced status code (RFC 3463) of a failed delivery stands for."""
    _, subject, detail = enhanced_status_code.split(".")
    return _BY_DETAIL.get(f"{subject}.{detail}") or _BY_SUBJECT.get(subject, Reason.BOUNCE_OTHER)
