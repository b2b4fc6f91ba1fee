"""Local, base and novel accuracy on cases that can be worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pfedmma_deploy.adapters.base import Adapter, Frozen
from pfedmma_deploy.backbone.activation_cache import ImageInputs
from pfedmma_deploy.backbone.blocks import BlockHook
from pfedmma_deploy.data.pixels import PixelLoader
from pfedmma_deploy.evaluation.accuracy import (
    Accuracy,
    Scorer,
    harmonic_mean,
    mean_accuracy,
)
from pfedmma_deploy.types import ClientData, Federation, Scope, Tower
from tests.images import MemoryDataset
from tests.tinyclip import tiny_backbone


def test_harmonic_means_of_the_paper() -> None:
    """pFedMMA's published means over seven data sets: 97.17, 77.40, 81.49."""
    row = Accuracy(local=97.17, base=77.40, novel=81.49)
    assert row.hm2 == pytest.approx(2 / (1 / 77.40 + 1 / 81.49))
    assert row.hm3 == pytest.approx(3 / (1 / 97.17 + 1 / 77.40 + 1 / 81.49))


def test_harmonic_mean_of_nothing_known_or_zero() -> None:
    assert harmonic_mean((50.0, None)) is None
    assert harmonic_mean((50.0, 0.0)) == 0.0
    assert Accuracy(local=90.0, base=80.0, novel=None).hm3 is None


def test_means_are_unweighted_and_skip_what_is_not_measured() -> None:
    rows = [Accuracy(80.0, 60.0, None), Accuracy(100.0, 70.0, None), Accuracy(None, 50.0, None)]
    assert mean_accuracy(rows) == Accuracy(90.0, 60.0, None)
    assert mean_accuracy([Accuracy(1.0, 1.0, 1.0, 40.0), Accuracy(1.0, 1.0, 1.0, 50.0)]).all == 45.0


def test_a_client_loses_where_more_than_a_point_is_gone() -> None:
    before = Accuracy(local=50.0, base=70.0, novel=80.0)
    assert not Accuracy(local=0.0, base=69.0, novel=79.0).loses(before)
    assert Accuracy(local=90.0, base=68.9, novel=90.0).loses(before)
    assert Accuracy(local=90.0, base=90.0, novel=78.9).loses(before)
    assert not Accuracy(local=90.0, base=90.0, novel=None).loses(before)


def images_of(dataset: MemoryDataset) -> ImageInputs:
    return ImageInputs(PixelLoader(dataset, 16))


class Hooked(Adapter):
    """An adapter that is nothing but a function."""

    def __init__(self, function: BlockHook) -> None:
        super().__init__()
        self.function = function

    def hook(self, tower: Tower, block: int, h: Tensor) -> Tensor | None:
        return self.function(tower, block, h)

    def scopes(self) -> dict[str, Scope]:
        return {}


def federation() -> tuple[Federation, MemoryDataset]:
    dataset = MemoryDataset(("cat", "dog", "ship"), [0, 0, 1, 1, 2, 2], split="test")
    cats, dogs, ships = dataset.examples[:2], dataset.examples[2:4], dataset.examples[4:]
    clients = (
        ClientData("a", (0,), train=(), val=(), test=cats),
        ClientData("b", (1,), train=(), val=(), test=dogs),
        ClientData("c", (1,), train=(), val=(), test=()),
    )
    return Federation(dataset, (0, 1), (2,), clients, (*cats, *dogs), ships), dataset


def always(label_text: str) -> BlockHook:
    """A hook that drives every image towards the text feature of one class name."""
    backbone = tiny_backbone()
    wanted = backbone.encode_text(backbone.tokenize([label_text]))[0]

    def hook(tower: Tower, block: int, h: Tensor) -> Tensor | None:
        if tower == "text" or block < 2:
            return None
        # The last block's class token decides the image feature: solve for a token that projects
        # onto the wanted direction and let it outweigh everything else.
        token = torch.linalg.lstsq(backbone.visual.proj.T, wanted).solution
        pull: Tensor = 1e4 * token.expand_as(h)
        return pull

    return hook


def test_local_base_and_novel_by_hand() -> None:
    """A model that answers "cat" to everything: all right for a, wrong for b, half of base."""
    data, dataset = federation()
    scorer = Scorer(tiny_backbone(), data, images_of(dataset), "a photo of a {}.", 20.0)
    hook = always("a photo of a cat.")
    found = scorer.score(Hooked(hook), data.clients)
    assert [row.local for row in found] == [100.0, 0.0, None]
    assert [row.base for row in found] == [50.0] * 3
    # One novel name: whatever the image, it wins among the novel names.
    assert [row.novel for row in found] == [100.0] * 3
    # Asked among all three names it says "cat" to the ships, too: two of six are right.
    assert [row.all for row in found] == [pytest.approx(100 * 2 / 6)] * 3


class Shifted(Hooked):
    """Reads names together: moves every feature by how many names there are."""

    reads_names_together = True

    def logits(self, images: Tensor, texts: Tensor, logit_scale: float) -> Tensor:
        return torch.full((len(images), len(texts)), float(len(texts)))


def test_scores_of_several_sets_of_names() -> None:
    data, dataset = federation()
    scorer = Scorer(tiny_backbone(), data, images_of(dataset), "a photo of a {}.", 20.0)
    plain = Hooked(lambda tower, block, h: None)
    some, one, none = scorer.scores(plain, dataset.examples, (2, 0), (1,), ())
    assert (some.shape, one.shape, none.shape) == ((6, 2), (6, 1), (6, 0))
    (both,) = scorer.scores(plain, dataset.examples, (0, 1, 2))
    assert torch.allclose(both, torch.cat([some[:, 1:], one, some[:, :1]], dim=1), atol=1e-5)
    # What reads names together is asked about each set by itself.
    shifted = scorer.scores(Shifted(plain.function), dataset.examples, (2, 0), (1,), ())
    assert [found.tolist() for found in shifted] == [[[2.0, 2.0]] * 6, [[1.0]] * 6, [[]] * 6]


class Doubled(Hooked):
    """Answers with scores of its own, which lie between zero-shot's and 7 by the strength."""

    interpolation = "scores"

    def logits(self, images: Tensor, texts: Tensor, logit_scale: float) -> Tensor:
        return torch.full((len(images), len(texts)), 7.0)


def test_scores_are_mixed_where_features_cannot_be() -> None:
    data, dataset = federation()
    scorer = Scorer(tiny_backbone(), data, images_of(dataset), "a photo of a {}.", 20.0)
    adapter = Doubled(lambda tower, block, h: None)
    (plain,) = scorer.scores(Frozen(), dataset.examples, (0, 1))
    (half,) = scorer.scores(adapter.at(0.5), dataset.examples, (0, 1))
    torch.testing.assert_close(half, (plain + 7) / 2)
    (none,) = scorer.scores(adapter.at(0), dataset.examples, (0, 1))
    torch.testing.assert_close(none, plain)


def test_novel_classes_that_are_base_classes_of_another_domain_are_one_name() -> None:
    data, dataset = federation()
    scorer = Scorer(
        tiny_backbone(), replace(data, novel=(1, 2)), images_of(dataset), "a photo of a {}.", 20.0
    )
    assert scorer.every_label == (0, 1, 2)


def test_text_features_are_rebuilt_for_every_model() -> None:
    """No model may be scored with the text side of another."""
    data, dataset = federation()
    scorer = Scorer(tiny_backbone(), data, images_of(dataset), "a photo of a {}.", 20.0)
    seen: list[str] = []

    def watch(name: str) -> BlockHook:
        def hook(tower: Tower, block: int, h: Tensor) -> Tensor | None:
            if tower == "text" and block == 0:
                seen.append(f"{name}:{len(h)}")
            return None

        return hook

    for name in ("first", "second", "first"):
        scorer.score(Hooked(watch(name)), data.clients)
    assert seen == ["first:3", "second:3", "first:3"]
