"""When alerts fire: the common thresholds in the shipped file, and a site's overrides in its own."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Self

import yaml
from pydantic import AfterValidator, Field, ValidationError, ValidationInfo, field_validator, model_validator

from monitor.config.document import Document, Mistake, read_document
from monitor.config.load import ConfigurationError
from monitor.config.mistakes import mistakes_of
from monitor.config.models import BASE_URL
from monitor.shipped import shipped
from probes.core.setting_types import Duration, between, parse_duration
from probes.core.settings import CommonAlertSettings, Settings


def _window(value: str) -> str:
    parse_duration(value)
    return value


Window = Annotated[str, AfterValidator(_window)]
"""A duration as written, because it is also a label."""

Positive = Annotated[float, Field(gt=0, le=1e6)]
QueueLength = Annotated[float, Field(ge=0, le=1e6)]
"""The largest number of messages in a queue that needs no action."""

Share = Annotated[float, Field(gt=0, le=1)]

Hold = Annotated[Duration, between(0, 86400)]
"""How long a condition must last before the alert fires."""


def _address_of_dashboards(value: str) -> str:
    if value and not BASE_URL.fullmatch(value):
        raise ValueError(
            "is not the address of dashboards; write your Grafana's with /d, such as "
            'https://grafana.example.com/d, or "" for alerts without links to them'
        )
    return value.rstrip("/")


class BurnRate(Settings):
    """An error budget burns too fast if it burns at ``factor`` times the allowed rate over both windows.

    At least two of the bad runs must be in ``recent``, which defaults to ``short``.
    """

    factor: Positive
    long: Window
    short: Window
    recent: Window | None = None


class Thresholds(Settings):
    """All thresholds of the rules; intervals are the longest of a probe's class (`monitor.cadence`)."""

    slow_intervals: Positive
    slow_at_least: Hold
    slow_observations: Positive
    slow_deliveries: Positive
    slow_for: Hold
    down_intervals: Positive
    down_for: Hold
    refused_intervals: Positive
    unsteady_failures: Positive
    unsteady_intervals: Positive
    unsteady_at_least: Hold
    unsteady_at_most: Annotated[Duration, between(0, 15 * 86400)]
    unsteady_for: Hold
    lost_intervals: Positive
    lost_at_least: Hold
    lost_at_most: Hold
    unknown_intervals: Positive
    unknown_at_least: Hold
    unknown_for: Hold
    agent_down_for: Hold
    overloaded_for: Hold
    reload_failed_for: Hold
    paused_after: Annotated[Duration, between(60, 30 * 86400)]
    paused_for: Hold
    job: str = Field(max_length=100, pattern=r"^[A-Za-z0-9_.:/@-]*$")
    scrape_interval: Hold
    token_failing_for: Hold
    throttled_pause: Annotated[Duration, between(60, 86400)]
    back_pressure_at: Annotated[Duration, between(0.1, 600)]
    back_pressure_for: Hold
    exchange_submission_queue: QueueLength
    exchange_largest_queue: QueueLength
    exchange_retry_queue: QueueLength
    exchange_unreachable_queue: QueueLength
    exchange_poison_queue: QueueLength
    exchange_queue_for: Hold
    exchange_unseen_for: Hold
    exchange_inactive_for: Hold
    exchange_copy_for: Hold
    exchange_stale_after: Hold
    blocked_at_least: Hold
    certificate_warning: Annotated[Duration, between(0, 366 * 86400)]
    certificate_critical: Annotated[Duration, between(0, 366 * 86400)]
    certificate_for: Hold
    slo_windows: tuple[Window, ...]
    slo_fast: tuple[BurnRate, ...]
    slo_slow: tuple[BurnRate, ...]
    slo_bad_runs: Positive
    slo_hold: Hold
    lag_seconds: Positive
    lag_for: Hold
    blocked_times: Positive
    blocked_for: Hold
    ledger_seconds: Positive
    ledger_stuck: Hold
    ledger_for: Hold
    descriptors_ratio: Share
    descriptors_for: Hold
    memory_ratio: Share
    memory_for: Hold
    dropped_runs: Positive
    dropped_for: Hold
    skipped_runs: Positive
    skipped_intervals: Positive
    skipped_at_least: Hold
    runbooks: str = Field(max_length=500, pattern=r"^[^\s'\"{}]*$")
    dashboards: Annotated[str, AfterValidator(_address_of_dashboards)]

    @field_validator("certificate_critical")
    @classmethod
    def _warning_comes_first(cls, critical: float, info: ValidationInfo) -> float:
        if critical >= info.data.get("certificate_warning", math.inf):
            raise ValueError("must be shorter than certificate_warning: the warning is to come first")
        return critical

    @model_validator(mode="after")
    def _windows_are_recorded(self) -> Self:
        for pair in (*self.slo_fast, *self.slo_slow):
            for window in (pair.long, pair.short, pair.recent or pair.short):
                if window not in self.slo_windows:
                    raise ValueError(f"the window {window} is not one of slo_windows; add it there")
        return self


def load_thresholds(path: Path | None = None) -> Thresholds:
    """Return the shipped thresholds, overridden by those in the file ``path``.

    Raises `ConfigurationError` with every mistake in that file.
    """
    common = yaml.safe_load((shipped("alerts") / "thresholds.yaml").read_text())
    if path is None:
        return Thresholds.model_validate(common)
    document = read_document(path, "thresholds")
    if isinstance(document, Mistake):
        raise ConfigurationError([document])
    mistakes = [*document.duplicates, *_moved(document)]
    own = {key: value for key, value in document.data.items() if key not in CommonAlertSettings.model_fields}
    try:
        thresholds = Thresholds.model_validate(common | own)
    except ValidationError as error:
        raise ConfigurationError([*mistakes, *mistakes_of(error, document, Thresholds)]) from None
    if mistakes:
        raise ConfigurationError(mistakes)
    return thresholds


def _moved(document: Document) -> Iterator[Mistake]:
    """Yield a mistake for each key that the agent's configuration has now."""
    for key in document.data:
        if key in CommonAlertSettings.model_fields:
            text = f"has moved to the agent's configuration; write `alerts: {{{key}: …}}` there"
            yield document.mistake((key,), text)
