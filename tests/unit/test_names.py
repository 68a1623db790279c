"""One name has one value: a constant means the same in every module that defines it."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = [path for room in ("monitor", "probes") for path in (ROOT / room).rglob("*.py")]


def constants(source: str) -> Iterator[tuple[str, str]]:
    """Yield the name and value of each public constant of a module, as they are written."""
    for node in ast.parse(source).body:
        match node:
            case ast.Assign(targets=[ast.Name(name)], value=value):
                pass
            case ast.AnnAssign(target=ast.Name(name), value=ast.expr() as value):
                pass
            case _:
                continue
        if name.isupper() and not name.startswith("_"):
            yield name, ast.unparse(value)


def test_one_name_has_one_value() -> None:
    """No two modules define the same public constant with different values."""
    found: defaultdict[str, defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for path in SOURCES:
        for name, value in constants(path.read_text()):
            found[name][value].append(path.relative_to(ROOT).as_posix())
    assert {name: dict(values) for name, values in found.items() if len(values) > 1} == {}
