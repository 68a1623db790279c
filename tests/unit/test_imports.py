"""The rooms of the code: what docs/develop.md says may be imported where, held against every import."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for room in ("monitor", "probes") for path in (ROOT / room).rglob("*.py"))

_ROW = re.compile(r"^\| ((?:`[\w.]+`(?:, )?)+) \| ((?:`[\w./]+`(?:, )?)+) \|$", re.MULTILINE)


def rules() -> list[tuple[str, tuple[str, ...]]]:
    """Return each module of the page's table with the files and folders that may import it."""
    table = (
        (ROOT / "docs" / "develop.md").read_text().partition("| import | only in |")[2].partition("\n\n")[0]
    )
    return [
        (module, tuple(re.findall(r"`([^`]+)`", row[2])))
        for row in _ROW.finditer(table)
        for module in re.findall(r"`([^`]+)`", row[1])
    ]


def imported(source: str) -> Iterator[str]:
    """Yield the full name of everything that a module imports, also inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield from (f"{node.module}.{name.name}" for name in node.names)


IMPORTS = {path.relative_to(ROOT).as_posix(): list(imported(path.read_text())) for path in SOURCES}


def importers(module: str) -> set[str]:
    return {path for path, names in IMPORTS.items() for name in names if f"{name}.".startswith(f"{module}.")}


def test_the_table_is_read() -> None:
    """The rules that matter most are there: probes know neither the agent, nor metrics, schedule or web."""
    found = dict(rules())
    for module in ("monitor", "prometheus_client", "apscheduler", "starlette", "sqlalchemy"):
        assert not any(place.startswith("probes") for place in found[module])


@pytest.mark.parametrize(("module", "places"), rules())
def test_it_is_imported_only_there(module: str, places: tuple[str, ...]) -> None:
    """No file imports what the page keeps from it, and no rule is about a module or place that is gone."""
    users = importers(module)
    strays = {
        path
        for path in users
        if not any(path == place or (place.endswith("/") and path.startswith(place)) for place in places)
    }
    assert strays == set(), f"{module} is imported outside of {', '.join(places)}"
    for place in places:
        assert (ROOT / place).exists(), f"{place} is no file or folder"
    assert users, f"nobody imports {module}: the rule is misspelt or out of date"
