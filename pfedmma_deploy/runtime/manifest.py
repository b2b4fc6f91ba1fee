"""What `manifest.json` of an export bundle says, as data: the export writes it, the runtime reads.

One schema, one place: `Manifest.to_dict` and `Manifest.from_dict` are each other's inverse, and a
manifest that lacks something, or has it in another form, is refused by the name of the key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pfedmma_deploy.errors import BundleError
from pfedmma_deploy.runtime.history import History, read_history
from pfedmma_deploy.runtime.reader import Reader

__all__ = [
    "FORMAT",
    "FORMAT_VERSION",
    "ZERO_SHOT",
    "ClientInfo",
    "FileInfo",
    "Manifest",
    "Preprocessing",
]

FORMAT = "pfedmma-bundle"
FORMAT_VERSION = 1
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
    flavour: str
    """`ort` (ONNX Runtime's own operators) or `portable` (standard operators only)."""
    precision: str
    """Arithmetic: `fp32`, `fp16` or `int8`."""
    weights: str
    """Storage of the weights that are not int8: `fp32` or `fp16`."""
    opset: int
    backbone: Mapping[str, Any]
    adapter: Mapping[str, Any]
    provenance: Mapping[str, Any]
    parity: Mapping[str, Any]
    """Of the files as they are, with the trained model."""
    quality: Mapping[str, Any]
    """Decisions on real images before and after, where the models are less exact than fp32."""
    files: Mapping[str, FileInfo]
    history: History | None = None
    """What training did and what it brought; None where the bundle was made without a run."""

    def prompt_of(self, index: int) -> str:
        """The prompt that a client reads class names in: its own where it learned one."""
        own: str = self.adapter.get("prompt", self.prompt) if index else self.prompt
        return own

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, format and version first."""
        return {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Manifest:
        """The inverse of `to_dict`.

        Raises:
            BundleError: it is not a manifest of this format and version, or a key is missing or
                holds something else than expected.
        """
        _require_format(raw)
        reader = Reader(raw)
        pre = Reader(reader.get("preprocessing", dict), "preprocessing.")
        manifest = cls(
            clients=tuple(_client(entry) for entry in reader.get("clients", list)),
            class_names=tuple(reader.items("class_names", str)),
            base=tuple(reader.items("base", int)),
            novel=tuple(reader.items("novel", int)),
            prompt=reader.get("prompt", str),
            logit_scale=float(reader.get("logit_scale", float)),
            preprocessing=Preprocessing(
                image_size=pre.get("image_size", int),
                resize_mode=pre.one_of("resize_mode", "shortest", "squash", "longest"),
                interpolation=pre.one_of("interpolation", "bicubic", "bilinear"),
                mean=_triple(pre.items("mean", float)),
                std=_triple(pre.items("std", float)),
            ),
            embed_dim=reader.get("embed_dim", int),
            context_length=reader.get("context_length", int),
            flavour=reader.one_of("flavour", "ort", "portable"),
            precision=reader.one_of("precision", "fp32", "fp16", "int8"),
            weights=reader.one_of("weights", "fp32", "fp16"),
            opset=reader.get("opset", int),
            backbone=reader.get("backbone", dict),
            adapter=reader.get("adapter", dict),
            provenance=reader.get("provenance", dict),
            parity=reader.get("parity", dict),
            quality=reader.get("quality", dict),
            files={name: _file(name, entry) for name, entry in reader.get("files", dict).items()},
            history=read_history(raw.get("history")),
        )
        _require_consistent(manifest)
        return manifest


def _client(raw: Any) -> ClientInfo:
    if not isinstance(raw, dict):
        raise BundleError("The manifest's clients should be objects: export the bundle again.")
    reader = Reader(raw, "clients.")
    return ClientInfo(
        reader.get("index", int), reader.get("id", str), tuple(reader.items("seen", int))
    )


def _file(name: str, raw: Any) -> FileInfo:
    reader = Reader(raw if isinstance(raw, dict) else {}, f"files.{name}.")
    return FileInfo(reader.get("bytes", int), reader.get("sha256", str))


def _triple(values: list[Any]) -> tuple[float, float, float]:
    if len(values) != 3:
        raise BundleError(
            f"The manifest's mean and std should have 3 numbers, found {len(values)}: "
            "export the bundle again."
        )
    return float(values[0]), float(values[1]), float(values[2])


def _require_format(raw: Mapping[str, Any]) -> None:
    if raw.get("format") != FORMAT:
        raise BundleError(
            f"Its manifest.json has format {raw.get('format')!r}, expected {FORMAT!r}: this is not "
            "an exported model; make one with `pfedmma export`."
        )
    if raw.get("format_version") != FORMAT_VERSION:
        raise BundleError(
            f"The bundle has format version {raw.get('format_version')!r}, this program reads "
            f"version {FORMAT_VERSION}: export it again, or install the matching pfedmma-deploy."
        )


def _require_consistent(manifest: Manifest) -> None:
    """What the keys promise each other."""
    indices = [client.index for client in manifest.clients]
    if indices != list(range(len(indices))) or not indices or manifest.clients[0].id != ZERO_SHOT:
        raise BundleError(
            "The manifest's clients should be numbered from 0, which is zero-shot: "
            "the bundle is damaged, export it again."
        )
    labels = {*manifest.base, *manifest.novel}.union(*(c.seen for c in manifest.clients))
    if not labels <= set(range(len(manifest.class_names))):
        raise BundleError(
            f"The manifest names labels beyond its {len(manifest.class_names)} class names: "
            "the bundle is damaged, export it again."
        )
    if manifest.history is not None:
        manifest.history.require_fitting(
            [client.id for client in manifest.clients], len(manifest.class_names)
        )
    prompts: tuple[Any, ...] = (manifest.prompt, manifest.prompt_of(1))
    for prompt in prompts:
        if not isinstance(prompt, str) or "{}" not in prompt:
            raise BundleError(
                f"The manifest's prompt {prompt!r} has no {{}} for the class name: "
                "export the bundle again."
            )
