"""The runbooks, for the links in alerts."""

from __future__ import annotations

import re

from monitor.shipped import shipped

_NAME = re.compile(r"Mailsonde[A-Za-z0-9]{1,60}")


def runbook(alert: str) -> str | None:
    """Return the runbook of an alert in Markdown; ``None`` if there is no such alert."""
    path = shipped("alerts") / "runbooks" / f"{alert}.md"
    return path.read_text() if _NAME.fullmatch(alert) and path.is_file() else None


def as_html(text: str) -> str:
    """Return Markdown as HTML. HTML within it is escaped."""
    from markdown_it import MarkdownIt  # loaded only when needed, which is rare

    return str(MarkdownIt("commonmark", {"html": False}).render(text))
