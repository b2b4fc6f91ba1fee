"""The options of a training run, and where each value comes from.

A value given on the command line wins over the configuration file, the file over what the method
asks for, that over the preset, the preset over the defaults below, which are the paper's (pFedMMA,
arXiv 2507.05394, section 5 and appendix). `pfedmma_deploy.methods.resolve` puts them together. The
resolved configuration is stored with the run, so nothing is decided twice.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, get_args

from pfedmma_deploy.errors import UsageError

__all__ = [
    "PRESETS",
    "Classes",
    "Optimizer",
    "Options",
    "Partition",
    "Scalar",
    "TrainConfig",
    "Transform",
    "config_from_mapping",
    "nearest",
    "read_changes",
    "read_options",
]

Scalar = str | int | float | bool
"""A value of one of a method's hyper-parameters."""

Classes = Literal["base-novel", "all"]
Partition = Literal[
    "disjoint", "dirichlet", "pachinko", "domain", "leave-one-domain-out", "folders"
]
Transform = Literal["random", "none"]
Optimizer = Literal["sgd", "adam", "adamw"]
EngineName = Literal["cohort", "sequential"]
Autocast = Literal["none", "bf16", "fp16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Everything that decides what a run computes. Raises `UsageError` on a value out of range."""

    data: str
    """An embedded sample, a known data set by name, a folder of images or a manifest's file."""
    backbone: str
    """Name of an open_clip model; `pfedmma-tiny` is in this package."""
    pretrained: str | None = None
    """open_clip tag or file of weights; None takes the backbone's own default."""
    method: str = "pfedmma"
    clients: int = 10
    """Number of clients N: a multiple of the domains with `partition="domain"`; with `"folders"`
    the data decide."""
    classes: Classes = "base-novel"
    """`base-novel` trains on the first half of the classes and keeps the rest unseen."""
    partition: Partition = "disjoint"
    dirichlet_beta: float = 0.3
    """Concentration of the Dirichlet distribution: smaller is more skewed."""
    unseen_domain: str | None = None
    """The domain that nobody trains on, with `partition="leave-one-domain-out"`."""
    superclasses: str | None = None
    """TOML file of superclasses for `partition="pachinko"`; None is CIFAR-100's table."""
    clients_file: str | None = None
    """A division written by `pfedmma data partition`; then it decides clients, classes and shots,
    and the other options of the division do not count."""
    shots: int = 16
    """Training images per class (K); 0 takes all."""
    rounds: int = 50
    local_epochs: int = 2
    """Epochs that a client trains in one round (E)."""
    clients_per_round: float = 1.0
    """Fraction of the clients that train in one round."""
    seed: int = 0
    batch_size: int = 32
    optimizer: Optimizer = "sgd"
    lr: float = 1e-3
    """Learning rate, constant over the run."""
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: float = 5e-4
    parameters: Mapping[str, Scalar] = dataclasses.field(default_factory=dict)
    """The method's own hyper-parameters; what is not named keeps the method's default."""
    prompt: str = "a photo of a {}."
    """Text around a class name."""
    transform: Transform = "random"
    """Training images: `random` crops and flips them, `none` shows them as in testing."""
    views: int = 0
    """Augmentations per training image that are drawn once and kept; 0 draws a fresh one each time,
    as the paper does."""
    cache: bool = True
    """Keep on disk what the frozen blocks make of an image that is seen again, and compute no
    token that cannot change a feature. False recomputes everything, for comparison."""
    engine: EngineName = "cohort"
    """`cohort` trains several clients in one pass where the method allows it, `sequential` one
    after the other."""
    autocast: Autocast = "none"
    """Precision of matrix products: `bf16` or `fp16` where the hardware has it."""
    compile: bool = False
    """Compile the blocks with torch.compile first: minutes at the start, faster steps on a GPU."""
    dropout: float = 0.0
    """Simulated: the share of selected clients that fail to answer in a round."""
    logit_scale: float | None = None
    """Factor on the cosine similarities; None takes the backbone's own."""

    def __post_init__(self) -> None:
        for name in ("data", "backbone", "method"):
            _require(bool(getattr(self, name).strip()), name, getattr(self, name), "a name")
        for name, choices in _CHOICES.items():
            _require_choice(name, getattr(self, name), choices)
        for name in ("clients", "rounds", "local_epochs", "batch_size"):
            value = getattr(self, name)
            _require(value >= 1, name, value, "a whole number of 1 or more")
        _require(self.views >= 0, "views", self.views, "a whole number of 0 or more")
        _require(self.shots >= 0, "shots", self.shots, "0 (all images) or more images per class")
        _require(0 <= self.seed < 2**63, "seed", self.seed, "a whole number from 0 to 2^63 - 1")
        for name in ("lr", "dirichlet_beta"):
            value = getattr(self, name)
            _require(value > 0 and math.isfinite(value), name, value, "a number above 0")
        if self.logit_scale is not None:
            good = self.logit_scale > 0 and math.isfinite(self.logit_scale)
            _require(good, "logit_scale", self.logit_scale, "a number above 0")
        fraction = self.clients_per_round
        _require(0 < fraction <= 1, "clients_per_round", fraction, "a fraction above 0, at most 1")
        lost = self.dropout
        _require(0 <= lost < 1, "dropout", lost, "a fraction from 0 to below 1")
        _require(0 <= self.momentum < 1, "momentum", self.momentum, "a number from 0 to below 1")
        decay = self.weight_decay
        _require(
            decay >= 0 and math.isfinite(decay), "weight_decay", decay, "a number of 0 or more"
        )
        _require(
            self.prompt.count("{}") == 1, "prompt", self.prompt, "a text with {} for the class name"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values by field name, in field order; `config_from_mapping` reads them back."""
        return dataclasses.asdict(self)


_CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "classes": get_args(Classes),
    "partition": get_args(Partition),
    "transform": get_args(Transform),
    "optimizer": get_args(Optimizer),
    "engine": get_args(EngineName),
    "autocast": get_args(Autocast),
}
_FIELDS: Final = {field.name: field for field in dataclasses.fields(TrainConfig)}
_REQUIRED: Final = {
    "data": "cifar10-sample (in this package) or a folder with one sub-folder of images per class",
    "backbone": "pfedmma-tiny (in this package) or an open_clip name such as ViT-B-16",
}

PRESETS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "paper": MappingProxyType({}),
        # The embedded backbone is narrow (192) and is trained for seconds, not hours: with the
        # paper's s = 0.001 and lr = 1e-3 nothing moves in a few rounds. A larger s and lr and a
        # softer logit scale let four rounds show the gain; images are 32 pixels wide, where random
        # crops take away more than they teach.
        "quickstart": MappingProxyType(
            {
                "data": "cifar10-sample",
                "backbone": "pfedmma-tiny",
                "clients": 10,
                "partition": "dirichlet",
                "dirichlet_beta": 0.3,
                "shots": 100,
                "rounds": 4,
                "local_epochs": 2,
                "batch_size": 16,
                "lr": 0.01,
                "logit_scale": 20.0,
                "transform": "none",
                "parameters": MappingProxyType({"scale": 0.1, "bottleneck_dim": 16}),
            }
        ),
    }
)
"""Named sets of values; `paper` is the defaults."""


@dataclass(frozen=True)
class Options:
    """What is given for a run, before the method has its say."""

    given: Mapping[str, Any]
    """From flags and file."""
    suggested: Mapping[str, Any]
    """From the preset."""


def read_options(
    flags: Mapping[str, object], config_file: Path | None = None, preset: str | None = None
) -> Options:
    """The options that are given at all, flag before file, each found to be a valid one.

    Args:
        flags: values by field name; None means that the flag was not given.
        config_file: TOML file of `field = value` lines, and a table `[parameters]`.
        preset: a name in `PRESETS`.

    Raises:
        UsageError: an unknown key or preset, an unreadable file, a value of the wrong type or out
            of range, or no data or backbone at all.
    """
    options = read_changes(flags, config_file, preset)
    config_from_mapping({**options.suggested, **options.given})
    return options


def read_changes(
    flags: Mapping[str, object], config_file: Path | None = None, preset: str | None = None
) -> Options:
    """As `read_options`, but only names are checked: what is missing may be known elsewhere."""
    suggested: Mapping[str, Any] = {}
    if preset is not None:
        _require_choice("preset", preset, tuple(PRESETS))
        suggested = PRESETS[preset]
    values: dict[str, Any] = {}
    if config_file is not None:
        values.update(_check_keys(_read_toml(config_file), str(config_file)))
    given = {name: value for name, value in flags.items() if value is not None}
    own = {**_table(values), **_table(given)}
    values.update(_check_keys(given, "the command line"))
    return Options({**values, "parameters": own} if own else values, suggested)


def config_from_mapping(values: Mapping[str, object], source: str = "the options") -> TrainConfig:
    """A configuration from plain values, as a file or a stored run holds them.

    Raises:
        UsageError: an unknown key, a value of the wrong type or out of range, or no data or
            backbone at all; `source` is named in the message.
    """
    checked = _check_keys(values, source)
    for name, advice in _REQUIRED.items():
        if checked.get(name) is None:
            raise UsageError(f"no {name} given: name one with --{name}, for example {advice}")
    return TrainConfig(**{name: _typed(name, value) for name, value in checked.items()})  # type: ignore[arg-type]  # _typed has checked each


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the known name closest to `name`, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


def _read_toml(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = error.strerror or "cannot be read"
        raise UsageError(f"configuration file {path}: {reason}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"configuration file {path} is not TOML: {error}") from error


def _table(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The method's hyper-parameters among the values."""
    found = values.get("parameters", {})
    good = isinstance(found, Mapping)
    _require(good, "parameters", found, "a table of names and values")
    return dict(found)


def _check_keys(values: Mapping[str, object], source: str) -> Mapping[str, object]:
    for name in values:
        if name not in _FIELDS:
            hint = nearest(name, _FIELDS) or f"; known options are {', '.join(_FIELDS)}"
            raise UsageError(f"unknown option '{name}' in {source}{hint}")
    return values


def _typed(name: str, value: object) -> object:
    """`value` as the type of field `name`: whole numbers pass as floats, nothing else changes."""
    annotation = str(_FIELDS[name].type)
    if name == "parameters":
        return _table({name: value})
    if value is None and "None" in annotation:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if annotation.startswith("float"):
        _require(number, name, value, "a number")
        return float(value)  # type: ignore[arg-type]  # checked above
    if annotation == "bool":
        _require(isinstance(value, bool), name, value, "true or false")
        return value
    if annotation == "int":
        _require(number and isinstance(value, int), name, value, "a whole number")
        return value
    _require(isinstance(value, str), name, value, "a text")
    return value


def _require(good: bool, name: str, found: object, expected: str) -> None:
    if not good:
        raise UsageError(f"{name} must be {expected}, not {found!r}")


def _require_choice(name: str, found: str, choices: tuple[str, ...]) -> None:
    if found not in choices:
        expected = ", ".join(choices)
        raise UsageError(
            f"{name} must be one of {expected}, not {found!r}{nearest(found, choices)}"
        )
