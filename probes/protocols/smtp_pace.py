"""How an SMTP server delays its answers on purpose: back pressure and tarpits, told apart by what they delay.

Exchange's back pressure delays only the answer to MAIL FROM, by 10 s and then 5 s more at each step up to
55 s, before it refuses mail with 452. A tarpit delays each answer of a session alike. A limit on connections
or messages delays nothing: the server refuses them, and the run is `throttled`.
"""

from __future__ import annotations

from collections.abc import Mapping

DELAYED_ANSWER = 5.0
"""Seconds from which an answer counts as delayed: Exchange's step, and its usual tarpit."""

BACK_PRESSURE_DELAY = 10.0
"""Seconds to MAIL FROM's answer from which this is back pressure."""


def delays(phases: Mapping[str, float]) -> dict[str, object]:
    """Return `Verdict.values` that name the deliberate delay in a session's ``phases``, if any.

    RCPT TO shows whether other answers are delayed too; if none was sent, EHLO does.
    """
    mail, other = phases.get("mail", 0.0), phases.get("rcpt", phases.get("ehlo", 0.0))
    if other >= DELAYED_ANSWER:
        return {"delayed_answers": f"tarpit, or a slow server: each answer takes about {other:.0f} s"}
    if mail >= BACK_PRESSURE_DELAY:
        return {"delayed_answers": f"back pressure: the answer to MAIL FROM took {mail:.0f} s"}
    return {}
