"""Following docs/develop.md exactly gives a working kind of probe."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "develop.md").read_text()

_BLOCK = re.compile(
    r'^```\w+ title="(?P<path>[^"]+)"(?: after="(?P<after>[^\n]*)"| at="(?P<at>end)")?\n(?P<text>.*?)^```$',
    re.MULTILINE | re.DOTALL,
)
_COMMANDS = re.compile(r"^### Run the checks\n((?:    .*\n)+)", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """Text that the page adds: a new file, or text after a line of a file or at its end."""

    path: str
    text: str
    after: str | None
    at_end: bool

    def put_into(self, tree: Path) -> None:
        path = tree / self.path
        if self.after is None and not self.at_end:
            assert not path.exists(), f"{self.path} is there already"
            path.write_text(self.text)
            return
        existing = path.read_text()
        if self.after is None:
            path.write_text(existing + self.text)
            return
        assert existing.count(f"\n{self.after}\n") == 1, f"{self.path} has no one line {self.after!r}"
        path.write_text(existing.replace(f"\n{self.after}\n", f"\n{self.after}\n{self.text}"))


def blocks() -> Iterator[Block]:
    found = list(_BLOCK.finditer(PAGE))
    assert len(found) == PAGE.count("\n```") / 2, (
        "a block of the page has no title, or one that is not understood"
    )
    for match in found:
        yield Block(match["path"], match["text"], match["after"], match["at"] is not None)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of all files that git tracks or would track, with the page's blocks added."""
    copy = tmp_path_factory.mktemp("tree")
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():  # not a removed file that is still in git's index
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    for block in blocks():
        block.put_into(copy)
    with suppress(FileNotFoundError):  # what mypy remembers of all other files, if it has run here
        shutil.copytree(ROOT / ".mypy_cache", copy / ".mypy_cache")
    return copy


def run(tree: Path, *command: str) -> str:
    """Run a command in the tree, with its packages before the installed ones; return its output."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": ""}  # compiled once
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_the_page_touches_what_a_kind_may_touch(tree: Path) -> None:
    """A new kind touches only its module, the registry, its test, its bad files and a stanza."""
    touched = {block.path for block in blocks()}
    allowed = (
        r"probes/(registry|managesieve)\.py|config/example\.yaml"
        r"|tests/unit/probes/test_managesieve\.py|tests/unit/config/bad/managesieve_\w+\.(yaml|expected)"
    )
    assert [path for path in touched if not re.fullmatch(allowed, path)] == []
    assert len(touched) == 6


def test_the_stanza_is_valid(tree: Path, tmp_path: Path) -> None:
    """`mailsonde validate` accepts the stanza as shown."""
    (stanza,) = (block.text for block in blocks() if block.path == "config/example.yaml")
    path = tmp_path / "mailsonde.yaml"
    path.write_text(f"probes:\n{stanza}")
    assert run(tree, sys.executable, "-m", "monitor", "validate", str(path)) == f"{path}: valid, 1 probe\n"


def test_the_page_commands_are_green(tree: Path) -> None:
    """The page's last commands succeed: reference generated, code formatted, linted, typed, tests pass."""
    found = _COMMANDS.search(PAGE)
    assert found is not None
    commands = [line.split() for line in found[1].splitlines()]
    programs = [Path(program).name for program, *_ in commands]
    assert programs == ["python", "ruff", "ruff", "mypy", "pytest"]
    for _, *arguments in commands:
        program = programs.pop(0)
        module = [] if program == "python" else ["-m", program]
        more = ["-p", "no:cacheprovider"] if program == "pytest" else []
        run(tree, sys.executable, *module, *arguments, *more)
    reference = (tree / "docs" / "reference" / "settings.md").read_text()
    assert "## A probe of kind `managesieve`" in reference
