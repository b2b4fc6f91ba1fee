"""The configuration of a run with its method's own defaults and hyper-parameters filled in."""

from __future__ import annotations

from dataclasses import asdict, replace

from pfedmma_deploy.config import Options, TrainConfig, config_from_mapping
from pfedmma_deploy.methods.registry import get_method


def resolve_run(options: Options) -> TrainConfig:
    """The configuration from flag > file > method > preset > default.

    A preset's hyper-parameters count for the methods that have them; those given by flag or file
    must be the method's.

    Raises:
        UsageError: an unknown method or hyper-parameter, or a value of the wrong type or out of
            range.
    """
    given, suggested = dict(options.given), dict(options.suggested)
    method = get_method(given.get("method", suggested.get("method", "pfedmma")))
    known = method.parameters.__dataclass_fields__
    below = suggested.pop("parameters", {})
    own = given.pop("parameters", {})
    config = config_from_mapping({**suggested, **method.defaults, **given})
    parameters = {name: value for name, value in below.items() if name in known}
    resolved = method.configure({**parameters, **own})
    return replace(config, parameters=asdict(resolved))
