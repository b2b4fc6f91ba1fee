"""Imports descend: cli, demo > export, ... > types; and the runtime never sees torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "pfedmma_deploy"
LAYERS = (
    {
        *("types", "errors", "validation", "config", "progress", "caches", "system"),
        *("templates", "calibration", "listening", "plugins"),
    },
    {"backbone", "adapters", "data"},
    {"methods", "store"},
    {"federated", "evaluation", "runtime"},
    {"export", "fleet", "report", "benchmark", "serve", "api"},
    {"cli", "demo"},
)
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}
TORCH = {"torch", "torchvision", "open_clip", "timm"}


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    places = {
        PACKAGE: ROOT / PACKAGE,
        f"{PACKAGE}.cli": ROOT / "cli",
        f"{PACKAGE}.demo": ROOT / "demo",
    }
    found = {}
    for package, folder in places.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join((package, *parts)).removesuffix(".__init__")
            found[name] = path
    return found


@cache
def imports(module: str) -> frozenset[str]:
    """Dotted names that a module imports anywhere, inside functions and for types included."""
    path = modules()[module]
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1]
            start = ".".join([*base, *filter(None, [node.module])]) if node.level else node.module
            assert start is not None
            # `from package import module` imports the module, `from module import name` does not.
            found |= {
                f"{start}.{a.name}" if f"{start}.{a.name}" in modules() else start
                for a in node.names
            }
    return frozenset(found)


def part(module: str) -> str:
    """`data` of `pfedmma_deploy.data.images`; empty for the package itself."""
    return module.split(".")[1] if "." in module else ""


def own_imports(module: str) -> set[str]:
    # The package itself has its public names from everywhere, for type checkers and on first use;
    # tests/test_public.py sees what importing it loads.
    if module == PACKAGE:
        return set()
    return {name for name in imports(module) if name.split(".")[0] == PACKAGE}


def test_every_part_has_a_layer() -> None:
    assert {part(module) for module in modules()} - {""} <= set(LAYER)


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_descend(module: str) -> None:
    for name in own_imports(module):
        if part(name) and part(name) != part(module):
            assert LAYER[part(name)] <= LAYER[part(module)], f"{module} imports {name} above it"


def test_no_two_parts_import_each_other() -> None:
    graph: dict[str, set[str]] = {name: set() for name in LAYER}
    for module in modules():
        if part(module):
            graph[part(module)] |= {part(n) for n in own_imports(module)} - {part(module), ""}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_the_backbone_knows_no_adapters() -> None:
    used = {part(name) for m in modules() if part(m) == "backbone" for name in own_imports(m)}
    assert "adapters" not in used


def test_runtime_data_and_serve_reach_no_torch() -> None:
    todo = [module for module in modules() if part(module) in {"runtime", "data", "serve"}]
    reached = set(todo)
    while todo:
        module = todo.pop()
        outside = {name.split(".")[0] for name in imports(module)}
        assert not outside & TORCH, f"{module} imports {outside & TORCH}"
        new = {name for name in own_imports(module) if name in modules()} - reached
        reached |= new
        todo += new
    low = LAYERS[0] - {"system", "templates"}
    allowed = {"", "runtime", "data", "serve", *low}
    assert {part(module) for module in reached} <= allowed


def test_loading_the_runtime_loads_no_torch() -> None:
    names = sorted(module for module in modules() if part(module) in {"runtime", "data", "serve"})
    names.remove(f"{PACKAGE}.serve.on_ray")  # Ray is an extra
    code = f"import sys, {', '.join(names)}; print(*{{n.split('.')[0] for n in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & TORCH
