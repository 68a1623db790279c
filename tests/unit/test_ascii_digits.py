"""Numbers in text from people or servers must be ASCII digits, as their formats say."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from monitor.config.listen import parse_listen
from probes.core.setting_types import is_host_name, parse_duration
from probes.delivery.service_level import SloSettings

ROOT = Path(__file__).parents[2]
MODULES = sorted(path for room in ("monitor", "probes") for path in (ROOT / room).rglob("*.py"))


def _faults(tree: ast.Module) -> Iterator[int]:
    r"""Yield the line of each ``\d`` in a text pattern without re.ASCII, and of each isdecimal alone."""
    covered: set[ast.AST] = set()
    for node in ast.walk(tree):
        text = ast.unparse(node) if isinstance(node, ast.BoolOp | ast.Call) else ""
        if isinstance(node, ast.BoolOp) and ".isascii()" in text:
            covered |= set(ast.walk(node))
        if isinstance(node, ast.Call) and text.startswith("re."):
            patterns = [part for part in ast.walk(node) if isinstance(part, ast.Constant)]
            if "re.ASCII" not in text and any(
                isinstance(part.value, str) and r"\d" in part.value for part in patterns
            ):
                yield node.lineno
        if (
            isinstance(node, ast.Attribute)
            and node.attr in {"isdecimal", "isnumeric"}
            and node not in covered
        ):
            yield node.lineno


def test_digits_are_ascii_everywhere() -> None:
    r"""No module accepts full-width or Arabic digits, as ``\d`` and str.isdecimal would."""
    found = {
        f"{path.relative_to(ROOT)}:{line}"
        for path in MODULES
        for line in _faults(ast.parse(path.read_text()))
    }
    assert found == set()


@pytest.mark.parametrize("code", [r're.compile(r"\d+")', "text.isdecimal() and int(text)"])
def test_check_finds_what_it_looks_for(code: str) -> None:
    """The check above can fail."""
    assert list(_faults(ast.parse(code))) == [1]


@pytest.mark.parametrize("text", ["１s", "1２s", "٣m", "1.５s"])
def test_duration_of_other_digits_is_refused(text: str) -> None:
    """A duration must have ASCII digits, as the schema for editors says."""
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


def test_other_settings_of_other_digits_are_refused() -> None:
    """Ports and percentages need ASCII digits, and host names ASCII letters: K (U+212A) is not k."""
    with pytest.raises(ValueError, match="must be HOST:PORT"):
        parse_listen("127.0.0.1:９７２５")
    with pytest.raises(ValueError, match="objective"):
        SloSettings.model_validate({"objective": "9９%", "within": "30s"})
    assert is_host_name("mask.example.com")
    assert not is_host_name("mas\u212a.example.com")
    assert not is_host_name("ma\u017fk.example.com")
