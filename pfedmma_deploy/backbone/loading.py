"""Load a backbone by open_clip name: embedded, from a file, or downloaded by open_clip.

The embedded one, `pfedmma-tiny`, is a stock open_clip model whose weights ship with this package.
"""

from __future__ import annotations

import hashlib
import logging
import sys
import warnings
from pathlib import Path
from pickle import UnpicklingError

import open_clip
import torch
from open_clip.model import CLIP
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from safetensors import SafetensorError
from torch import nn

from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.errors import BackboneError

MODEL_NAME = "pfedmma-tiny"
ASSETS = Path(__file__).parents[1] / "assets" / MODEL_NAME
CONFIG_FILE = ASSETS / f"{MODEL_NAME}.json"
WEIGHTS_FILE = ASSETS / "model.safetensors"
RANDOM = "random"
"""Value of `pretrained` for seeded random weights: for measuring speed, never for accuracy."""

ADAPTABLE = (
    "a class-token ViT image tower and a causal text transformer of open_clip's own kind, such as "
    "ViT-B-32, ViT-B-16, ViT-L-14 (OpenAI, LAION, DataComp, MetaCLIP, DFN weights) or pfedmma-tiny"
)

_UNREADABLE = (
    RuntimeError,
    OSError,
    ValueError,
    KeyError,
    EOFError,
    UnpicklingError,
    SafetensorError,
)


def register() -> None:
    """Make the embedded model's name known to open_clip; calling it again changes nothing."""
    if MODEL_NAME not in open_clip.list_models():
        open_clip.add_model_config(CONFIG_FILE)


def load_backbone(name: str, pretrained: str | None = None, *, device: str = "cpu") -> Backbone:
    """A frozen backbone in fp32 and evaluation mode.

    Args:
        name: an open_clip model name, such as "ViT-B-16", or "pfedmma-tiny".
        pretrained: a tag of that model ("openai", "laion2b_s34b_b88k", ...), a weights file
            (safetensors; a .pt is read with torch's `weights_only`), or "random". Only
            "pfedmma-tiny" may leave it out: its weights ship with the package.
        device: torch device to put it on.

    Raises:
        BackboneError: unknown name or tag, unreadable file, or a model that cannot be adapted.
    """
    register()
    if name == MODEL_NAME and pretrained is None:
        pretrained = str(WEIGHTS_FILE)
        label = "embedded"
    else:
        label = str(pretrained)
    _require_known(name, pretrained)
    model = require_adaptable(_create(name, pretrained), name)
    return _backbone(model.to(device), name, label, fingerprint(model))


def require_weights(name: str, pretrained: str | None) -> None:
    """Nothing where `load_backbone` finds these weights on this machine, without a download.

    Raises:
        BackboneError: it would download them, or does not know them.
    """
    register()
    if name == MODEL_NAME and pretrained is None:
        return
    _require_known(name, pretrained)
    entry = open_clip.get_pretrained_cfg(name, pretrained)
    if entry and not _is_downloaded(entry):
        raise BackboneError(
            f"The weights {pretrained!r} of {name} are not on this machine: name a file of weights "
            f"with --pretrained, or fetch them once with `pfedmma evaluate --data cifar10-sample "
            f"--backbone {name} --pretrained {pretrained}`, which says first what it fetches."
        )


def backbone_shapes(name: str) -> Backbone:
    """A backbone without weights, on torch's meta device: for counting, in no time and memory.

    Raises:
        BackboneError: unknown name, or a model that cannot be adapted.
    """
    register()
    _require_known(name, RANDOM)
    logging.getLogger().addFilter(_quiet_random)
    try:
        with torch.device("meta"):
            model = require_adaptable(open_clip.create_model(name, device="meta"), name)
    finally:
        logging.getLogger().removeFilter(_quiet_random)
    return _backbone(model, name, "none", "")


def _backbone(model: CLIP, name: str, label: str, digest: str) -> Backbone:
    model.eval().requires_grad_(False)
    settings = open_clip.get_model_preprocess_cfg(model)
    activation = type(model.visual.transformer.resblocks[0].mlp.gelu).__name__
    return Backbone(
        model=model,
        name=name,
        pretrained=label,
        fingerprint=digest,
        image_size=int(model.visual.image_size[0]),
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
        resize_mode=settings["resize_mode"],
        interpolation=settings["interpolation"],
        activation="quick_gelu" if activation == "QuickGELU" else "gelu",
        tokenize=open_clip.get_tokenizer(name),
    )


def require_adaptable(model: nn.Module, name: str) -> CLIP:
    """`model` as a CLIP with two plain transformer towers.

    Raises:
        BackboneError: it is of another kind; the message lists what can be adapted.
    """
    reason = _unsupported(model)
    if reason is not None:
        raise BackboneError(
            f"The backbone {name} cannot be adapted: {reason}. Supported: {ADAPTABLE}."
        )
    assert isinstance(model, CLIP)
    return model


def _unsupported(model: nn.Module) -> str | None:
    if not isinstance(model, CLIP):
        return f"it is a {type(model).__name__}, not a CLIP with a native text transformer"
    visual = model.visual
    if not isinstance(visual, VisionTransformer):
        return f"its image tower is a {type(visual).__name__}, not a vision transformer"
    if visual.attn_pool is not None or visual.pool_type != "tok" or visual.proj is None:
        return "its image tower does not read its feature from the class token"
    if visual.image_size[0] != visual.image_size[1]:
        return f"its input is {visual.image_size[0]} x {visual.image_size[1]} px, not square"
    if model.text_pool_type != "argmax" or model.attn_mask is None:
        return "its text tower is not causal or does not read its feature at the end token"
    if not isinstance(model.text_projection, nn.Parameter):
        return "its text projection is not a plain matrix"
    for block in (*visual.transformer.resblocks, *model.transformer.resblocks):
        if type(block) is not ResidualAttentionBlock:
            return f"it has blocks of type {type(block).__name__}"
    return None


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over every weight's name, shape and little-endian fp32 bytes, in name order."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()


def _require_known(name: str, pretrained: str | None) -> None:
    if name not in open_clip.list_models():
        raise BackboneError(
            f"open_clip knows no model named {name!r}. Names are written like ViT-B-16. "
            f"Adaptable: {ADAPTABLE}."
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    known = ", ".join(tags) if tags else "none"
    if pretrained is None:
        raise BackboneError(
            f"{name} needs weights: pass --pretrained with a tag ({known}) or a weights file."
        )
    if pretrained != RANDOM and pretrained not in tags and not Path(pretrained).is_file():
        raise BackboneError(
            f"{pretrained!r} is neither a weights file nor a pretrained tag of {name}. "
            f"Its tags: {known}."
        )


def _create(name: str, pretrained: str | None) -> nn.Module:
    """open_clip's own construction, its remarks about missing weights kept out of the way."""
    tag = open_clip.get_pretrained_cfg(name, pretrained) if pretrained else {}
    source = None if pretrained == RANDOM else pretrained
    if tag:
        _announce_download(name, str(pretrained), tag)
    logging.getLogger().addFilter(_quiet_random)
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # The tag says which activation its weights were trained with; open_clip only warns.
            warnings.filterwarnings("ignore", message="QuickGELU mismatch")
            torch.manual_seed(0)
            model: nn.Module = open_clip.create_model(
                name,
                pretrained=source,
                force_quick_gelu=bool(tag.get("quick_gelu", False)),
            )
            return model
    except _UNREADABLE as error:
        raise BackboneError(
            f"The weights {pretrained!r} of {name} could not be loaded: {_first_line(error)} "
            "Check the file, or the network where it is a tag."
        ) from error
    finally:
        logging.getLogger().removeFilter(_quiet_random)


def _first_line(error: BaseException) -> str:
    """What went wrong, without the advice and the traceback that libraries append."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".") + "."


def _quiet_random(record: logging.LogRecord) -> bool:
    """Random weights were asked for by name, so their absence is no news."""
    return "No pretrained weights loaded" not in record.getMessage()


def _is_downloaded(entry: dict[str, str]) -> bool:
    """Whether what open_clip would fetch for a tag lies in its cache."""
    from huggingface_hub import try_to_load_from_cache

    repository = entry.get("hf_hub", "").rstrip("/")
    if repository:
        owner, _, file = repository.partition("/")
        model, _, file = file.partition("/")
        names = [file] if file else ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
        return any(isinstance(try_to_load_from_cache(f"{owner}/{model}", n), str) for n in names)
    return (Path.home() / ".cache" / "clip" / Path(entry.get("url", "")).name).is_file()


def _announce_download(name: str, tag: str, entry: dict[str, str]) -> None:
    """Say what open_clip is about to fetch, unless it lies in the cache already."""
    if _is_downloaded(entry):
        return
    repository = entry.get("hf_hub", "").rstrip("/")
    place = entry.get("url", "an unknown place")
    if repository:
        place = f"the Hugging Face hub, {'/'.join(repository.split('/')[:2])}"
    print(f"Downloading {name} ({tag}) from {place}{_size(repository)}", file=sys.stderr)


def _size(repository: str) -> str:
    """The weights file's size, such as ", 599 MB", where the hub tells it; else nothing."""
    if not repository:
        return ""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    owner_model = "/".join(repository.split("/")[:2])
    try:
        info = HfApi().model_info(owner_model, files_metadata=True, timeout=10)
    except (HfHubHTTPError, OSError):
        return ""
    sizes = {entry.rfilename: entry.size or 0 for entry in info.siblings or []}
    size = sizes.get("open_clip_model.safetensors") or sizes.get("open_clip_pytorch_model.bin")
    return f", {size / 1e6:.0f} MB" if size else ""
