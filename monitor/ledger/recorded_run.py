"""Reads runs of the history, which another version of mailsonde may have written."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, FiniteFloat, ValidationError

from monitor.ledger.packing import unpacked
from probes.core.reasons import FORMER_NAMES, Outcome, Reason
from probes.core.verdict import MessageState

UNKNOWN_WORD = "unknown"
"""Replaces words that this version does not know."""


_log = logging.getLogger(__name__)


class RunReader:
    """Reads runs and leaves out broken ones; ``ledger`` is the ledger's name in the log.

    The history is only for display, so a broken row loses only that run, and the log says so.
    """

    def __init__(self, ledger: str) -> None:
        self._ledger = ledger
        self._told = False

    def read(self, documents: Iterable[tuple[bytes | str, bytes | str | None]]) -> list[dict[str, Any]]:
        """Return the runs in these documents. The first time that some are broken, log it."""
        runs: list[dict[str, Any]] = []
        faults: list[_BrokenRunError] = []
        for document, transcript in documents:
            try:
                runs.append(_run_of(document, transcript))
            except _BrokenRunError as error:
                faults.append(error)
        if faults and not self._told:
            self._told = True
            _log.warning(
                "%s: %d broken runs of the history are left out; the first: %s",
                self._ledger,
                len(faults),
                faults[0],
            )
        return runs


class _BrokenRunError(Exception):
    """A row contains no run that can be shown; the text says what is wrong."""


def _one_of(words: type[StrEnum], formerly: Mapping[str, str] = MappingProxyType({})) -> BeforeValidator:
    known = dict(formerly) | {str(word): str(word) for word in words}
    return BeforeValidator(
        lambda word: str(known.get(word, UNKNOWN_WORD)) if isinstance(word, str) else UNKNOWN_WORD
    )


def _instant(text: str) -> str:
    datetime.fromisoformat(text).astimezone(UTC)
    return text


def _timestamp(seconds: float) -> float:
    datetime.fromtimestamp(seconds, UTC)
    return seconds


class _Message(BaseModel):
    model_config = ConfigDict(extra="allow")

    state: Annotated[str, _one_of(MessageState)] = UNKNOWN_WORD
    submission_seconds: FiniteFloat | None = None
    transit_seconds: FiniteFloat | None = None
    delivery_seconds: FiniteFloat | None = None
    uncertainty_seconds: FiniteFloat | None = None


class _Finding(BaseModel):
    model_config = ConfigDict(extra="allow")

    check: str = UNKNOWN_WORD
    severity: str = UNKNOWN_WORD
    subject: str = ""
    seen: str = ""
    expected: str = ""
    remedy: str = ""


class _Hop(BaseModel):
    model_config = ConfigDict(extra="allow")

    by: str = ""
    sender: str = ""
    protocol: str = ""
    stamped_at: Annotated[FiniteFloat, AfterValidator(_timestamp)] | None = None
    delay_seconds: FiniteFloat | None = None
    skewed: bool = False
    clock_error_seconds: FiniteFloat = 0.0


class _Exchange(BaseModel):
    model_config = ConfigDict(extra="allow")

    stages: dict[str, FiniteFloat] = {}
    end_to_end_seconds: FiniteFloat | None = None
    original_arrival_at: Annotated[FiniteFloat, AfterValidator(_timestamp)] | None = None
    scl: str = ""
    sfv: str = ""
    cat: str = ""
    builds: dict[str, str] = {}


class _Values(BaseModel):
    model_config = ConfigDict(extra="allow")

    hops: list[_Hop] | None = None
    exchange: _Exchange | None = None


class _Run(BaseModel):
    """The members of a run that the pages rely on; others are passed on unchanged."""

    model_config = ConfigDict(extra="allow")

    run: str | None = None
    probe: str
    kind: str = UNKNOWN_WORD
    target: str
    location: str = ""
    outcome: Annotated[str, _one_of(Outcome)] = UNKNOWN_WORD
    reason: Annotated[str, _one_of(Reason, FORMER_NAMES)] = UNKNOWN_WORD
    detail: str = ""
    remedy: str | None = None
    started_at: Annotated[str, AfterValidator(_instant)]
    duration_seconds: FiniteFloat
    phases: dict[str, FiniteFloat] = {}
    values: _Values = _Values()
    message: _Message | None = None
    findings: list[_Finding] | None = None
    transcript: list[str] | None = None


def _run_of(document: bytes | str, transcript: bytes | str | None) -> dict[str, Any]:
    """Return the run in ``document``, a JSON object as `monitor.runner.Result` makes it.

    A reason that had another name gets the present one. If this version does not know the reason, the outcome
    or the message's state, it becomes `UNKNOWN_WORD`, and the detail says what an unknown reason was. Members
    that an older version did not write get neutral defaults; ``run``, ``remedy``, ``message`` and
    ``transcript`` are left out. Raises `_BrokenRunError`.
    """
    try:
        written = json.loads(unpacked(document))
        if transcript is not None:
            written["transcript"] = json.loads(unpacked(transcript))
        run = _Run.model_validate(written).model_dump()
        json.dumps(run, ensure_ascii=False, allow_nan=False).encode()  # fails here if the page would fail
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise _BrokenRunError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise _BrokenRunError(str(error)) from error
    optional = [(run, name) for name in ("run", "remedy", "message", "findings", "transcript")]
    for members, name in (*optional, (run["values"], "hops"), (run["values"], "exchange")):
        if members[name] is None:
            del members[name]
    if run["reason"] == UNKNOWN_WORD:
        told = f"this version does not know the reason {written.get('reason')!r}"
        run["detail"] = f"{told}: {run['detail']}" if run["detail"] else told
    return run
