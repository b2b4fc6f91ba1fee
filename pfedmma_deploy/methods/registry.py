"""The methods by name, and the configuration of a run with its method's defaults filled in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

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


def get_method(name: str) -> type[Method[Any, Any]]:
    """The method called `name`. Raises `UsageError` naming the known ones."""
    if name not in METHODS:
        known = ", ".join(METHODS)
        raise UsageError(f"no method is called {name!r}{nearest(name, METHODS)} (known: {known})")
    return METHODS[name]


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
