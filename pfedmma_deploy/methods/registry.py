"""The methods by name, and the configuration of a run with its method's defaults filled in."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cache
from typing import Any, TypeVar

from pfedmma_deploy.config import Options, Scalar, TrainConfig, config_from_mapping
from pfedmma_deploy.errors import UsageError, nearest
from pfedmma_deploy.methods.base import Method
from pfedmma_deploy.methods.clip_adapter import CLIPAdapter
from pfedmma_deploy.methods.fedclip import FedCLIP
from pfedmma_deploy.methods.feddat import FedDAT
from pfedmma_deploy.methods.fedmaple import FedMaPLe
from pfedmma_deploy.methods.fedotp import FedOTP
from pfedmma_deploy.methods.fedpgp import FedPGP
from pfedmma_deploy.methods.fedtpg import FedTPG
from pfedmma_deploy.methods.fml import FML
from pfedmma_deploy.methods.pfedmma import FedAvgMMA, Local, PFedMMA
from pfedmma_deploy.methods.pfedmoap import PFedMoAP
from pfedmma_deploy.methods.pfedpt import PFedPT
from pfedmma_deploy.methods.plora import PLoRA
from pfedmma_deploy.methods.promptfl import PromptFL
from pfedmma_deploy.methods.tap import TAP
from pfedmma_deploy.methods.zero_shot import ZeroShot
from pfedmma_deploy.plugins import Plugins, load_plugins

M = TypeVar("M", bound=type[Method[Any, Any]])

METHODS: dict[str, type[Method[Any, Any]]] = {
    method.name: method
    for method in (
        PFedMMA,
        ZeroShot,
        Local,
        FedAvgMMA,
        PLoRA,
        TAP,
        PFedPT,
        FML,
        FedDAT,
        FedCLIP,
        CLIPAdapter,
        PromptFL,
        FedPGP,
        FedOTP,
        PFedMoAP,
        FedTPG,
        FedMaPLe,
    )
}


def register_method(method: M) -> M:
    """Make a method of your own known by its `name`, in this process; usable as a decorator.

    Then `train(method="...")`, `personalize`, `evaluate` and `export` know it. An installed package
    adds one for every process, the commands too, by an entry point (docs/add-a-method.md).

    Args:
        method: a subclass of `Method` with `name`, `paper`, `trained`, `shared` and `build`. A
            class of the same module and name may be registered again, as notebooks do.

    Returns:
        The class.

    Raises:
        UsageError: another method has the name, or the class is no complete method.

    Example:
        >>> from pfedmma_deploy import register_method
        >>> from pfedmma_deploy.methods.pfedmma import PFedMMA
        >>> @register_method
        ... class MedianMMA(PFedMMA):
        ...     name = "median-mma"
        ...     rule = "median"
        >>> from pfedmma_deploy import train
        >>> result = train("photos", preset="quickstart", method="median-mma", clients=2,
        ...                rounds=1, out="runs/median")
        >>> result.run.config.method
        'median-mma'
    """
    name = getattr(method, "name", None)
    _check_method(str(name), method)
    known = METHODS.get(method.name)
    if known is not None and _place(known) != _place(method):
        raise UsageError(f"a method is called {name!r} already: give this one another name")
    METHODS[method.name] = method
    return method


def _place(kind: type) -> tuple[str, str]:
    return kind.__module__, kind.__qualname__


@cache
def method_plugins() -> Plugins[type[Method[Any, Any]]]:
    """Methods that installed packages add (`pfedmma.methods`)."""
    return load_plugins("pfedmma.methods", METHODS, _check_method)


def known_methods() -> dict[str, type[Method[Any, Any]]]:
    """Every method by name: of this package, of the program, of installed packages."""
    return {**METHODS, **method_plugins().found}


def _check_method(name: str, found: object) -> type[Method[Any, Any]]:
    """`found`, if it is a method of that name; else raises `UsageError` with the reason."""
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UsageError(f"it should be a subclass of Method, found {found!r}")
    for attribute in ("name", "paper", "trained", "shared"):
        if not isinstance(getattr(found, attribute, None), str):
            raise UsageError(f"its class {found.__qualname__} has no text {attribute!r}")
    if inspect.isabstract(found):
        raise UsageError(f"its class {found.__qualname__} has no method build")
    if found.name != name:
        raise UsageError(f"its class says that its name is {found.name!r}")
    return found


def get_method(name: str) -> type[Method[Any, Any]]:
    """The method called `name`. Raises `UsageError` naming the known ones."""
    if name in METHODS:
        return METHODS[name]
    # Only now: other packages cost time to load, and may be broken.
    method_plugins().require_usable(name)
    methods = known_methods()
    if name not in methods:
        known = ", ".join(methods)
        raise UsageError(f"no method is called {name!r}{nearest(name, methods)} (known: {known})")
    return methods[name]


def make_method(name: str, parameters: Mapping[str, Scalar] | None = None) -> Method[Any, Any]:
    """The method called `name` with these hyper-parameters; raises `UsageError`."""
    return get_method(name).configure(parameters or {})


def resolve_run(options: Options) -> TrainConfig:
    """The configuration from flag > file > method > preset > default.

    A preset's hyper-parameters count for the methods that have them; those given by flag or file
    must be the method's.

    Raises:
        UsageError: an unknown method, hyper-parameter or aggregation rule, or a value of the wrong
            type or out of range.
    """
    given, suggested = dict(options.given), dict(options.suggested)
    method = get_method(given.get("method", suggested.get("method", "pfedmma")))
    known = method.Parameters.__dataclass_fields__
    preset = suggested.pop("parameters", {})
    own = given.pop("parameters", {})
    config = config_from_mapping({**suggested, **method.defaults, **given})
    fitting = {name: value for name, value in preset.items() if name in known}
    configured = method.configure({**fitting, **own})
    return replace(config, parameters=asdict(configured.parameters))
