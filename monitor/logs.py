"""Structured logs on standard error: text on a terminal, otherwise JSON objects."""

from __future__ import annotations

import logging
import sys
from typing import Literal

import structlog

LogFormat = Literal["auto", "text", "json"]


def set_up_logs(form: LogFormat = "auto", level: int = logging.INFO) -> None:
    """Send every log record of this process to standard error in the given format."""
    if form == "auto":
        form = "text" if sys.stderr.isatty() else "json"
    shared: list[structlog.types.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[structlog.types.Processor] = (
        # Rich tracebacks would show every frame's locals, including passwords.
        [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            )
        ]
        if form == "text"
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
    )
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for library in ("apscheduler", "uvicorn", "httpx", "httpcore", "spnego"):  # some log URLs and tokens
        logging.getLogger(library).setLevel(logging.WARNING)
