"""Recognizes messages from auto-responders (RFC 3834)."""

from __future__ import annotations

from probes.messages.header_section import first_value_of, values_of, without_comments


def is_auto_reply(header_section: bytes) -> bool:
    """Return whether an auto-responder made the message (RFC 3834 section 5, and older conventions).

    ``Auto-Submitted: auto-generated``, which our own messages have, does not mean a reply.
    """
    submitted = (without_comments(value) for value in values_of(header_section, "Auto-Submitted"))
    if any(value.partition(";")[0].strip().lower() == "auto-replied" for value in submitted):
        return True
    older = ("X-Autoreply", "X-Autorespond", "X-Autoresponse")
    if any(first_value_of(header_section, name).lower() not in {"", "no"} for name in older):
        return True
    return first_value_of(header_section, "Precedence").lower() == "auto_reply"
