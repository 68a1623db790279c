"""Reserves some file descriptors for serving and the ledger, however many the probes use.

The system always assigns the lowest free number. So if the lowest free number is near the limit, nearly all
are in use.
"""

from __future__ import annotations

import os
import resource
import sys

from probes.core.faults import ProbeFault, fault_of
from probes.core.reasons import Reason

MOST_KEPT = 160
"""Maximum number of descriptors that probes leave for scrapers, browsers and the ledger."""


def raise_limit() -> None:
    """Raise this process's limit to the maximum allowed. The usual 1024 is for programs with select(2)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):  # some systems have a lower limit that they do not report
        return


def kept() -> int:
    """Return how many descriptors probes leave for others: `MOST_KEPT`, or a quarter of a low limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_KEPT if limit == resource.RLIM_INFINITY else min(MOST_KEPT, limit // 4)


def for_probes() -> int:
    """Return how many descriptors probes may have in total."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit - kept()


def for_sending() -> int:
    """Return how many descriptors may be open before no message is sent, because polls for it will follow."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit - 2 * kept()


def require_descriptor(*, for_sending: bool = False) -> None:
    """Raise `ProbeFault` with `LOCAL_RESOURCES` if a probe may not open another socket now.

    Sending a message needs twice as many free descriptors, because polls for it will follow.
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
