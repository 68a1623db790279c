"""Generates dashboards/*.json with the Grafana foundation SDK; ``--check`` only compares."""

from __future__ import annotations

import sys
from pathlib import Path

from agent import agent
from delivery import delivery
from exchange import exchange
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from overview import overview
from server import server
from slo import slo
from windows import windows

DIRECTORY = Path(__file__).parent


def generated() -> dict[str, str]:
    """Return the text of each dashboard by file name."""
    encoder = JSONEncoder(indent=2, sort_keys=True)
    return {
        f"{builder.__name__}.json": encoder.encode(builder().build()) + "\n"
        for builder in (overview, delivery, server, slo, agent, exchange, windows)
    }


def differences() -> list[str]:
    """Return the names of files that differ from their builders' output or have no builder."""
    wanted = generated()
    found = {path.name: path.read_text() for path in DIRECTORY.glob("*.json")}
    return sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))


if __name__ == "__main__":
    if "--check" not in sys.argv[1:]:
        for name, text in generated().items():
            (DIRECTORY / name).write_text(text)
    if wrong := differences():
        sys.exit(f"out of date: {', '.join(wrong)}; run `make dashboards`")
