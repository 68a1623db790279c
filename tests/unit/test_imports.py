"""Checks every import against the tables in docs/develop.md.

``pytest -s tests/unit/test_imports.py`` prints the rooms with their floors, the circles of imports, and the
lengths of functions and files.
"""

from __future__ import annotations

import ast
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from probes.registry import KINDS, MESSAGE_KINDS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "develop.md").read_text()

Graph = Mapping[str, Iterable[str]]
"""What each module, or room, imports."""


def table(head: str) -> list[tuple[list[str], list[str]]]:
    """Return the first and last column of each row of the page's table under ``head``."""
    rows = PAGE.partition(f"{head}\n")[2].partition("\n\n")[0].splitlines()[1:]
    cells = [row.strip("|").split("|") for row in rows]
    return [(re.findall(r"`([^`]+)`", row[0]), re.findall(r"`([^`]+)`", row[-1])) for row in cells]


LIBRARIES = [(name, places) for names, places in table("| library | only in |") for name in names]
ROOMS = {room: may_import for (room,), may_import in table("| room | holds | may import |")}


def imported(tree: ast.Module) -> Iterator[str]:
    """Yield the full name of everything that a module imports, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def parsed(root: Path) -> dict[str, ast.Module]:
    """Return the syntax tree of each module by its path below ``root``."""
    paths = sorted(path for package in ("monitor", "probes") for path in (root / package).rglob("*.py"))
    return {path.relative_to(root).as_posix(): ast.parse(path.read_text()) for path in paths}


def graph_of(trees: Mapping[str, ast.Module]) -> dict[str, set[str]]:
    """Return the paths of the modules that each module imports itself."""
    paths = {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in trees}

    def module(name: str) -> str | None:
        """Return the module with this name, or the one that defines it."""
        while name not in paths and "." in name:
            name = name.rpartition(".")[0]
        return paths.get(name)

    return {
        path: {found for name in imported(tree) if (found := module(name))} for path, tree in trees.items()
    }


def room_of(path: str) -> str:
    """Return the room of a file: its own row of the table, or that of its folder."""
    return path if path in ROOMS else f"{path.rpartition('/')[0]}/"


def by_room(graph: Graph) -> dict[str, set[str]]:
    rooms: dict[str, set[str]] = {}
    for path, imports in graph.items():
        rooms.setdefault(room_of(path), set()).update(map(room_of, imports))
    return {room: imports - {room} for room, imports in rooms.items()}


def floors(graph: Graph) -> dict[str, int]:
    """Return each entry's floor: 0 if it imports nothing, else one above its imports; raises CycleError."""
    found: dict[str, int] = {}
    for entry in TopologicalSorter(graph).static_order():
        found[entry] = 1 + max((found[below] for below in graph[entry]), default=0)
    return found


def reached(graph: Graph, start: str) -> set[str]:
    """Return every module that ``start`` imports, directly or not."""
    found, waiting = {start}, [start]
    while waiting:
        new = set(graph[waiting.pop()]) - found
        found |= new
        waiting += new
    return found


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    return parsed(ROOT)


@pytest.fixture(scope="module")
def graph(trees: dict[str, ast.Module]) -> Graph:
    return graph_of(trees)


def test_every_file_has_a_room(graph: Graph) -> None:
    """Each file is in a room of the table, and each row has an existing file or folder."""
    assert {room_of(path) for path in graph} == set(ROOMS)
    assert {room for may_import in ROOMS.values() for room in may_import} <= set(ROOMS)


def test_the_tables_keep_the_boundary() -> None:
    """Probes never import the agent, its metrics, schedule, web or database."""
    assert [
        room for room in ROOMS if room.startswith("probes/") for may in ROOMS[room] if "monitor" in may
    ] == []
    places = dict(LIBRARIES)
    for library in ("prometheus_client", "apscheduler", "starlette", "sqlalchemy"):
        assert not any(place.startswith("probes") for place in places[library])


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_what_it_may(graph: Graph, room: str) -> None:
    """Each file imports only from the rooms that the table allows."""
    strays = {
        (path, found)
        for path, imports in graph.items()
        for found in imports
        if room_of(path) == room and room_of(found) not in {room, *ROOMS[room]}
    }
    assert strays == set()


@pytest.mark.parametrize(("library", "places"), LIBRARIES)
def test_a_library_is_imported_only_there(
    trees: dict[str, ast.Module], library: str, places: list[str]
) -> None:
    """Each library is imported only where the table allows, and every row is in use."""
    users = {
        path
        for path, tree in trees.items()
        if any(f"{name}.".startswith(f"{library}.") for name in imported(tree))
    }
    strays = {
        path
        for path in users
        if not any(path == place or (place.endswith("/") and path.startswith(place)) for place in places)
    }
    assert strays == set(), f"{library} is imported outside of {', '.join(places)}"
    assert [place for place in places if not any(path.startswith(place) for path in users)] == []


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - MESSAGE_KINDS))
def test_a_kind_that_sends_nothing_is_free_of_messages(graph: Graph, kind: str) -> None:
    """A kind that sends no message loads nothing of messages and delivery, even indirectly."""
    module = KINDS[kind].__module__.replace(".", "/") + ".py"
    strays = {
        path for path in reached(graph, module) if path.startswith(("probes/messages", "probes/delivery"))
    }
    assert strays == set()


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_kind_needs_no_other_kind(graph: Graph, kind: str) -> None:
    """Each kind can be read, changed and removed without the others."""
    module = KINDS[kind].__module__.replace(".", "/") + ".py"
    assert [path for path in reached(graph, module) if room_of(path) == "probes/"] == [module]


def test_nothing_goes_in_circles(trees: dict[str, ast.Module], graph: Graph) -> None:
    """Neither modules nor rooms import each other in a circle."""
    print("\n" + "\n".join(report(trees)))
    assert circle(graph) == []
    assert circle(by_room(graph)) == []


def circle(graph: Graph) -> list[str]:
    """Return one circle of imports; empty if there is none."""
    try:
        floors(graph)
    except CycleError as error:
        return list(error.args[1])
    return []


def report(trees: Mapping[str, ast.Module]) -> Iterator[str]:
    """Yield lines about rooms, from the top floor, circles of imports, and lengths of functions and files."""
    graph = graph_of(trees)
    rooms = by_room(graph)
    lines = {path: tree.body[-1].end_lineno or 0 for path, tree in trees.items() if tree.body}
    height = floors(rooms) if not circle(rooms) else dict.fromkeys(rooms, 0)
    yield f"{'floor':>5}  {'room':28}{'files':>5} {'lines':>6}  imports"
    for room in sorted(rooms, key=lambda room: (-height[room], room)):
        files = [path for path in trees if room_of(path) == room]
        total = sum(lines.get(path, 0) for path in files)
        yield f"{height[room]:5}  {room:28}{len(files):5} {total:6}  {', '.join(sorted(rooms[room])) or '-'}"
    for what, found in (("rooms", rooms), ("modules", graph)):
        circles = circle(found)
        count = f"{max(floors(found).values())} floors" if not circles else "no floors"
        yield f"{len(found)} {what} on {count}; circle of imports: {' -> '.join(circles) or 'none'}"
    functions = {
        f"{path}:{node.lineno} {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    for what, lengths in (("functions", functions), ("files", lines)):
        longest = max(lengths, key=lambda name: lengths[name])
        yield (
            f"{len(lengths)} {what}, in lines: median {statistics.median(lengths.values()):g}, "
            f"p90 {statistics.quantiles(lengths.values(), n=10)[-1]:g}, max {lengths[longest]} ({longest})"
        )
