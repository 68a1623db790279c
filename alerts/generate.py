"""Generates alerts/rules/, the rules that need no rendering; ``--check`` only compares."""

from __future__ import annotations

import sys
from pathlib import Path

from monitor.rendering import render_alerts

DIRECTORY = Path(__file__).parent / "rules"


def differences() -> list[str]:
    """Return the names of files that differ from the rendered ones, or that nothing renders."""
    wanted = render_alerts()
    found = {path.name: path.read_text() for path in DIRECTORY.iterdir()}
    return sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))


if __name__ == "__main__":
    if "--check" not in sys.argv[1:]:
        for name, text in render_alerts().items():
            (DIRECTORY / name).write_text(text)
    if wrong := differences():
        sys.exit(f"out of date in alerts/rules: {', '.join(wrong)}; run `make alerts`")
