"""Interprets the enhanced status codes (RFC 3463) and the wording of delivery reports."""

from __future__ import annotations

import re

from probes.core.reasons import Reason

TEXT_CHARACTERS = 16 * 1024
"""Maximum characters of a text to search for a cause."""

_CODE = re.compile(r"([245])\.([0-9]{1,3})\.([0-9]{1,3})(?![\w.-])")
_SAID_CODE = re.compile(
    r"(?:^\s*|(?<![\w.])(?P<reply>[245])[0-9][0-9][ -]\s{0,9})"
    r"#?(?P<code>[245]\.[0-9]{1,3}\.[0-9]{1,3})(?![\w.-])"
    r"|\(#(?P<qmail>[245]\.[0-9]{1,3}\.[0-9]{1,3})\)"
)

_BY_CODE = {
    **dict.fromkeys(("1.1", "1.2", "1.3", "1.6", "1.10"), Reason.BOUNCE_NO_MAILBOX),
    "2.1": Reason.BOUNCE_MAILBOX_DISABLED,
    "2.2": Reason.BOUNCE_MAILBOX_FULL,
    "2.3": Reason.BOUNCE_TOO_LARGE,
    "3.4": Reason.BOUNCE_TOO_LARGE,
    "4.7": Reason.BOUNCE_EXPIRED,
    # Exchange Online's own
    "1.90": Reason.BOUNCE_POLICY,  # the sender's daily limit
    "1.351": Reason.BOUNCE_NO_MAILBOX,
    "2.121": Reason.BOUNCE_POLICY,  # the recipient's hourly limit
    "2.122": Reason.BOUNCE_POLICY,
    "4.300": Reason.BOUNCE_EXPIRED,
}
_BY_VAGUE_CODE = {
    "1.0": Reason.BOUNCE_NO_MAILBOX,
    "3": Reason.BOUNCE_SYSTEM,
    "4": Reason.BOUNCE_ROUTING,
    "5": Reason.BOUNCE_PROTOCOL,
    "6": Reason.BOUNCE_CONTENT,
    "7": Reason.BOUNCE_POLICY,
}


def _any(*patterns: str) -> re.Pattern[str]:
    """Return a pattern that matches any of ``patterns``; a space in them also matches a line break."""
    return re.compile("|".join(patterns).replace(" ", r"(?:\s{1,20})"), re.IGNORECASE)


_DIALECTS = (
    # Codes that some mail systems use against RFC 3463, recognized by their wording.
    ("2.2", _any(r"submission quota"), Reason.BOUNCE_POLICY),  # Exchange Online
    ("4.1", _any(r"recipient address rejected: access denied"), Reason.BOUNCE_NO_MAILBOX),  # Exchange Online
    ("1.1", _any(r"over quota", r"mailbox (?:is )?full"), Reason.BOUNCE_MAILBOX_FULL),  # qmail's patches
)

_WORD = r"(?:\S{1,100} )"
_GONE = r"(?:not found|unknown|(?:does ?n[o']t|do not|not) exist|invalid|no longer exists?)"
_CAUSES = (
    # Before the expiry: what waits for room in a mailbox until it expires found the mailbox full.
    (
        Reason.BOUNCE_MAILBOX_FULL,
        _any(
            r"mail ?(?:box|folder) (?:is |was )?(?:over)?full",
            r"(?:over|exceed(?:s|ed|ing)?) (?:(?:its|the|their|allowed|disk|storage|mailbox) ){0,3}quota",
            r"quota (?:has been |is )?exce+d",
            r"mailbox size limit (?:is )?exceeded",
            r"out of (?:mailbox )?storage space",
        ),
    ),
    (
        Reason.BOUNCE_EXPIRED,
        _any(
            r"(?:message|envelope) (?:has )?expired",
            r"retry time(?:out)? (?:exceeded|not reached)",
            r"in (?:the )?queue (?:for )?too long",
            r"could not be (?:delivered|sent) for (?:the (?:past|last) )?[0-9]+ (?:day|hour)",
            r"delivery (?:time|period|attempts?) (?:has |have )?(?:expired|exceeded|ran out)",
            r"(?:queue|message) life ?time (?:has )?(?:expired|exceeded)",
            r"after a long failure period",
        ),
    ),
    (
        Reason.BOUNCE_TOO_LARGE,
        _any(
            r"(?:message|mail|size) (?:is |was |size )?(?:too|to) (?:large|big|long)",
            r"(?:message )?size (?:exceeds|limit)",
            r"exceed(?:s|ed)? (?:the )?(?:fixed )?(?:maximum|max)\.? (?:allowed )?(?:message )?size",
        ),
    ),
    (
        Reason.BOUNCE_MAILBOX_DISABLED,
        _any(
            rf"(?:account|mailbox|user|recipient) {_WORD}?(?:has been |is |was )?(?:currently |temporarily )?"
            r"(?:disabled|suspended|inactive|deactivated|locked|closed)",
            r"(?:not accepting|no longer accepts) (?:any )?(?:mail|messages)",
        ),
    ),
    (
        Reason.BOUNCE_NO_MAILBOX,
        _any(
            r"(?:unknown|no such|invalid|non-?existent) (?:local )?(?:user|mailbox|recipient|address)",
            rf"(?:user|mailbox|recipient|address|account)s? {_WORD}{{0,4}}{_GONE}",
            r"no mailbox here",
            r"(?:email account|user) that you tried to reach does not exist",
            r"not listed in (?:the )?(?:domino|public|address)",
            r"mailbox unavailable",
            r"bad destination mailbox",
            r"unrouteable",
            rf"(?:host|domain)(?: name)?s? {_WORD}{{0,2}}{_GONE}",
            r"(?:unknown|no such) (?:host|domain)",
        ),
    ),
    (
        Reason.BOUNCE_ROUTING,
        _any(
            r"too many hops",
            r"hop count exceeded",
            r"(?:mail|routing) loop",
            r"loops back",
            r"connection (?:was )?(?:refused|timed out|dropped)",
            r"(?:could not|cannot|unable to|wasn't able to) (?:connect|establish)",
            r"no route to host",
            r"network (?:is )?unreachable",
        ),
    ),
    (
        Reason.BOUNCE_POLICY,
        _any(
            r"spam",
            r"virus",
            r"bl(?:ack|ock) ?list",
            r"blocked",
            r"relay(?:ing)? (?:access )?(?:denied|not permitted)",
            r"not permitted to relay",
            r"access denied",
            r"polic(?:y|ies)",
            r"bad outbound sender",
            r"(?:sender|client host) (?:address )?(?:rejected|denied)",
            rf"(?:rate|daily|hourly|sending|recipients?) {_WORD}{{0,3}}limit",
            r"not (?:allowed|authori[sz]ed|accepted)",
            r"(?:dkim|dmarc|spf)\b",
        ),
    ),
    (
        Reason.BOUNCE_SYSTEM,
        _any(
            r"(?:insufficient|out of) (?:system )?(?:disk|storage|resources|memory)",
            r"no space left",
            r"(?:local )?configuration error",
            r"internal (?:server |software )?error",
            r"can(?:'t|not) create (?:output|file)",
        ),
    ),
    (Reason.BOUNCE_PROTOCOL, _any(r"syntax error", r"command (?:not|un)\s?recogni[sz]ed", r"bad sequence")),
    (
        Reason.BOUNCE_CONTENT,
        _any(
            r"8bitmime",
            r"conversion (?:is )?(?:required|prohibited|failed)",
            r"malformed",
            r"not rfc [0-9]+ compliant",
        ),
    ),
)


_DELAYED = _any(
    r"\bdelayed\b",
    r"not yet been delivered",
    r"not been delivered yet",
    r"warning (?:message )?only",
    r"\(delay\)",
    r"do not need to re-?send",
    r"will (?:be re-?tried|keep trying|continue to try|continue trying)",
    r"past [0-9]+ hours",
)
_PERMANENT = _any(
    r"permanent",
    r"giv(?:en|ing) up",
    r"failure notice",
    r"returned mail",
    r"undeliver",
    r"mail delivery failed",
    r"did not reach",
)
_ENVELOPE_EXPIRED = _any(r"envelope expired")
_FAILED = _any(
    r"(?:not|n't) (?:be |been )?delivered",
    r"(?:unable|not able|n't able|failed|not|n't) (?:to )?deliver",
    r"deliver[a-z]{0,5} (?:has |have )?fail",
    r"return(?:ed|ing) (?:message )?to sender",
)


def action_in(text: str) -> str | None:
    """Return the action (RFC 3464 section 2.3.3) in a notice, if it is failed or delayed."""
    text = text[:TEXT_CHARACTERS]
    if _DELAYED.search(text) and not _PERMANENT.search(text):
        return "delayed"
    return "failed" if _FAILED.search(text) or _PERMANENT.search(text) or code_in(text, "5") else None


def tells_expiry(notice: str) -> bool:
    """Return whether the message waited too long in a queue, whatever action the report names.

    OpenSMTPD 6.8 drops such a message, but reports it as delayed and says that it will go on trying.
    """
    return _ENVELOPE_EXPIRED.search(notice[:TEXT_CHARACTERS]) is not None


def sound_code(text: str) -> str | None:
    """Return the enhanced status code at the start of ``text``, without leading zeros, if there is one."""
    match = _CODE.match(text)
    return ".".join(str(int(number)) for number in match.groups()) if match else None


def code_in(text: str, classes: str = "45") -> str | None:
    """Return the first enhanced status code of one of the ``classes`` that ``text`` quotes from a reply.

    The code is at the start of the text, after a reply code of its class (RFC 2034 section 4), or written as
    ``(#5.1.1)``, as in qmail. Other numbers with dots are versions and addresses.
    """
    for match in _SAID_CODE.finditer(text[:TEXT_CHARACTERS]):
        code = match["code"] or match["qmail"]
        if code[0] in classes and match["reply"] in {None, code[0]}:
            return sound_code(code)
    return None


def is_vague(code: str) -> bool:
    """Return whether the code says only whether the failure is permanent."""
    return code.endswith(".0.0")


def reason_of(code: str, diagnostic: str = "", notice: str = "") -> Reason:
    """Return the reason of a failed delivery, from its enhanced status code, such as 5.1.1, and its texts.

    ``diagnostic`` is what a mail system said about the recipient, and ``notice`` is the report's text for
    people. A precise code decides, unless a mail system is known to use it for something else. If the code
    is vague, the diagnostic decides. A notice may list several possible causes, so it is used only if the
    code says nothing.
    """
    subject, _, detail = code.partition(".")[2].partition(".")
    detail = f"{subject}.{detail}"
    for known, words, reason in _DIALECTS:
        if detail == known and words.search(diagnostic[:TEXT_CHARACTERS]):
            return reason
    if detail in _BY_CODE:
        return _BY_CODE[detail]
    if subject != "7":  # a policy may mention any fault, as in "too many unknown users"
        found = _cause_in(diagnostic) or (_cause_in(notice) if is_vague(code) else None)
        if found:
            return found[0]
    return _BY_VAGUE_CODE.get(detail) or _BY_VAGUE_CODE.get(subject, Reason.BOUNCE_OTHER)


def excerpt(notice: str) -> str:
    """Return the lines of a notice that state the cause; empty if there is no known cause."""
    notice = notice[:TEXT_CHARACTERS]
    said = _SAID_CODE.search(notice)
    found = _cause_in(notice)
    if said is None and found is None:
        return ""
    at = said.start() if said is not None else found[1] if found is not None else 0
    begin = notice.rfind("\n", 0, at + 1) + 1
    return " ".join(re.split(r"\n[ \t]*\n", notice[begin:], maxsplit=1)[0].split())


def _cause_in(text: str) -> tuple[Reason, int] | None:
    """Return the cause in ``text`` and its position. More reliable wordings are tried first."""
    text = text[:TEXT_CHARACTERS]
    for reason, words in _CAUSES:
        if match := words.search(text):
            return reason, match.start()
    return None
