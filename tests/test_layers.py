"""The layers: rules on imports, checked on the import graph of the whole tree.

The graph maps `runtimes/`, `converters/` and `calib/` to their places in the package, and counts
every import: at module level, inside a function, and for types only. Each rule is checked on the
tree, and on a planted violation.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

Graph = dict[str, set[str]]
"""Imported modules by module; names without "mmsr_edge.", and "" for the package itself."""

NEVER: dict[str, tuple[str, ...]] = {
    "image": ("config", "bundle", "modalities"),
    "modalities": ("pipeline", "config"),
    "runtimes": ("upscaler", "modalities"),
    "models": ("training", "converters"),
    "training": ("converters", "calib"),
}
"""Rooms, and the rooms that they never import."""

ONLY: dict[str, tuple[str, ...]] = {"bundle": ("errors", "files")}
"""Rooms, and the only rooms that they import."""

TORCH_SIDE = ("calib.record", "converters", "models", "training")
"""Rooms and modules that import torch when they are imported."""

LAZY = ("runtimes.pytorch",)
"""Device-side modules that import the torch side inside a function, after a check for it."""


def room(module: str) -> str:
    """The room of a module: its first name."""
    return module.partition(".")[0]


def inside(module: str, places: tuple[str, ...]) -> bool:
    """Whether a module is one of `places` or below one of them."""
    return any(module == place or module.startswith(f"{place}.") for place in places)


def import_graph(root: Path) -> Graph:
    """The imports among the modules of the tree at `root`."""
    files: dict[str, Path] = {}
    for folder in ("mmsr_edge", "calib", "converters", "runtimes"):
        for path in sorted((root / folder).rglob("*.py")):
            names = path.relative_to(root).with_suffix("").parts
            names = names[1:] if folder == "mmsr_edge" else names
            files[".".join(name for name in names if name != "__init__")] = path
    return {module: _imports(path, files) - {module} for module, path in files.items()}


def _imports(path: Path, known: Mapping[str, Path]) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {name for name in names if _short(name) in known}
            found |= modules or {node.module}
            if len(modules) < len(names):
                found.add(node.module)
    ours = {_short(name) for name in found if name.split(".")[0] == "mmsr_edge"}
    return ours & set(known)


def _short(name: str) -> str:
    return name.removeprefix("mmsr_edge").removeprefix(".")


def forbidden(graph: Graph) -> set[str]:
    """Imports that break the rules, as "a -> b"."""
    broken = set()
    for module, imported in graph.items():
        here = room(module)
        for other in imported:
            there = room(other)
            wrong = not inside(module, (*TORCH_SIDE, *LAZY)) and inside(other, TORCH_SIDE)
            if there != here:
                wrong = wrong or there in NEVER.get(here, ())
                wrong = wrong or (here in ONLY and there not in ONLY[here])
                wrong = wrong or (there == "cli" and module != "__main__")
            if wrong:
                broken.add(f"{module} -> {other}")
    return broken


def circles(graph: Graph) -> set[frozenset[str]]:
    """Groups of modules that import each other in a circle (Tarjan 1972)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: set[frozenset[str]] = set()

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in graph.get(node, ()):
            if other not in order:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], order[other])
        if low[node] == order[node]:
            group = set(stack[stack.index(node) :])
            del stack[stack.index(node) :]
            if len(group) > 1:
                found.add(frozenset(group))

    for node in graph:
        if node not in order:
            visit(node)
    return found


def rooms(graph: Graph) -> Graph:
    """The graph of rooms; inside `training` each folder is a room too."""

    def of(module: str) -> str:
        names = module.split(".")
        split = names[0] == "training" and len(names) > 2
        return ".".join(names[: 2 if split else 1])

    out: Graph = {}
    for module, imported in graph.items():
        here = of(module)
        others = {of(other) for other in imported}
        out.setdefault(here, set()).update(others - {here, ""} if here else others)
    return out


@pytest.fixture(scope="module")
def graph() -> Graph:
    return import_graph(ROOT)


def test_the_graph_has_every_kind_of_import(graph: Graph) -> None:
    assert {"", "upscaler", "runtimes.ov", "converters.mil.table", "calib.record"} <= set(graph)
    assert "settings" in graph["upscaler"]  # from mmsr_edge.settings import resolve
    assert "runtimes.base" in graph["upscaler"]  # a mapped folder, and types only
    assert "models" in graph["runtimes.pytorch"]  # inside a function


def test_the_tree_has_no_forbidden_imports(graph: Graph) -> None:
    assert forbidden(graph) == set()


@pytest.mark.parametrize(
    ("module", "other"),
    [
        *((here, there) for here, others in NEVER.items() for there in others),
        ("bundle.manifest", "sampler"),
        ("bundle.folder", "image.load"),
        ("upscaler", "cli.main"),
        ("jobs.run", "cli.output"),
        ("pipeline", "models.networks"),
        ("image.save", "training.device"),
        ("calib.reader", "calib.record"),
    ],
)
def test_a_forbidden_import_is_found(module: str, other: str, graph: Graph) -> None:
    planted = {**graph, module: graph.get(module, set()) | {other}}
    assert forbidden(planted) == {f"{module} -> {other}"}


def test_there_are_no_circles(graph: Graph) -> None:
    assert circles(graph) == set()
    assert circles(rooms(graph)) == set()


def test_a_circle_is_found(graph: Graph) -> None:
    planted = {**graph, "errors": {"upscaler"}}
    (group,) = circles(planted)
    assert {"errors", "upscaler"} <= group
    assert circles(rooms({**graph, "training.data.jpeg": {"training.teachers.labels"}}))
    assert circles(rooms({**graph, "image.icc": {"files", "memory"}}))


def test_every_form_of_import_is_seen(tmp_path: Path) -> None:
    package = tmp_path / "mmsr_edge"
    (package / "image").mkdir(parents=True)
    for name in ("__init__", "config", "bundle", "image/__init__"):
        (package / f"{name}.py").touch()
    (package / "image" / "planted.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n"
        "    from mmsr_edge.config import UpscaleOptions\n"
        "def late():\n"
        "    import mmsr_edge.bundle\n"
    )
    (tmp_path / "runtimes").mkdir()
    (tmp_path / "runtimes" / "planted.py").write_text("from mmsr_edge import image\n")
    found = import_graph(tmp_path)
    assert found["image.planted"] == {"config", "bundle"}
    assert found["runtimes.planted"] == {"image"}
    assert forbidden(found) == {"image.planted -> config", "image.planted -> bundle"}
