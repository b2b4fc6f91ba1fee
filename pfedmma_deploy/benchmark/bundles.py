"""Bundles to measure: a backbone with random adapters for any number of clients.

Speed does not depend on the values of weights. The text tower is left out: images are classified
with stored text features, in production too.
"""

from __future__ import annotations

import io
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from pfedmma_deploy.adapters.base import Adapter
from pfedmma_deploy.data.class_names import build_prompts
from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.export import describe
from pfedmma_deploy.export.banks import (
    ExportClient,
    client_banks,
    replace_banks,
    stack_banks,
)
from pfedmma_deploy.export.export_config import ExportConfig
from pfedmma_deploy.export.graph import ImageGraph
from pfedmma_deploy.export.models import portable_model, reduced_model, write_fp32
from pfedmma_deploy.export.onnx_file import LARGEST, to_bytes
from pfedmma_deploy.export.parity import compare, run_clients
from pfedmma_deploy.export.publish import seal
from pfedmma_deploy.export.tokenizer import write_tokenizer
from pfedmma_deploy.methods.pfedmma import PFedMMA
from pfedmma_deploy.runtime import bundle as names
from pfedmma_deploy.runtime.manifest import Manifest
from pfedmma_deploy.runtime.providers import open_session
from pfedmma_deploy.store.files import write_bytes

if TYPE_CHECKING:
    import onnx

    from pfedmma_deploy.backbone.clip import Backbone

__all__ = ["RandomBundles", "with_clients"]

CLASS_NAMES = tuple(f"class {number}" for number in range(10))
PROMPT = "a photo of a {}."
SCALE = 1e-3
DEVIATION = 0.02
"""Of the random weights: small enough for fp16 in towers of any depth."""


class RandomBundles:
    """Bundles of one backbone, exported from torch once and then given clients and forms."""

    def __init__(self, backbone: Backbone, folder: Path, bottleneck_dim: int) -> None:
        """Write them below `folder`; adapters of rank `bottleneck_dim` in the paper's blocks."""
        self.backbone = backbone
        self.folder = folder
        self.bottleneck_dim = bottleneck_dim

    def make(self, clients: int, form: ExportConfig) -> Path:
        """A bundle that serves zero-shot and `clients` random clients.

        Raises:
            ExportError: the backbone cannot be exported, or its ONNX model does not compute what
                open_clip does.
            UsageError: one ONNX file cannot hold so many clients.
        """
        import onnx

        manifest = self._manifest(clients, form)
        out = self.folder / f"{form.flavour}-{form.precision}-{form.weights}-{clients}"
        if out.exists():
            return out
        model = reduced_model(onnx.load(self._exact(form) / names.VISION_MODEL), form)
        self._require_room(model, clients)
        out.mkdir()
        with_clients(model, clients)
        file = out / names.VISION_MODEL
        write_bytes(file, to_bytes(model, describe.metadata(manifest, names.VISION_MODEL)))
        rng = np.random.default_rng(0)
        shape = (clients + 1, len(CLASS_NAMES), self.backbone.embed_dim)
        text = rng.standard_normal(shape, np.float32)
        text /= np.linalg.norm(text, axis=-1, keepdims=True)
        buffer = io.BytesIO()
        np.save(buffer, text)
        write_bytes(out / names.TEXT_EMBEDS, buffer.getvalue())
        write_tokenizer(out / names.TOKENIZER, manifest.context_length)
        write_bytes(out / names.LABELS, "".join(f"{n}\n" for n in CLASS_NAMES).encode())
        seal(out, out.name, manifest, self._parity(file, text, form))
        return out

    @cached_property
    def _portable(self) -> onnx.ModelProto:
        """The image tower with one client, in standard operators."""
        graph = ImageGraph(
            self.backbone, stack_banks([ExportClient("1", self._adapter)], self.backbone)["image"]
        )
        tokens = self.backbone.tokenize(build_prompts(CLASS_NAMES[:1], PROMPT))
        return portable_model(names.VISION_MODEL, graph, tokens, self._images())

    @cached_property
    def _adapter(self) -> Adapter:
        parameters = {"bottleneck_dim": self.bottleneck_dim, "scale": SCALE}
        return PFedMMA.configure(parameters).build(self.backbone, torch.Generator())

    def _exact(self, form: ExportConfig) -> Path:
        """Folder of the fp32 model with one client, in the form's flavour."""
        folder = self.folder / f"exact-{form.flavour}"
        if not folder.exists():
            folder.mkdir()
            manifest = self._manifest(1, ExportConfig(form.flavour))
            model = type(self._portable)()
            model.CopyFrom(self._portable)
            write_fp32(folder, model, names.VISION_MODEL, self.backbone, manifest)
        return folder

    def _manifest(self, clients: int, form: ExportConfig) -> Manifest:
        return describe.manifest(
            self.backbone,
            [ExportClient(str(number), self._adapter) for number in range(1, clients + 1)],
            class_names=CLASS_NAMES,
            prompt=PROMPT,
            base=range(len(CLASS_NAMES)),
            novel=(),
            adapter={"method": PFedMMA.name, **self._adapter.export_settings()},
            logit_scale=self.backbone.logit_scale,
            config=form,
            provenance={"run": "benchmark: random adapters"},
        )

    def _require_room(self, model: onnx.ModelProto, clients: int) -> None:
        named = set(client_banks(model))
        banks = [e for e in model.graph.initializer if e.name in named]
        row = sum(len(e.raw_data) // e.dims[0] for e in banks)
        size = model.ByteSize() + row * (clients - 1)
        if size > LARGEST:
            raise UsageError(
                f"{clients} clients on {self.backbone.name} make a model of {size / 1e9:.1f} GB, "
                "one ONNX file holds 2.1: measure fewer, or store them with --weights fp16"
            )

    def _images(self) -> NDArray[np.uint8]:
        size = self.backbone.image_size
        return np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)

    def _parity(
        self, file: Path, text: NDArray[np.float32], form: ExportConfig
    ) -> dict[str, float | int]:
        """The zero-shot row against open_clip's own tower: no benchmark of a wrong model."""
        images, clients = self._images(), np.zeros(2, np.int64)
        with torch.inference_mode():
            wanted = self.backbone.encode_image(torch.from_numpy(images)).float().cpu().numpy()
        found = run_clients(open_session(file, "cpu"), images, clients)
        limits = {} if form.is_exact else {"tolerance": np.inf, "least_agreement": 0.0}
        return compare(found, wanted, text, clients, 0.0, **limits).to_dict()


def with_clients(model: onnx.ModelProto, clients: int) -> None:
    """Give the banks of an image tower rows for `clients` random clients behind zero-shot's."""
    rng = np.random.default_rng(1)

    def random(name: str, values: NDArray[Any]) -> NDArray[Any]:
        rows = rng.standard_normal((clients + 1, *values.shape[1:]), np.float32)
        rows *= DEVIATION
        rows[0] = 0
        return rows.astype(values.dtype, copy=False)

    replace_banks(model, random)
