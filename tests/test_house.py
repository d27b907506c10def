"""The house: which room may look into which, no circles, and no room too full to survey."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("kernels", "runtime", "engines", "calibrate")  # imports run from the right to the left
APART = {"engines", "calibrate"}  # neither looks into the other
MOST_FILES = 12
DATA = {"demo", "demo_mamba2", "__pycache__"}


def modules() -> dict[str, Path]:
    """runtime.reading.prefill -> its file; a package by its own name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """Modules of the house that a module names, wherever in the file: lazily and for types alone, too."""
    here = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom):
            continue
        base = here[: len(here) - node.level + 1] if node.level else []
        target = [*base, *((node.module or "").removeprefix("longscan.").split(".") if node.module else [])]
        for alias in node.names:
            whole, part = ".".join([*target, alias.name]), ".".join(target)
            found |= {whole} if whole in known else {part} if part in known else set()
    return found - {name}


KNOWN = modules()
GRAPH = {name: imports(name, path, KNOWN) for name, path in KNOWN.items()}


def test_imports_run_one_way_between_packages():
    for name, needed in GRAPH.items():
        package = PACKAGES.index(name.split(".")[0])
        targets = {other: other.split(".")[0] for other in needed}
        wrong = [other for other, there in targets.items() if PACKAGES.index(there) > package]
        wrong += [other for other, there in targets.items() if {PACKAGES[package], there} == APART]
        assert not wrong, f"{name} imports {wrong}"


def test_no_two_files_import_each_other():
    """Not by any detour either; a package's __init__ that hands its parts on does not count as one of them."""
    inits = {name for name, path in KNOWN.items() if path.name == "__init__.py"}
    order = TopologicalSorter({name: needed - inits for name, needed in GRAPH.items() if name not in inits})
    order.prepare()  # raises CycleError, naming the circle


def room(name: str) -> str:
    """The folder a module lies in."""
    path = KNOWN[name].relative_to(ROOT)
    return ".".join(path.parts[:-1])


def test_imports_run_one_way_between_rooms():
    rooms: dict[str, set[str]] = {}
    for name, needed in GRAPH.items():
        for other in needed:
            if room(other) != room(name):
                rooms.setdefault(room(name), set()).add(room(other))
    # What a package keeps at its top stands above its rooms (the model) and below them (errors, files): not a room.
    between = {a: {b for b in needed if b not in PACKAGES} for a, needed in rooms.items() if a not in PACKAGES}
    TopologicalSorter(between).prepare()


ROOMS = {path.parent for path in KNOWN.values()}


@pytest.mark.parametrize("folder", sorted(ROOMS), ids=lambda p: p.name)
def test_no_room_is_too_full(folder):
    files = [path for path in folder.iterdir() if path.suffix == ".py"]
    assert len(files) <= MOST_FILES, f"{folder.name} has {len(files)} files"


def test_every_room_says_what_it_is_for():
    for name, path in KNOWN.items():
        if path.name == "__init__.py" and not set(name.split(".")) & DATA:
            assert ast.get_docstring(ast.parse(path.read_text())), f"{name} has no docstring"
