"""Writes dashboards/*.json from their builders with the Grafana foundation SDK. ``--check`` only compares."""

from __future__ import annotations

import sys
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from overview import overview

DIRECTORY = Path(__file__).parent


def generated() -> dict[str, str]:
    """Return the text of each dashboard by file name."""
    return {"overview.json": JSONEncoder(indent=2, sort_keys=True).encode(overview().build()) + "\n"}


if __name__ == "__main__":
    for name, text in generated().items():
        path = DIRECTORY / name
        if "--check" not in sys.argv[1:]:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            sys.exit(f"dashboards/{name} is not what its builder makes; run `make dashboards`")
