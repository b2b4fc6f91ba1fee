"""FedDAT: the dual teacher and the mutual losses on numbers that can be followed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pfedmma_deploy.methods.base import divergence, hooked_logits
from pfedmma_deploy.methods.feddat import DualAdapter, FedDAT, mutual_loss
from pfedmma_deploy.types import Scope
from tests.methods import inputs
from tests.tinyclip import tiny_backbone

ZERO, LOG3 = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3), 0.0]])
"""Scores of the distributions (1/2, 1/2) and (3/4, 1/4)."""


def dual(seed: int = 0) -> DualAdapter:
    """One whose bottlenecks add something."""
    adapter = inputs.build(FedDAT, seed, reduction=4)
    assert isinstance(adapter, DualAdapter)
    generator = torch.Generator().manual_seed(seed + 10)
    for value in adapter.parameters():
        value.data.normal_(0, 0.1, generator=generator)
    return adapter


def test_divergence_by_hand() -> None:
    """KL(teacher || student), of (3/4, 1/4) from (1/2, 1/2) and the other way round."""
    assert float(divergence(ZERO, LOG3)) == pytest.approx(
        0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    )
    assert float(divergence(LOG3, ZERO)) == pytest.approx(
        0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    )
    # the mean over a batch
    both = divergence(torch.cat([ZERO, LOG3]), torch.cat([LOG3, LOG3]))
    assert float(both) == pytest.approx(float(divergence(ZERO, LOG3)) / 2)


def test_loss_by_hand() -> None:
    """z_s says (1/2, 1/2), z_t says (3/4, 1/4), the label is the first."""
    found = mutual_loss(ZERO, LOG3, torch.tensor([0]))
    of_shared = math.log(2) + float(divergence(ZERO, LOG3))
    of_local = math.log(4 / 3) + float(divergence(LOG3, ZERO))
    assert float(found) == pytest.approx((of_shared + of_local) / 2)


def test_a_teacher_gets_no_gradient() -> None:
    student, teacher = ZERO.clone().requires_grad_(), LOG3.clone().requires_grad_()
    divergence(student, teacher).backward()  # type: ignore[no-untyped-call]
    # d KL / d student = softmax(student) - softmax(teacher)
    assert student.grad is not None
    assert student.grad[0].tolist() == pytest.approx([-0.25, 0.25])
    assert teacher.grad is None


def test_hooks_by_hand() -> None:
    """d = 2, one inner unit: the client's model adds the mean of what its two sides say."""
    adapter = DualAdapter({"image": 2, "text": 2}, {"image": 1, "text": 1}, 2, torch.Generator())
    own = dict(adapter.named_parameters())
    for side, down, up in (("shared", [1.0, 0.0], [2.0, 0.0]), ("local", [0.0, 1.0], [0.0, 4.0])):
        own[f"{side}.image.0.down.weight"].data = torch.tensor([down])
        own[f"{side}.image.0.up.weight"].data = torch.tensor([[u] for u in up])
    h = torch.tensor([[[3.0, 5.0], [-3.0, 5.0]]])
    # shared: relu(3) * (2, 0) = (6, 0) and relu(-3) = 0; local: 5 * (0, 4) = (0, 20)
    assert adapter.shared_hook("image", 0, h).tolist() == [[[6.0, 0.0], [0.0, 0.0]]]
    mean = adapter.hook("image", 0, h)
    assert mean is not None
    assert mean.tolist() == [[[3.0, 10.0], [0.0, 10.0]]]
    received = adapter.tensors(Scope.SHARED)
    own["shared.image.0.up.weight"].data.zero_()
    teacher = adapter.teacher_hook(received)("image", 0, h)
    assert teacher is not None
    assert teacher.tolist() == [[[3.0, 10.0], [0.0, 10.0]]], "the copy is what was received"


def test_a_fresh_client_is_zero_shot_clip() -> None:
    backbone, adapter = tiny_backbone(), inputs.build(FedDAT)
    found = adapter.encode_image(backbone, inputs.pixels())
    assert torch.equal(found, backbone.encode_image(inputs.pixels()))


def gradients(batch_loss: Tensor, adapter: DualAdapter) -> dict[str, Tensor]:
    adapter.zero_grad()
    batch_loss.backward()  # type: ignore[no-untyped-call]
    return {n: v.grad.clone() for n, v in adapter.named_parameters() if v.grad is not None}


def test_each_side_learns_from_its_own_loss_only() -> None:
    """The gradient of L_s + L_c is that of L_s on the shared side, of L_c on the local one."""
    backbone, adapter = tiny_backbone(), dual()
    batch = inputs.batch(received=dual(3).tensors(Scope.SHARED))
    both = gradients(FedDAT().loss(backbone, adapter, batch), adapter)
    assert both.keys() == dict(adapter.named_parameters()).keys()
    student = hooked_logits(backbone, adapter.shared_hook, batch)
    teacher = hooked_logits(backbone, adapter.teacher_hook(batch.received), batch)
    of_shared = inputs.cross_entropy(student, batch.labels) + divergence(student, teacher)
    for name, value in gradients(of_shared / 2, adapter).items():
        if name.startswith("shared"):
            torch.testing.assert_close(value, both[name], atol=1e-6, rtol=1e-4)
    student = hooked_logits(backbone, adapter.shared_hook, batch)
    teacher = hooked_logits(backbone, adapter.teacher_hook(batch.received), batch)
    of_local = inputs.cross_entropy(teacher, batch.labels) + divergence(teacher, student)
    for name, value in gradients(of_local / 2, adapter).items():
        if name.startswith("local"):
            torch.testing.assert_close(value, both[name], atol=1e-6, rtol=1e-4)


def test_scopes() -> None:
    for name, scope in dual().scopes().items():
        assert name.startswith(scope.value)
