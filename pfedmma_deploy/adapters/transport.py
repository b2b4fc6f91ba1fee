"""A shared and a local prompt, weighed against each other by optimal transport: FedOTP's model.

Source: FedOTP, arXiv 2403.00041 (CVPR 2024), section 3.3. For one image and one class, let S
[patches, prompts] be the cosine similarities of the image's patches with the class name behind each
prompt. The plan solves

    min_T <T, 1 - S> - eps H(T)    with    T 1 <= 1/patches,    T^T 1 = mass/prompts

(every patch may give at most its share, every prompt receives exactly its own: with a mass below 1
some patches stay out) by Dykstra's iteration on K = exp(-(1 - S) / eps). It is no function of the
parameters for the gradient; the class score is sum(T * S).
"""

from __future__ import annotations

import torch
from torch import Tensor

from pfedmma_deploy.adapters.base import Adapter
from pfedmma_deploy.adapters.prompts import encode_contexts, new_vectors, require_room
from pfedmma_deploy.backbone.clip import Backbone, Images, Prefix
from pfedmma_deploy.backbone.texts import ClassTexts
from pfedmma_deploy.types import Scope, Tower

SETTLED = 1e-6
"""Largest relative change of a step after which the iteration has nothing left to do."""


@torch.no_grad()
def transport_plan(similarity: Tensor, mass: float, epsilon: float, iterations: int) -> Tensor:
    """The plan of every problem, [..., patches, prompts] -> the same shape; without gradient.

    Args:
        similarity: S.
        mass: what is transported in all, above 0 and at most 1.
        epsilon: weight of the entropy.
        iterations: at most so many steps; it stops earlier where nothing changes any more.
    """
    patches, prompts = similarity.shape[-2:]
    # A factor on a column of K goes into that column's v, so each may be scaled to a largest entry
    # of 1: otherwise exp(-(1 - S) / eps) vanishes in float32 for a small eps.
    highest = similarity.amax(dim=-2, keepdim=True)
    kernel = ((similarity - highest) / epsilon).exp()
    v = torch.ones_like(kernel[..., :1, :])
    u = torch.ones_like(kernel[..., :1])
    for _ in range(iterations):
        u = (1 / patches / (kernel * v).sum(dim=-1, keepdim=True)).clamp(max=1)
        last, v = v, mass / prompts / (kernel * u).sum(dim=-2, keepdim=True)
        if bool(((v - last).abs() <= SETTLED * v).all()):
            break
    return u * kernel * v


class TransportPrompts(Adapter):
    """Two contexts [M, d]: `shared`, which is averaged, and `local`.

    Images are encoded as the features of their patches, [B, patches, D], and class names as two
    features each, [C, 2, D]; both L2-normalised.

    Args:
        backbone: tells the width d and the number of tokens.
        vectors: M.
        generator: drives the initialisation, N(0, 0.02^2).
        mass, epsilon, iterations: see `transport_plan`.
    """

    def __init__(
        self,
        backbone: Backbone,
        vectors: int,
        generator: torch.Generator,
        *,
        mass: float,
        epsilon: float,
        iterations: int,
    ) -> None:
        super().__init__()
        require_room(backbone, vectors)
        self.mass = mass
        self.epsilon = epsilon
        self.iterations = iterations
        width = backbone.width("text")
        self.shared = new_vectors(vectors, width, generator=generator)
        self.local = new_vectors(vectors, width, generator=generator)

    def first_block(self, backbone: Backbone, tower: Tower) -> int:
        """The last one of the image tower: it is frozen, but all of its tokens are needed."""
        return backbone.depth(tower) - 1 if tower == "image" else 0

    @torch.no_grad()
    def encode_image(self, backbone: Backbone, images: Images) -> Tensor:
        """Patch features of uint8 pixels [B, H, W, 3] or their prefix: [B, patches, D]."""
        if isinstance(images, Prefix):
            x, start = images.tokens.to(backbone.device), images.start
        else:
            x, start = backbone.embed_image(images), 0
        return backbone.pool_patches(backbone.run_blocks("image", x, start=start))

    def encode_text(self, backbone: Backbone, texts: ClassTexts) -> Tensor:
        """Features of class names behind both contexts, [C, 2, D], L2-normalised."""
        return encode_contexts(backbone, texts, torch.stack([self.shared, self.local]))

    def logits(self, images: Tensor, texts: Tensor, logit_scale: float) -> Tensor:
        """Class scores [B, C] of patch features [B, patches, D] and [C, 2, D]."""
        # In half precision exp(S / eps) would be noise.
        similarity = torch.einsum("bmd,cnd->bcmn", images.float(), texts.float())
        plan = transport_plan(similarity, self.mass, self.epsilon, self.iterations)
        return logit_scale * (plan * similarity).sum(dim=(-2, -1))

    def scopes(self) -> dict[str, Scope]:
        """As the names say."""
        return {"shared": Scope.SHARED, "local": Scope.LOCAL}
