"""How long a mailbox is left alone after a poll has failed."""

from __future__ import annotations

from probes.core.faults import ProbeFault
from probes.core.reasons import Reason

_PAUSE_WHERE_NONE_ADVERTISED = 60.0
_PAUSES_AFTER_REFUSED_LOGIN = (10.0, 60.0, 300.0)
_PAUSE_AFTER_WRONG_CREDENTIALS = 300.0  # repeated attempts may lock the account
_NEED_AN_ADMINISTRATOR = frozenset({Reason.AUTH_FAILED, Reason.AUTH_DISABLED, Reason.NOT_GRANTED})


def pause_after(fault: ProbeFault, failures: int) -> float:
    """Return the seconds until the next poll, which grow with consecutive ``failures``."""
    growing = 2.0 ** min(failures, 10)
    if fault.reason in _NEED_AN_ADMINISTRATOR:
        return _PAUSE_AFTER_WRONG_CREDENTIALS
    if fault.reason is Reason.LOGIN_REFUSED:
        return _PAUSES_AFTER_REFUSED_LOGIN[min(failures, len(_PAUSES_AFTER_REFUSED_LOGIN)) - 1]
    if fault.retry_after is not None:
        return fault.retry_after
    if fault.reason in {Reason.POP3_IN_USE, Reason.IMAP_IN_USE}:
        return min(growing / 2, 60.0)  # another session may end at any moment
    return _PAUSE_WHERE_NONE_ADVERTISED if fault.asks_to_wait else min(growing, 60.0)
