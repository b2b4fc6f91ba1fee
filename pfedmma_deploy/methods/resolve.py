"""The configuration of a run with its method's own defaults and hyper-parameters filled in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from pfedmma_deploy.config import (
    PRESETS,
    Scalar,
    TrainConfig,
    config_from_mapping,
    read_options,
    read_preset,
)
from pfedmma_deploy.methods.registry import get_method


def resolve_run(
    flags: Mapping[str, object], config_file: Path | None = None, preset: str | None = None
) -> TrainConfig:
    """The configuration from flag > file > method > preset > default.

    A preset's hyper-parameters count for the methods that have them; those given by flag or file
    must be the method's.

    Raises:
        UsageError: an unknown option, hyper-parameter, method or preset, an unreadable file, a
            value of the wrong type or out of range, or no data or backbone at all.
    """
    given = read_options(flags, config_file)
    below = read_preset(preset)
    name = given.get("method", below.get("method", "pfedmma"))
    method = get_method(str(name))
    known = method.parameters.__dataclass_fields__
    suggested: dict[str, Scalar] = {
        key: value for key, value in below.pop("parameters", {}).items() if key in known
    }
    own = given.pop("parameters", {})
    config = config_from_mapping({**below, **method.defaults, **given, "parameters": own})
    parameters = method.configure({**suggested, **config.parameters})
    return replace(config, parameters=asdict(parameters))


__all__ = ["PRESETS", "resolve_run"]
