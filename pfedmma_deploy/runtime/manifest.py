"""What `manifest.json` of an export bundle says, as data: the export writes it, the runtime reads.

The dataclasses are the whole description of the format. `Manifest.to_dict` writes what they hold,
and `Manifest.from_dict` reads by their annotations, so that the two cannot drift apart; a manifest
that lacks something, or holds something else there, is refused by the name of the key. pydantic
would do this too, but programs that only predict should not have to load it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pfedmma_deploy.calibration import Calibration
from pfedmma_deploy.errors import BundleError
from pfedmma_deploy.types import STRENGTHS, Interpolation

FORMAT = "pfedmma-bundle"
FORMAT_VERSIONS = (1, 2)
"""Models of version 1 take no strength, those of version 2 do."""
ZERO_SHOT = "zero-shot"
"""Name of client index 0: the frozen CLIP without any adapter."""


@dataclass(frozen=True, slots=True)
class ClientInfo:
    """One row of the adapter banks."""

    index: int
    """Value of the `client` input; 0 is zero-shot CLIP."""
    id: str
    seen: tuple[int, ...]
    """Labels that this client trained on, ascending."""
    default_strength: float = 1.0
    """How much of what it adds to CLIP counts where nobody says otherwise."""
    calibration: Calibration | None = None
    """When its answers can be believed; None where it had no validation images."""


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """From a decoded image to `pixel_values`; the graph itself applies `mean` and `std`."""

    image_size: int
    resize_mode: Literal["shortest", "squash", "longest"]
    interpolation: Literal["bicubic", "bilinear"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One file of the bundle, by which damage is noticed."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Figures:
    """Accuracies in percent; None where there was nothing to measure them on."""

    local: float | None
    """On test images of the client's own classes, among all base names."""
    base: float | None
    """On test images of all base classes, among all base names."""
    novel: float | None
    """On test images of the novel classes, among the novel names."""
    all: float | None = None
    """On base and novel test images, among base and novel names together."""


@dataclass(frozen=True, slots=True)
class CurvePoint(Figures):
    """What a client's model reaches at one strength."""

    strength: float = field(kw_only=True)


@dataclass(frozen=True, slots=True)
class ClientHistory:
    """One client's part in the federation."""

    num_examples: tuple[int, ...]
    """Training images by label; empty where the run does not know them."""
    zero_shot: Figures | None
    """Of plain CLIP on this client's test images; None where it was not measured."""
    personalized: Figures | None
    """Of the client's own model."""
    curve: tuple[CurvePoint, ...] = ()
    """The same at several strengths, ascending; empty where they were not measured."""

    def measured(self) -> dict[str, Figures]:
        """All figures that there are, by their key in the manifest."""
        named = {"zero_shot": self.zero_shot, "personalized": self.personalized}
        named |= {f"curve.{place}": point for place, point in enumerate(self.curve)}
        return {name: figures for name, figures in named.items() if figures is not None}


@dataclass(frozen=True, slots=True)
class History:
    """One run: how long it trained, what travelled, what each client has and reaches."""

    rounds: int
    bytes_up_per_client_round: int
    """Sent by one client in one round."""
    bytes_down_per_client_round: int
    bytes_total: int
    """Sent both ways by all clients in all rounds."""
    parameters: Mapping[str, int]
    """Numbers by scope: shared, local, frozen."""
    clients: Mapping[str, ClientHistory]
    """By client id; a client that joined the bundle later has none."""

    def require_fitting(self, ids: Sequence[str], class_count: int) -> None:
        """Raises `BundleError` where it speaks of other clients or classes than the bundle has."""
        for name, client in self.clients.items():
            if name not in ids[1:]:
                raise BundleError(
                    f"The manifest's history names a client {name!r} that the bundle lacks: "
                    "the bundle is damaged, export it again."
                )
            if len(client.num_examples) not in {0, class_count}:
                raise BundleError(
                    f"The manifest's history counts images of {len(client.num_examples)} classes "
                    f"for client {name!r}, expected {class_count}: export the bundle again."
                )
            for side, figures in client.measured().items():
                for figure in ("local", "base", "novel"):
                    value = getattr(figures, figure)
                    # Written so that NaN, which Python's JSON reads, does not pass.
                    if value is not None and not 0 <= value <= 100:
                        raise BundleError(
                            f"The manifest's history.clients.{name}.{side}.{figure} should be a "
                            f"percentage, found {value:g}: the bundle is damaged, export it again."
                        )


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything that a program needs to know to use a bundle."""

    clients: tuple[ClientInfo, ...]
    class_names: tuple[str, ...]
    base: tuple[int, ...]
    novel: tuple[int, ...]
    prompt: str
    """Contains `{}`, where the class name goes."""
    logit_scale: float
    """Factor on cosine similarities, already exponentiated."""
    preprocessing: Preprocessing
    embed_dim: int
    context_length: int
    flavour: Literal["ort", "portable"]
    """`ort` (ONNX Runtime's own operators) or `portable` (standard operators only)."""
    precision: Literal["fp32", "fp16", "int8"]
    """Arithmetic."""
    weights: Literal["fp32", "fp16"]
    """Storage of the weights that are not int8."""
    opset: int
    backbone: Mapping[str, Any]
    adapter: Mapping[str, Any]
    provenance: Mapping[str, Any]
    parity: Mapping[str, Any]
    """Of the files as they are, with the trained model."""
    quality: Mapping[str, Any]
    """Decisions on real images before and after, where the models are in reduced precision."""
    files: Mapping[str, FileInfo]
    history: History | None = None
    """What training did and what it brought; None where the bundle was made without a run."""
    strength: Interpolation | None = None
    """How the clients' strength works; None where the models take none and it is always 1."""
    general_words: tuple[str, ...] = ()
    """Words that compete with the classes; empty where no client is calibrated."""

    def prompt_of(self, index: int) -> str:
        """The prompt that a client reads class names in: its own where it learned one."""
        own: str = self.adapter.get("prompt", self.prompt) if index else self.prompt
        return own

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, format and version first."""
        version = 1 if self.strength is None else 2
        return {"format": FORMAT, "format_version": version, **asdict(self)}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Manifest:
        """The inverse of `to_dict`.

        Raises:
            BundleError: it is not a manifest of this format and version, or a key is missing or
                holds something else than expected.
        """
        _require_format(raw)
        manifest: Manifest = _read(cls, raw, "")
        _require_consistent(manifest)
        return manifest


def _read(kind: Any, value: Any, key: str) -> Any:
    """`value` from JSON as what an annotation says: text, number, dataclass, or those in others.

    Raises:
        BundleError: it is something else; the message names the key, with dots between levels.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin in _OPTIONAL:  # X | None
        return None if value is None else _read(inner[0], value, key)
    if origin is Literal:
        if _plain(str, value, key) not in inner:
            raise BundleError(
                f"The manifest's {key} should be one of {', '.join(inner)}, found {value!r}: "
                "export the bundle again."
            )
        return value
    if origin is tuple:
        return _read_list(inner, _plain(list, value, key), key)
    if origin is Mapping:
        found = {}
        for name, entry in _plain(dict, value, key).items():
            # What is no object has none of the keys, and the first that is missing gets named.
            empty = is_dataclass(inner[1]) and not isinstance(entry, dict)
            found[name] = _read(inner[1], {} if empty else entry, f"{key}.{name}")
        return found
    if is_dataclass(kind):
        return _read_fields(kind, _plain(dict, value, key), key)
    return value if kind is Any else _plain(kind, value, key)


def _read_list(inner: tuple[Any, ...], values: list[Any], key: str) -> tuple[Any, ...]:
    """A list of anything of one kind, or of exactly as many numbers as the annotation has."""
    if is_dataclass(inner[0]):
        if not all(isinstance(value, dict) for value in values):
            raise BundleError(f"The manifest's {key} should be objects: export the bundle again.")
        return tuple(_read(inner[0], value, key) for value in values)
    if inner[-1] is not Ellipsis and len(values) != len(inner):
        raise BundleError(
            f"The manifest's {key} should have {len(inner)} numbers, found {len(values)}: "
            "export the bundle again."
        )
    return tuple(_read(inner[0], value, f"{key}.{n}") for n, value in enumerate(values))


def _read_fields(kind: Any, values: Mapping[str, Any], key: str) -> Any:
    # Keys that are not known are left alone: a later version may have added them.
    found, hints = {}, get_type_hints(kind)
    for each in fields(kind):
        name = f"{key}.{each.name}" if key else each.name
        hint = hints[each.name]
        if each.name not in values and each.default is not MISSING:
            # Later than the first version of the format.
            found[each.name] = each.default
            continue
        missing = each.name not in values and get_origin(hint) not in _OPTIONAL
        found[each.name] = _read(hint, _MISSING if missing else values.get(each.name), name)
    return kind(**found)


_OPTIONAL = (UnionType, Union)
"""`int | None` is the one, `Literal[...] | None` the other."""
_MISSING = object()
_NAMES = {str: "text", int: "a whole number", float: "a number", list: "a list", dict: "an object"}


def _plain(kind: type, value: Any, key: str) -> Any:
    """`value`, if it is a `kind` of JSON."""
    # A whole float may have been written as an int; a bool is an int to Python, not to us.
    fits = isinstance(value, (int, float) if kind is float else kind)
    if fits and not isinstance(value, bool):
        return float(value) if kind is float else value
    found = "nothing" if value is _MISSING else type(value).__name__
    raise BundleError(
        f"The manifest's {key} should be {_NAMES[kind]}, found {found}: the bundle is damaged, "
        "export it again."
    )


def _require_format(raw: Mapping[str, Any]) -> None:
    if raw.get("format") != FORMAT:
        raise BundleError(
            f"Its manifest.json has format {raw.get('format')!r}, expected {FORMAT!r}: this is not "
            "an exported model; make one with `pfedmma export`."
        )
    version, takes_strength = raw.get("format_version"), raw.get("strength") is not None
    if version not in FORMAT_VERSIONS:
        raise BundleError(
            f"The bundle has format version {version!r}, this program reads versions "
            f"{' and '.join(map(str, FORMAT_VERSIONS))}: export it again, or install the matching "
            "pfedmma-deploy."
        )
    if takes_strength != (version == 2):
        raise BundleError(
            f"The manifest's strength should be {'there' if version == 2 else 'missing'} in format "
            f"version {version}, found {raw.get('strength')!r}: the bundle is damaged, export it "
            "again."
        )


def _require_consistent(manifest: Manifest) -> None:
    """What the keys promise each other."""
    indices = [client.index for client in manifest.clients]
    if indices != list(range(len(indices))) or not indices or manifest.clients[0].id != ZERO_SHOT:
        raise BundleError(
            "The manifest's clients should be numbered from 0, which is zero-shot: "
            "the bundle is damaged, export it again."
        )
    for client in manifest.clients:
        value = client.default_strength
        # Written so that NaN does not pass.
        if not STRENGTHS[0] <= value <= STRENGTHS[-1]:
            raise BundleError(
                f"The manifest's default_strength of client {client.id!r} should be from "
                f"{STRENGTHS[0]:g} to {STRENGTHS[-1]:g}, found {value:g}: write 1 there, or export "
                "the bundle again."
            )
        _require_calibration(client, manifest)
        if value != 1 and manifest.strength is None:
            raise BundleError(
                f"The manifest's default_strength of client {client.id!r} is {value:g}, but the "
                "bundle's models take no strength: export it again."
            )
    labels = {*manifest.base, *manifest.novel}.union(*(c.seen for c in manifest.clients))
    if not labels <= set(range(len(manifest.class_names))):
        raise BundleError(
            f"The manifest names labels beyond its {len(manifest.class_names)} class names: "
            "the bundle is damaged, export it again."
        )
    if manifest.history is not None:
        ids = [client.id for client in manifest.clients]
        manifest.history.require_fitting(ids, len(manifest.class_names))
    prompts: tuple[Any, ...] = (manifest.prompt, manifest.prompt_of(1))
    for prompt in prompts:
        if not isinstance(prompt, str) or "{}" not in prompt:
            raise BundleError(
                f"The manifest's prompt {prompt!r} has no {{}} for the class name: "
                "export the bundle again."
            )


def _require_calibration(client: ClientInfo, manifest: Manifest) -> None:
    if client.calibration is None:
        return
    wrong = client.calibration.problem()
    if wrong is None and not manifest.general_words:
        wrong = "no general words are there to compete with the classes"
    if wrong is not None:
        raise BundleError(
            f"The manifest's calibration of client {client.id!r} cannot be used, since {wrong}: "
            "the bundle is damaged, export it again."
        )
