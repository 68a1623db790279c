"""Locates the files shipped with the code: rule templates, dashboards, examples."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent


def shipped(folder: str) -> Path:
    """Return the folder ``alerts``, ``dashboards`` or ``config``; in a wheel it is inside this package."""
    installed = _PACKAGE / "_shipped" / folder
    return installed if installed.is_dir() else _PACKAGE.parent / folder
