"""Bundles to measure: a backbone with random adapters for any number of clients.

Speed does not depend on the values of weights. `export_bundle` makes and verifies a bundle with one
client; here its banks get rows for as many as are asked for. The text tower is left out: images are
classified with stored text features, in production too.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.export.banks import ExportClient, client_banks, replace_banks
from pfedmma_deploy.export.bundle import export_bundle
from pfedmma_deploy.export.export_config import ExportConfig, Flavour
from pfedmma_deploy.export.models import reduced_model
from pfedmma_deploy.export.onnx_file import LARGEST, to_bytes
from pfedmma_deploy.export.publish import seal
from pfedmma_deploy.methods.registry import make_method
from pfedmma_deploy.runtime import bundle as names
from pfedmma_deploy.runtime.manifest import ZERO_SHOT, ClientInfo
from pfedmma_deploy.store.files import write_bytes

CLASS_NAMES = tuple(f"class {number}" for number in range(10))
DEVIATION = 0.02
"""Of the random weights: small enough for fp16 in towers of any depth."""


class RandomBundles:
    """Bundles of one backbone, exported from torch once per flavour."""

    def __init__(self, backbone: Backbone, folder: Path, bottleneck_dim: int) -> None:
        """Write them below `folder`; pFedMMA's adapters of rank `bottleneck_dim`."""
        self.backbone = backbone
        self.folder = folder
        self.bottleneck_dim = bottleneck_dim

    def make(self, clients: int, config: ExportConfig) -> Path:
        """A bundle that serves zero-shot and `clients` random clients.

        Raises:
            ExportError: the backbone cannot be exported, or its ONNX model does not compute what
                open_clip does.
            UsageError: one ONNX file cannot hold so many clients.
        """
        out = self.folder / f"{config.flavour}-{config.precision}-{config.weights}-{clients}"
        if out.exists():
            return out
        # Exported once per flavour and widened here: torch's exporter is the slowest step by far.
        source = self._export(config.flavour)
        model = reduced_model(onnx.load(source.path / names.VISION_MODEL), config)
        # Known before anything is allocated: a thousand adapters on ViT-L are several GB.
        size, banks = model.ByteSize(), set(client_banks(model))
        for entry in model.graph.initializer:
            if entry.name in banks:
                size += len(entry.raw_data) // entry.dims[0] * (clients - 1)
        if size > LARGEST:
            raise UsageError(
                f"{clients} clients on {self.backbone.name} make a model of {size / 1e9:.1f} GB, "
                "one ONNX file holds 2.1: measure fewer, or store them with --weights fp16"
            )
        rng = np.random.default_rng(1)

        def random(name: str, values: NDArray[Any]) -> NDArray[Any]:
            rows = rng.standard_normal((clients + 1, *values.shape[1:]), np.float32)
            rows *= DEVIATION
            rows[0] = 0  # zero-shot's
            return rows.astype(values.dtype, copy=False)

        replace_banks(model, random)
        out.mkdir()
        write_bytes(out / names.VISION_MODEL, to_bytes(model, {}))
        for file in (names.TOKENIZER, names.LABELS):
            shutil.copyfile(source.path / file, out / file)
        text = np.repeat(source.text_embeds()[:1], clients + 1, axis=0)
        np.save(out / names.TEXT_EMBEDS, text)
        rows = [ClientInfo(index, str(index), ()) for index in range(1, clients + 1)]
        manifest = replace(
            source.manifest,
            clients=(ClientInfo(0, ZERO_SHOT, ()), *rows),
            precision=config.precision,
            weights="fp16" if config.precision == "fp16" else config.weights,
        )
        seal(out, out.name, manifest, source.manifest.parity)
        return out

    def _export(self, flavour: Flavour) -> names.Bundle:
        """The bundle with one client, in fp32."""
        folder = self.folder / f"exact-{flavour}"
        if not folder.exists():
            size = self.backbone.image_size
            method = make_method("pfedmma", {"bottleneck_dim": self.bottleneck_dim})
            adapter = method.build(self.backbone, torch.Generator().manual_seed(0))
            rng = np.random.default_rng(0)
            export_bundle(
                self.backbone,
                [ExportClient("1", adapter)],
                folder,
                class_names=CLASS_NAMES,
                prompt="a photo of a {}.",
                base=range(len(CLASS_NAMES)),
                novel=(),
                method=method.name,
                parity_images=rng.integers(0, 256, (2, size, size, 3), dtype=np.uint8),
                provenance={"run": "benchmark: random adapters"},
                config=ExportConfig(flavour),
            )
        return names.Bundle.open(folder)
