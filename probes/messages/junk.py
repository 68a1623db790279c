"""Whether a spam filter on the route classified the message as junk, by the fields that it added."""

from __future__ import annotations

import re

from probes.messages.header_section import values_of

JUNK_LEVEL = 5
"""Spam confidence level, from -1 to 9, at which Exchange starts to move messages to the junk folder."""

MAILSCANNER_FIELDS_EXAMINED = 10
"""Maximum number of MailScanner's field names to examine."""

_YES = re.compile(r"yes(?![\w-])", re.IGNORECASE)
_SPAM = re.compile(r"(?:spam|yes)(?![\w-])", re.IGNORECASE)
_MAILSCANNER = re.compile(
    rb"^X-(?:[\w.-]{1,80}-)?MailScanner-SpamCheck(?=[ \t]*:)", re.IGNORECASE | re.MULTILINE
)
_PROOFPOINT_RULE = re.compile(r"(?:^|\s)rule=([\w-]{1,100})", re.IGNORECASE)
_YES_OR_NO = ("X-Spam-Flag", "X-Spam-Status", "X-Spam", "X-Barracuda-Spam-Flag", "X-Barracuda-Spam-Status")
_SPAM_WORDS = frozenset({"spam", "definitespam", "probablespam", "phish", "phishing"})
_SPAM_ACTIONS = frozenset({"add header", "rewrite subject", "reject"})
_VERDICTS = frozenset({"SPM", "SKB"})
_CATEGORIES = frozenset({"SPM", "HSPM", "PHSH", "HPHISH", "HPHSH"})


def junk_mark(header_section: bytes) -> str | None:
    """Return the name of the first field that marks the message as junk; ``None`` if there is none.

    If several filters added fields of the same name, any of them may mark it.
    """
    for name in _YES_OR_NO:
        if any(_YES.match(value) for value in values_of(header_section, name)):
            return name.lower()
    for name in ("X-Bogosity", *_mailscanner_fields(header_section)):
        if any(_SPAM.match(value) for value in values_of(header_section, name)):
            return name.lower()
    if any(map(_is_spam_to_proofpoint, values_of(header_section, "X-Proofpoint-Spam-Details"))):
        return "x-proofpoint-spam-details"
    if any(action.lower() in _SPAM_ACTIONS for action in values_of(header_section, "X-Rspamd-Action")):
        return "x-rspamd-action"
    if any(_is_junk_level(level) for level in values_of(header_section, "X-MS-Exchange-Organization-SCL")):
        return "x-ms-exchange-organization-scl"
    for said in map(pairs, values_of(header_section, "X-Forefront-Antispam-Report")):
        if (
            _is_junk_level(said.get("SCL", ""))
            or said.get("SFV") in _VERDICTS
            or said.get("CAT") in _CATEGORIES
        ):
            return "x-forefront-antispam-report"
    return None


def _mailscanner_fields(header_section: bytes) -> list[str]:
    """Return the names of MailScanner's result fields, which contain the site's own name."""
    names = {match[0].decode("ascii").lower() for match in _MAILSCANNER.finditer(header_section)}
    return sorted(names)[:MAILSCANNER_FIELDS_EXAMINED]


def _is_spam_to_proofpoint(details: str) -> bool:
    """Return whether the deciding rule is for spam or phishing, such as ``inbound_spam``.

    Sites name their own rules like the product's, which include ``notspam``.
    """
    rule = _PROOFPOINT_RULE.search(details)
    words = re.split(r"[_-]", rule[1].lower()) if rule else []
    return not any(word.startswith(("not", "safe")) for word in words) and not _SPAM_WORDS.isdisjoint(words)


def _is_junk_level(text: str) -> bool:
    return len(text) == 1 and text.isascii() and text.isdecimal() and int(text) >= JUNK_LEVEL


def pairs(report: str) -> dict[str, str]:
    """Return the pairs of a report such as ``CIP:192.0.2.1;SCL:5;SFV:SPM``, in upper case."""
    parts = (pair.partition(":") for pair in report.upper().split(";"))
    return {name.strip(): value.strip() for name, _, value in parts}
