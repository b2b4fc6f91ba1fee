"""What there is to know of a method before it is trained."""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from pfedmma_deploy.adapters.base import Adapter
from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.config import Scalar
from pfedmma_deploy.federated.engine import traffic
from pfedmma_deploy.methods.base import Method
from pfedmma_deploy.methods.registry import METHODS, method_plugins
from pfedmma_deploy.plugins import problem
from pfedmma_deploy.types import ClientData, Scope

CLIENTS = 10
"""Clients of the federation that bytes are counted for, as many as a run has by default."""


@dataclass(frozen=True)
class HyperParameter:
    """One field of a method's parameters."""

    name: str
    default: Scalar
    meaning: str
    """Its docstring on one line, the paper's symbol included."""


@dataclass(frozen=True)
class MethodFacts:
    """A method and its sizes on one backbone, with its default hyper-parameters."""

    method: type[Method[Any, Any]]
    trained: int
    """Numbers that a client trains."""
    shared: int
    """Numbers that it uploads."""
    bytes_up: int
    """Per client and round."""
    bytes_down: int
    package: str | None = None
    """The installed package that adds it, with its version; None for this one's own."""

    def to_dict(self) -> dict[str, Any]:
        """As `pfedmma methods --json` prints it."""
        method = self.method
        return {
            "name": method.name,
            "paper": method.paper,
            "trained": method.trained,
            "shared": method.shared,
            "parameters": {"trained": self.trained, "shared": self.shared},
            "bytes_per_round": {"up": self.bytes_up, "down": self.bytes_down},
            "folds": method.merges,
            "exportable": not method.export_blocker,
            "obstacle": method.export_blocker,
            "package": self.package,
        }


def method_facts(method: type[Method[Any, Any]], backbone: Backbone) -> MethodFacts:
    """Sizes of a method; the weights of the backbone do not matter (see `backbone_shapes`)."""
    made = method()
    adapter = _empty_adapter(made, backbone)
    clients = [ClientData(str(i), (0,), (), (), ()) for i in range(CLIENTS)]
    sent = made.upload(adapter, clients[0])
    sizes = traffic(made, adapter, clients)
    trained = adapter.tensors(Scope.SHARED, Scope.LOCAL)
    return MethodFacts(
        method=method,
        trained=sum(value.numel() for value in trained.values()),
        shared=sum(value.numel() for value in sent.values()),
        bytes_up=sizes["up"],
        bytes_down=sizes["down"],
    )


def all_facts(backbone: Backbone) -> tuple[list[MethodFacts], list[str]]:
    """The facts of every method, and a sentence for each plug-in that cannot be used."""
    plugins = method_plugins()
    rows = [method_facts(method, backbone) for method in METHODS.values()]
    problems = [sentence for _, sentence in plugins.problems]
    for name, method in plugins.found.items():
        package = plugins.packages[name]
        try:
            rows.append(replace(method_facts(method, backbone), package=package))
        except Exception as error:  # whatever somebody else's `build` raises
            problems.append(problem(name, "pfedmma.methods", package, error))
    return rows, problems


def _empty_adapter(method: Method[Any, Any], backbone: Backbone) -> Adapter:
    """The adapter with zeros for values: only its shapes count here."""
    with torch.device(backbone.device):
        adapter: Adapter = method.build(backbone, torch.Generator("cpu"))
    adapter.to_empty(device="cpu")
    for value in adapter.parameters():
        value.data.zero_()
    return adapter


def hyper_parameters(method: type[Method[Any, Any]]) -> list[HyperParameter]:
    """A method's hyper-parameters in their order."""
    meanings = field_docstrings(method.Parameters)
    defaults = method().parameters
    return [
        HyperParameter(f.name, getattr(defaults, f.name), meanings.get(f.name, ""))
        for f in fields(method.Parameters)
    ]


def field_docstrings(kind: type) -> dict[str, str]:
    """The strings below the fields of a class and of those it is derived from, on one line each."""
    found: dict[str, str] = {}
    for cls in reversed(kind.__mro__[:-1]):
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
        assert isinstance(tree, ast.ClassDef)
        for field, text in zip(tree.body, tree.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
            ):
                found[field.target.id] = " ".join(str(text.value.value).split())
    return found
