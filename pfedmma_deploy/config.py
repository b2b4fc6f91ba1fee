"""The options of a training run, and where each value comes from.

A value given on the command line wins over the configuration file, the file over what the method
asks for, that over the preset, the preset over the defaults below, which are the paper's (pFedMMA,
arXiv 2507.05394, section 5 and appendix). `pfedmma_deploy.methods.registry` puts them together. The
resolved configuration is stored with the run, so nothing is decided twice.

People write options flat, by the names of the flags (`partition = "dirichlet"`, `shots = 16`). A
`TrainConfig` and what is stored have those of the partition in one place, `TrainConfig.partition`.
`config_from_mapping` turns the first into the second.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal

from pfedmma_deploy.errors import UsageError, nearest

if TYPE_CHECKING:
    # Annotations stay text until a configuration is made, when `validation` looks these up.
    from typing import Annotated

    from pydantic import Field

    from pfedmma_deploy.validation import Count, Name

Scalar = str | int | float | bool
"""A value of one of a method's hyper-parameters."""

Classes = Literal["base-novel", "all"]
Scheme = Literal["disjoint", "dirichlet", "pachinko", "domain", "leave-one-domain-out", "folders"]
Transform = Literal["random", "none"]
Optimizer = Literal["sgd", "adam", "adamw"]
Autocast = Literal["none", "bf16", "fp16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionConfig:
    """Who holds which images; `data.federation.build_federation` explains each scheme.

    Raises `UsageError` on a value out of range.
    """

    scheme: Annotated[Scheme, Field(title="partition")] = "disjoint"
    clients: Count = 10
    """Number of clients N: a multiple of the domains with `scheme="domain"`; with `"folders"` the
    data decide."""
    classes: Classes = "base-novel"
    """`base-novel` trains on the first half of the classes and keeps the rest unseen."""
    # Far below the lower bound the proportions underflow.
    dirichlet_beta: Annotated[
        float, Field(ge=1e-3, le=1e6, description="between 0.001 and 1000000")
    ] = 0.3
    """Concentration of the Dirichlet distribution: smaller is more skewed."""
    num_shots: Annotated[
        int,
        Field(ge=0, title="shots", description="0 (all images) or more images per class"),
    ] = 16
    """Training images per class (K); 0 takes all. The option `shots`."""
    unseen_domain: str | None = None
    """The domain that nobody trains on, with `scheme="leave-one-domain-out"`."""
    superclasses: str | None = None
    """TOML file of superclasses for `scheme="pachinko"`; None is CIFAR-100's table."""
    clients_file: str | None = None
    """A partition written by `pfedmma data partition`; then it decides who holds which images, and
    the other fields do not count."""

    def __post_init__(self) -> None:
        from pfedmma_deploy.validation import check

        check(self)
        if self.clients_file is not None:
            return
        for option, scheme in _ONLY_WITH.items():
            if getattr(self, option) is not None and self.scheme != scheme:
                raise UsageError(
                    f"--{option.replace('_', '-')} belongs to --partition {scheme}, not to"
                    f" '{self.scheme}': leave it out, or change the partition"
                )

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> PartitionConfig:
        """The partition that these flags ask for; those that are left out take the default."""
        return cls(**{_PARTITION_FIELDS[option]: value for option, value in options.items()})

    def to_options(self) -> dict[str, Any]:
        """The values by the names of the flags; `from_options` reads them back."""
        return {option: getattr(self, name) for option, name in _PARTITION_FIELDS.items()}


_ONLY_WITH: Final = {"unseen_domain": "leave-one-domain-out", "superclasses": "pachinko"}
_FLAG_OF: Final = {"scheme": "partition", "num_shots": "shots"}
_PARTITION_FIELDS: Final = {
    _FLAG_OF.get(field.name, field.name): field.name
    for field in dataclasses.fields(PartitionConfig)
}
"""Fields of `PartitionConfig` by the flat names of the options."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Everything that decides what a run computes. Raises `UsageError` on a value out of range.

    `assets/options.toml` has what the help says of each; here stands what the help leaves out.
    """

    data: Name
    """An embedded sample, a known data set by name, a folder of images or a manifest's file."""
    backbone: Name
    """Name of an open_clip model; `pfedmma-tiny` is in this package."""
    pretrained: str | None = None
    """open_clip tag or file of weights; None takes the backbone's own default."""
    method: Name = "pfedmma"
    aggregate: str | None = None
    """The rule by which the server combines updates; None takes the method's own."""
    partition: PartitionConfig = dataclasses.field(default_factory=PartitionConfig)
    rounds: Count = 50
    local_epochs: Count = 2
    clients_per_round: Annotated[
        float, Field(gt=0, le=1, description="a fraction above 0, at most 1")
    ] = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**63, description="a whole number from 0 to 2^63 - 1")] = 0
    batch_size: Count = 32
    optimizer: Optimizer = "sgd"
    lr: Annotated[float, Field(gt=0, description="a number above 0")] = 1e-3
    """Learning rate, constant over the run."""
    momentum: Annotated[float, Field(ge=0, lt=1, description="a number from 0 to below 1")] = 0.9
    weight_decay: Annotated[float, Field(ge=0, description="a number of 0 or more")] = 5e-4
    parameters: Annotated[
        Mapping[str, Scalar], Field(description="a table of names and values")
    ] = dataclasses.field(default_factory=dict)
    """The method's own hyper-parameters; what is not named keeps the method's default."""
    prompt: str = "a photo of a {}."
    transform: Transform = "random"
    """Training images: `random` crops and flips them, `none` shows them as in testing."""
    views: Annotated[int, Field(ge=0, description="a whole number of 0 or more")] = 0
    """Augmentations per training image that are drawn once and kept; 0 draws a fresh one each time,
    as the paper does."""
    cache: bool = True
    """Keep the activations that the frozen blocks compute of an image that is seen again."""
    token_shortcuts: bool = True
    client_batching: bool = True
    """Train several clients in one pass where the method allows it, not one after the other."""
    autocast: Autocast = "none"
    """Precision of matmuls: `bf16` or `fp16` where the hardware has it."""
    compile: bool = False
    """Compile the blocks with torch.compile first: minutes at the start, faster steps on a GPU."""
    client_dropout: Annotated[
        float, Field(ge=0, lt=1, description="a fraction from 0 to below 1")
    ] = 0.0
    """Simulated: the share of selected clients that fail to answer in a round."""
    dp_clip: Annotated[float, Field(gt=0, description="a number above 0")] | None = None
    """C of client-level differential privacy (`federated.privacy`); None is without, and then
    `dp_noise` is None too."""
    # Far below the lower bound the cost is beyond what a float holds.
    dp_noise: Annotated[float, Field(ge=1e-3, description="a number of 0.001 or more")] | None = (
        None
    )
    """S, the noise multiplier."""
    guard: Annotated[float, Field(ge=0, le=100, description="a number from 0 to 100")] = 6.0
    """Percent that zero-shot CLIP's beliefs about names that a client never trained on may move
    (`evaluation.guard`); 100 lets every client count as trained."""
    logit_scale: Annotated[float, Field(gt=0, description="a number above 0")] | None = None
    """Factor on the cosine similarities; None takes the backbone's own."""

    def __post_init__(self) -> None:
        from pfedmma_deploy.validation import check

        check(self)
        if self.prompt.count("{}") != 1:
            raise UsageError(
                f"prompt must be a text with {{}} for the class name, not {self.prompt!r}."
            )
        if (self.dp_clip is None) != (self.dp_noise is None):
            given, missing = ("clip", "noise") if self.dp_noise is None else ("noise", "clip")
            raise UsageError(
                f"dp_{given} is given without dp_{missing}: differential privacy needs both, such"
                " as --dp-clip 0.1 --dp-noise 1"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values as runs store them; `stored_config` reads them back."""
        return dataclasses.asdict(self)

    def to_options(self) -> dict[str, Any]:
        """Plain values by the names of the flags; `config_from_mapping` reads them back."""
        found: dict[str, Any] = {}
        for name, value in self.to_dict().items():
            found |= self.partition.to_options() if name == "partition" else {name: value}
        return found


def _defaults() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in dataclasses.fields(TrainConfig):
        if field.name == "partition":
            own = {each.name: each.default for each in dataclasses.fields(PartitionConfig)}
            found |= {option: own[name] for option, name in _PARTITION_FIELDS.items()}
        else:
            found[field.name] = None if field.default is dataclasses.MISSING else field.default
    return found


DEFAULTS: Final[Mapping[str, Any]] = MappingProxyType(_defaults())
"""Every option by the name of its flag, with its default; None where there is none."""

_REQUIRED: Final = {
    "data": "cifar10-sample (in this package) or a folder with one sub-folder of images per class",
    "backbone": "pfedmma-tiny (in this package) or an open_clip name such as ViT-B-16",
}


def read_table(name: str) -> dict[str, Any]:
    """What a TOML file of `assets` holds, by its path there."""
    # Not importlib.resources: it takes 5 ms to load, and `pfedmma --help` comes by here.
    file = Path(__file__).parent / "assets" / name
    return tomllib.loads(file.read_text(encoding="utf-8"))


PRESETS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(read_table("presets.toml"))
"""Named sets of options; `paper` is the defaults."""


@dataclass(frozen=True)
class Options:
    """What is given for a run, by the names of the flags, before the method has its say."""

    given: Mapping[str, Any]
    """From flags and file."""
    suggested: Mapping[str, Any]
    """From the preset."""
    warnings: tuple[str, ...] = ()
    """One sentence for each option that was given by an old name."""


def read_options(
    flags: Mapping[str, object], config_file: Path | None = None, preset: str | None = None
) -> Options:
    """The options that are given at all, flag before file, each found to be a valid one.

    Args:
        flags: values by option; None means that the flag was not given.
        config_file: TOML file of `option = value` lines, and a table `[parameters]`; the options of
            the partition may stand in a table `[partition]`.
        preset: a name in `PRESETS`.

    Raises:
        UsageError: an unknown option or preset, an unreadable file, a value of the wrong type or
            out of range, or no data or backbone at all.
    """
    options = read_changes(flags, config_file, preset)
    config_from_mapping({**options.suggested, **options.given})
    return options


def read_changes(
    flags: Mapping[str, object], config_file: Path | None = None, preset: str | None = None
) -> Options:
    """As `read_options`, but only names are checked: what is missing may be known elsewhere."""
    if preset is not None and preset not in PRESETS:
        raise UsageError(
            f"preset must be one of {', '.join(PRESETS)}, not {preset!r}{nearest(preset, PRESETS)}"
        )
    values: dict[str, Any] = {}
    warnings: list[str] = []
    if config_file is not None:
        values, warnings = _flat(_read_toml(config_file), str(config_file))
    given, more = _flat({k: v for k, v in flags.items() if v is not None}, "the command line")
    own = {**_table(values), **_table(given)}
    values.update(given)
    if own:
        values["parameters"] = own
    return Options(values, PRESETS[preset] if preset else {}, (*warnings, *more))


def config_from_mapping(values: Mapping[str, object], source: str = "the options") -> TrainConfig:
    """A configuration from options, flat as people write them or nested as runs store them.

    Raises:
        UsageError: an unknown option, a value of the wrong type or out of range, or no data or
            backbone at all; `source` is named in the message.
    """
    flat, _ = _flat(values, source)
    for name, advice in _REQUIRED.items():
        if flat.get(name) is None:
            raise UsageError(f"no {name} given: name one with --{name}, for example {advice}")
    own = {option: flat.pop(option) for option in _PARTITION_FIELDS if option in flat}
    return TrainConfig(partition=PartitionConfig.from_options(own), **flat)


def stored_config(values: Mapping[str, Any], source: str) -> TrainConfig:
    """The configuration of a run or a trial, as `TrainConfig.to_dict` gave it to this or an earlier
    version. Raises `UsageError` as `config_from_mapping` does.
    """
    values = dict(values)
    # The first format was flat, and its one switch stood for two.
    if not isinstance(values.get("partition"), Mapping) and values.get("cache") is False:
        values["token_shortcuts"] = False
    return config_from_mapping(values, source)


_RENAMED: Final = {"dropout": "client_dropout", "engine": "client_batching"}


def _flat(
    values: Mapping[str, Any], source: str, known: Mapping[str, Any] = DEFAULTS
) -> tuple[dict[str, Any], list[str]]:
    """Options by the names of their flags, and a warning for each that was given by an old name.

    Raises:
        UsageError: a name that is not among `known`, or two values for one option.
    """
    found: dict[str, Any] = {}
    warnings: list[str] = []
    for given, value in values.items():
        if given == "partition" and isinstance(value, Mapping):
            new, more = _flat(value, f"[partition] of {source}", _PARTITION_FIELDS)
            warnings += more
        elif given in _RENAMED and known is DEFAULTS:
            name = _RENAMED[given]
            new = {name: _engine(value) if given == "engine" else value}
            warnings.append(
                f"{source}: {given} is called {name} now; the old name goes in the next version"
            )
        else:
            new = {_FLAG_OF.get(given, given): value}
        for name, each in new.items():
            if name not in known:
                hint = nearest(name, known) or f"; known options are {', '.join(known)}"
                raise UsageError(f"unknown option '{name}' in {source}{hint}")
            if name in found:
                raise UsageError(f"{source} has two values for {name}: leave one out")
            found[name] = each
    return found, warnings


def _engine(value: object) -> bool:
    if value not in ("cohort", "sequential"):
        raise UsageError(f"engine must be cohort or sequential, not {value!r}.")
    return value == "cohort"


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
    if not isinstance(found, Mapping):
        raise UsageError(f"parameters must be a table of names and values, not {found!r}.")
    return found
