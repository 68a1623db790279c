"""File descriptors: some are kept for serving and the ledger, whatever the probes do.

The system hands out the lowest number that is free. So once the lowest free number is near the limit,
that many are in use, whoever holds them.
"""

from __future__ import annotations

import os
import resource

from probes.core.faults import ProbeFault, fault_of
from probes.core.reasons import Reason

MOST_KEPT = 160
"""Most descriptors that probes leave to others: to scrapers and browsers, and to the ledger."""


def raise_limit() -> None:
    """Raise this process's limit as far as it may: the usual 1024 is for programs that use select(2)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):  # some systems have a lower limit that they do not tell
        return


def kept() -> int:
    """Return how many descriptors probes leave to others: a quarter where few are allowed."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_KEPT if limit == resource.RLIM_INFINITY else min(MOST_KEPT, limit // 4)


def require_descriptor(*, for_sending: bool = False) -> None:
    """Raise `ProbeFault` with `LOCAL_RESOURCES` if a probe may not open another socket now.

    Sending needs twice as many free ones: polls for the message come after it.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return
    try:
        lowest = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        os.close(lowest)
    except OSError as error:
        if (fault := fault_of(error)) is None:
            raise
        raise fault from error
    left = kept() * (2 if for_sending else 1)
    if lowest >= limit - left:
        what = "no message is sent" if for_sending else "no connection is opened"
        raise ProbeFault(
            Reason.LOCAL_RESOURCES, f"{what} while fewer than {left} of {limit} file descriptors are free"
        )
