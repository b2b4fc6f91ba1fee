"""FedOTP: a global and a local prompt work together (Li et al., arXiv 2403.00041, CVPR 2024).

A client trains two contexts; the server averages the first, weighted by the number of images, and
the second stays. An image is compared with a class patch by patch: unbalanced optimal transport
between its patches and the two prompts decides which prompt answers for which patch, and which
patches stay out (section 3.3). For one image and one class, let S [patches, prompts] be the cosine
similarities of the image's patches with the class name behind each prompt. The plan solves

    min_T <T, 1 - S> - eps H(T)    with    T 1 <= 1/patches,    T^T 1 = mass/prompts

(every patch may give at most its share, every prompt receives exactly its own: with a mass below 1
some patches stay out) by Dykstra's iteration on K = exp(-(1 - S) / eps). With C the cross-entropy,

    L = C(scale * sum(T * S), y)        T without gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from pfedmma_deploy.adapters.base import Adapter
from pfedmma_deploy.adapters.prompts import encode_contexts, new_vectors, require_room
from pfedmma_deploy.backbone.clip import Activations, Backbone, ClassTexts, Images
from pfedmma_deploy.methods.base import Method, Parameters
from pfedmma_deploy.types import Scope, Tower

SETTLED = 1e-6
"""Largest relative change of a step after which the iteration has nothing left to do."""


@dataclass(frozen=True)
class FedOTPParameters(Parameters):
    """Hyper-parameters and their symbols in the paper."""

    context_vectors: Annotated[int, Field(ge=1)] = 16
    """Learned vectors before a class name, in each of the two prompts."""
    mass: Annotated[float, Field(gt=0, le=1)] = 0.8
    """gamma, the share of the patches' mass that is transported."""
    epsilon: Annotated[float, Field(gt=0)] = 0.1
    """lambda, the weight of the entropy: 0.1 or 0.01."""
    iterations: Annotated[int, Field(ge=1)] = 100
    """Steps of the transport at most."""


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
        # The clamp is what makes the transport unbalanced: a patch may give less than its share,
        # where an equality would force background patches onto some prompt.
        u = (1 / patches / (kernel * v).sum(dim=-1, keepdim=True)).clamp(max=1)
        last, v = v, mass / prompts / (kernel * u).sum(dim=-2, keepdim=True)
        # Relative, because the columns of v differ by orders of magnitude for a small eps.
        if bool(((v - last).abs() <= SETTLED * v).all()):
            break
    return u * kernel * v


class TransportPrompts(Adapter):
    """Two contexts [M, d]: `shared`, which is averaged, and `local`.

    Images are encoded as the features of their patches, [B, patches, D], and class names as two
    features each, [C, 2, D]; both L2-normalised.

    Args:
        backbone: tells the width d and the number of tokens.
        parameters: M, and those of `transport_plan`.
        generator: drives the initialisation, N(0, 0.02^2).
    """

    interpolation = "scores"

    def __init__(
        self, backbone: Backbone, parameters: FedOTPParameters, generator: torch.Generator
    ) -> None:
        super().__init__()
        vectors = parameters.context_vectors
        require_room(backbone, vectors)
        self.settings = parameters
        width = backbone.width("text")
        self.shared = new_vectors(vectors, width, generator=generator)
        self.local = new_vectors(vectors, width, generator=generator)

    def first_block(self, backbone: Backbone, tower: Tower) -> int:
        """The last one of the image tower: it is frozen, but all of its tokens are needed."""
        return backbone.depth(tower) - 1 if tower == "image" else 0

    @torch.no_grad()
    def encode_image(self, backbone: Backbone, images: Images) -> Tensor:
        """Patch features of uint8 pixels [B, H, W, 3] or activations: [B, patches, D]."""
        if isinstance(images, Activations):
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
        settings = self.settings
        plan = transport_plan(similarity, settings.mass, settings.epsilon, settings.iterations)
        return logit_scale * (plan * similarity).sum(dim=(-2, -1))

    def scopes(self) -> dict[str, Scope]:
        """As the names say."""
        return {"shared": Scope.SHARED, "local": Scope.LOCAL}


class FedOTP(Method[TransportPrompts, FedOTPParameters]):
    """Two contexts, weighed against each other patch by patch."""

    name = "fedotp"
    paper = "FedOTP, arXiv 2403.00041 (CVPR 2024)"
    trained = "a global and a local context"
    shared = "the global context"
    Parameters = FedOTPParameters
    export_blocker = (
        "a class score is an optimal transport over the image's patches, not the cosine of "
        "two features that a bundle computes"
    )
    is_batchable = False  # the transport stops when it has settled

    def build(self, backbone: Backbone, generator: torch.Generator) -> TransportPrompts:
        """Both contexts."""
        return TransportPrompts(backbone, self.parameters, generator)
