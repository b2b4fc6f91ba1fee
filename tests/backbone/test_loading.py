"""Backbones: equal to open_clip, refused where they cannot be adapted, never random by accident."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from pfedmma_deploy.backbone import loading
from pfedmma_deploy.backbone.loading import load_backbone
from pfedmma_deploy.data.pixels import resize_crop
from pfedmma_deploy.errors import BackboneError
from tests.images import MemoryDataset
from tests.tinyclip import register, tiny_backbone


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("changes", [{}, {"quick_gelu": True}])
def test_features_equal_open_clip(changes: dict[str, object]) -> None:
    backbone = load_backbone(register("test-clip-" + "-".join(changes), **changes), "random")
    dataset = MemoryDataset(("cat", "dog"), [0, 1, 0], size=40)
    _, _, transform = open_clip.create_model_and_transforms(
        backbone.name, force_quick_gelu=bool(changes), pretrained=None, load_weights=False
    )
    images = [dataset.open_image(example) for example in dataset.examples]
    pixels = torch.from_numpy(np.stack([resize_crop(image, 16) for image in images]))
    tokens = backbone.tokenize(["a cat", "many " * 90, ""])
    with torch.no_grad():
        stock = torch.stack([transform(image) for image in images])
        torch.testing.assert_close(
            backbone.encode_image(pixels),
            backbone.model.encode_image(stock, normalize=True),
            atol=1e-6,
            rtol=0,
        )
        torch.testing.assert_close(
            backbone.encode_text(tokens),
            backbone.model.encode_text(tokens, normalize=True),
            atol=1e-6,
            rtol=0,
        )
    assert backbone.activation == ("quick_gelu" if changes else "gelu")


def test_a_backbone_is_frozen() -> None:
    backbone = tiny_backbone()
    assert not backbone.model.training
    assert not any(p.requires_grad for p in backbone.model.parameters())


def test_the_fingerprint_is_of_the_weights(tmp_path: Path) -> None:
    first = tiny_backbone()
    state = {name: value.clone() for name, value in first.model.state_dict().items()}
    save_file(state, tmp_path / "same.safetensors")
    state["visual.proj"][0, 0] += 1e-3
    save_file(state, tmp_path / "other.safetensors")
    same = load_backbone(first.name, str(tmp_path / "same.safetensors"))
    other = load_backbone(first.name, str(tmp_path / "other.safetensors"))
    assert same.fingerprint == first.fingerprint
    assert other.fingerprint != first.fingerprint


def test_random_weights_are_seeded_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    again = load_backbone(register(), "random")
    assert torch.equal(torch.rand(1), expected)
    assert again.fingerprint == tiny_backbone().fingerprint


@pytest.mark.parametrize(
    ("name", "pretrained", "message"),
    [
        ("ViT-Z-99", None, "open_clip knows no model named 'ViT-Z-99'"),
        ("ViT-B-32", None, r"ViT-B-32 needs weights: pass --pretrained with a tag \(openai"),
        ("ViT-B-32", "opanai", "'opanai' is neither a weights file nor a pretrained tag"),
        ("RN50", "random", "RN50 cannot be adapted: its image tower is a ModifiedResNet"),
        ("coca_ViT-B-32", "random", "coca_ViT-B-32 cannot be adapted: it is a CoCa"),
    ],
)
def test_what_cannot_be_used_is_refused(name: str, pretrained: str | None, message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        load_backbone(name, pretrained)


def test_a_file_that_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "notes.safetensors"
    path.write_bytes(b"not weights")
    with pytest.raises(BackboneError, match="could not be loaded"):
        load_backbone(register(), str(path))


def test_a_pickle_is_never_executed(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    torch.save({"state_dict": Bomb()}, tmp_path / "bomb.pt")
    with pytest.raises(BackboneError, match="could not be loaded"):
        load_backbone(register(), str(tmp_path / "bomb.pt"))
    assert not (tmp_path / "exploded").exists()


def test_a_tag_decides_the_activation(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenAI's weights need QuickGELU, whichever of the two model names they are asked for by."""
    asked: dict[str, object] = {}

    def create_model(name: str, **options: object) -> torch.nn.Module:
        asked.update(options)
        model: torch.nn.Module = tiny_backbone().model
        return model

    monkeypatch.setattr(open_clip, "create_model", create_model)
    monkeypatch.setattr(loading, "_announce_download", lambda *_: None)
    load_backbone("ViT-B-32", "openai")
    assert asked["force_quick_gelu"] is True
    load_backbone("ViT-B-32", "laion2b_s34b_b79k")
    assert asked["force_quick_gelu"] is False


def test_the_embedded_backbone_is_a_stock_open_clip_model() -> None:
    loading.register()
    loading.register()
    model = open_clip.create_model(loading.MODEL_NAME, pretrained=str(loading.WEIGHTS_FILE))
    backbone = load_backbone(loading.MODEL_NAME)
    assert loading.fingerprint(model) == backbone.fingerprint
    assert backbone.depth("image") >= 8
    assert backbone.depth("text") >= 6
    assert loading.WEIGHTS_FILE.stat().st_size <= 32_000_000
