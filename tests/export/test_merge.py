"""Clients as stock open_clip weights: bit-identical, loaded by open_clip alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from pfedmma_deploy.adapters.lora import LoRA
from pfedmma_deploy.config import PartitionConfig, TrainConfig
from pfedmma_deploy.errors import ExportError, UsageError
from pfedmma_deploy.export import merge as merge_module
from pfedmma_deploy.export.merge import export_open_clip, merge
from pfedmma_deploy.export.run import export_run
from pfedmma_deploy.federated.train import train
from pfedmma_deploy.methods.plora import PLoRA
from pfedmma_deploy.methods.registry import METHODS, get_method
from pfedmma_deploy.methods.tap import COMPONENTS, TAP, ComponentAdapter
from pfedmma_deploy.store.run import Run
from tests.federated.conftest import sites  # noqa: F401  # a fixture
from tests.methods import inputs
from tests.tinyclip import NAME, register, tiny_backbone


def options(method: str, folder: Path, **parameters: Any) -> TrainConfig:
    return TrainConfig(
        data=str(folder),
        backbone=register(),
        pretrained="random",
        method=method,
        partition=PartitionConfig(scheme="folders", num_shots=0),
        rounds=1,
        local_epochs=1,
        batch_size=4,
        lr=0.05,
        logit_scale=20.0,
        parameters=parameters,
    )


@pytest.fixture(scope="module")
def run(sites: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:  # noqa: F811
    torch.set_num_threads(1)
    return train(options("plora", sites), tmp_path_factory.mktemp("lora") / "run").run


def noise(adapter: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(4)
    for name, value in adapter.named_parameters():
        if name.endswith(("A", "B")):
            value.data.normal_(0, 0.1, generator=generator)


def test_merged_lora_is_the_adapter_to_the_bit() -> None:
    backbone, adapter = tiny_backbone(), inputs.build(PLoRA)
    assert isinstance(adapter, LoRA)
    noise(adapter)
    state = merge(backbone, adapter)
    assert state.keys() == backbone.model.state_dict().keys()
    changed = {n for n, v in backbone.model.state_dict().items() if not torch.equal(v, state[n])}
    assert changed == {
        f"{tower}transformer.resblocks.{block}.attn.in_proj_weight"
        for tower in ("visual.", "")
        for block in range(3)
    }
    model = open_clip.create_model(NAME).eval()
    model.load_state_dict(state, strict=True)
    merged = type(backbone)(**{**vars(backbone), "model": model})
    batch = inputs.batch()
    expected = adapter.encode_image(backbone, batch.pixels)
    assert torch.equal(merged.encode_image(batch.pixels), expected)
    assert torch.equal(
        merged.encode_text(batch.texts.prompts), adapter.encode_text(backbone, batch.texts)
    )


def test_half_of_the_changes_is_merged() -> None:
    backbone, adapter = tiny_backbone(), inputs.build(PLoRA)
    noise(adapter)
    name = "visual.transformer.resblocks.1.attn.in_proj_weight"
    plain = backbone.model.state_dict()[name]
    half, full = (merge(backbone, adapter.at(amount))[name] for amount in (0.5, 1.0))
    torch.testing.assert_close(half, (plain + full) / 2)
    assert torch.equal(merge(backbone, adapter.at(0))[name], plain)


def test_every_task_of_tap_merges_to_the_bit() -> None:
    backbone, adapter = tiny_backbone(), inputs.build(TAP)
    assert isinstance(adapter, ComponentAdapter)
    noise(adapter)
    adapter.held = COMPONENTS
    assert adapter.tasks == ("classify", "retrieve")
    batch, found = inputs.batch(), []
    for task in adapter.tasks:
        adapter.task = task
        model = open_clip.create_model(NAME).eval()
        model.load_state_dict(merge(backbone, adapter), strict=True)
        merged = type(backbone)(**{**vars(backbone), "model": model})
        found.append(merged.encode_image(batch.pixels))
        assert torch.equal(found[-1], adapter.encode_image(backbone, batch.pixels))
    assert not torch.equal(*found)


def test_open_clip_alone_gives_the_clients_features(run: Run, tmp_path: Path) -> None:
    """With open_clip's own forward pass and nothing of this package."""
    report = export_open_clip(run, tmp_path / "out", clients=["clinic"], strength=1.0)
    assert report.parity.max_abs_error == 0
    assert set(report.files) == {"clinic.safetensors", "clinic.json"}
    assert {p.name: p.stat().st_size for p in (tmp_path / "out").iterdir()} == report.files
    card = json.loads((tmp_path / "out" / "clinic.json").read_text())
    assert card["seen"] == ["cat", "dog"]
    arguments = {**card["open_clip"], "pretrained": str(tmp_path / "out" / "clinic.safetensors")}
    model, _, _ = open_clip.create_model_and_transforms(**arguments)
    model.eval()
    from pfedmma_deploy.federated.session import open_run_session

    session = open_run_session(run)
    adapter = session.client_model(run.load_client("clinic"), run.load_shared()).eval()
    backbone, pixels = session.backbone, inputs.pixels()
    mean, std = torch.tensor(backbone.mean), torch.tensor(backbone.std)
    with torch.no_grad():
        images = ((pixels / 255 - mean) / std).permute(0, 3, 1, 2)
        found = model.encode_image(images, normalize=True)
        expected = adapter.encode_image(backbone, pixels)
        texts = model.encode_text(inputs.texts().prompts, normalize=True)
        expected_texts = adapter.encode_text(backbone, inputs.texts())
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(texts, expected_texts, atol=1e-5, rtol=0)
    assert (found - backbone.encode_image(pixels)).abs().max() > 1e-3


def test_trained_in_half_precision_and_exported_in_full(
    sites: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    config = replace(options("plora", sites), autocast="bf16")
    half = train(config, tmp_path / "run").run
    assert export_open_clip(half, tmp_path / "weights").parity.max_abs_error == 0
    assert export_run(half, tmp_path / "bundle").parity.max_abs_error < 1e-5


def test_a_file_that_differs_is_not_kept(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = merge_module.load_open_clip

    def changed(backbone: Any, path: Path) -> Any:
        loaded = load(backbone, path)
        loaded.model.visual.proj.data[0, 0] += 1e-3
        return loaded

    monkeypatch.setattr(merge_module, "load_open_clip", changed)
    with pytest.raises(ExportError, match="does not give the features of the trained client"):
        export_open_clip(run, tmp_path, clients=["clinic"])
    assert not list(tmp_path.iterdir())


def test_all_clients_and_unknown_ones(run: Run, tmp_path: Path) -> None:
    report = export_open_clip(run, tmp_path, strength=0.5)
    assert report.clients == ("clinic", "harbour")
    assert json.loads((tmp_path / "clinic.json").read_text())["strength"] == 0.5
    with pytest.raises(UsageError, match=r"A strength is a number from 0 .* found 2"):
        export_open_clip(run, tmp_path, strength=2)
    with pytest.raises(UsageError, match="has no client 'clinik'; did you mean 'clinic'"):
        export_open_clip(run, tmp_path, clients=["clinik"])


@pytest.mark.parametrize("name", [m.name for m in METHODS.values() if not m.merges])
def test_what_does_not_merge_says_so(name: str) -> None:
    with pytest.raises(ExportError, match=f"The clients of {name} cannot be written as open_clip"):
        merge_module.refuse_open_clip(get_method(name))
