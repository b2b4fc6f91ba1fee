"""FedMaPLe: MaPLe's coupled prompts, averaged over clients.

MaPLe (Khattak et al., arXiv 2210.03117, CVPR 2023), section 3.2. For each of the first J blocks
there are P_j [n, d_t] and a linear coupling F_j: d_t -> d_v. The text tower reads P_1 between the
start token and the class name, the image tower F_1(P_1) behind its patches (before its first layer
norm, as the patches); before every further block j <= J both replace what the last block made of
their prompts by P_j and F_j(P_j). From block J on the prompts go on like any other token. As a
federated baseline (FedTPG, arXiv 2310.06123) the clients minimise the cross-entropy and the server
averages prompts and couplings, weighted by the number of images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from pfedmma_deploy.adapters.base import Adapter, new_linear
from pfedmma_deploy.adapters.prompts import encode_context, new_vectors, require_room
from pfedmma_deploy.backbone.clip import Backbone, ClassTexts, Images, pixels_of
from pfedmma_deploy.methods.base import Method, Parameters
from pfedmma_deploy.types import Scope, Tower

FIRST_WORDS = "a photo of a"
"""What the first prompt starts from, as far as it is long."""


@dataclass(frozen=True)
class FedMaPLeParameters(Parameters):
    """Hyper-parameters and their symbols in the paper."""

    context_vectors: Annotated[int, Field(ge=1)] = 2
    """Learned vectors per block."""
    prompt_depth: Annotated[int, Field(ge=1)] = 9
    """J, the number of blocks from the first one; at most those of the shallower tower."""


class CoupledPrompts(Adapter):
    """Prompts `text.{j}` [n, d_t] and couplings `couple.{j}` into the first J blocks, all shared.

    Args:
        backbone: tells the widths, the depths and the number of tokens.
        parameters: n and J. Up to four vectors start from the embeddings of "a photo of a", more
            from N(0, 0.02^2), as do the prompts of all blocks but the first; where a tower has
            fewer than J blocks, both get prompts in as many as the shallower one has.
        generator: drives the initialisation.
    """

    interpolation = "scores"

    def __init__(
        self, backbone: Backbone, parameters: FedMaPLeParameters, generator: torch.Generator
    ) -> None:
        super().__init__()
        vectors = parameters.context_vectors
        require_room(backbone, vectors)
        widths = backbone.width("text"), backbone.width("image")
        self.vectors = vectors
        self.depth = min(parameters.prompt_depth, backbone.depth("text"), backbone.depth("image"))
        prompts = [new_vectors(vectors, widths[0], generator=generator) for _ in range(self.depth)]
        words = backbone.embed_tokens(backbone.tokenize([FIRST_WORDS]))[0]
        if vectors <= len(FIRST_WORDS.split()):
            prompts[0].data.copy_(words[1 : 1 + vectors])
        self.text = nn.ParameterList(prompts)
        couplings = (new_linear(*widths, generator) for _ in range(self.depth))
        self.couple = nn.ModuleList(couplings)

    def encode_image(self, backbone: Backbone, images: Images) -> Tensor:
        """Features of uint8 pixels [B, H, W, 3] with the prompts behind the patches: [B, D]."""
        x = backbone.embed_image(pixels_of(images))
        # The embedding is behind `ln_pre` already, which looks at one token at a time.
        prompt = backbone.visual.ln_pre(self._prompt("image", 0))
        x = torch.cat([x, prompt.expand(len(x), -1, -1)], dim=1)
        read = x.new_zeros(len(x), dtype=torch.long)
        x = backbone.run_blocks("image", x, before=self.replace, read=read)
        return backbone.pool_image(x)

    def encode_text(self, backbone: Backbone, texts: ClassTexts) -> Tensor:
        """Features of class names behind the prompts, [C, D], L2-normalised."""
        return encode_context(backbone, texts, self.text[0], before=self.replace)

    def replace(self, tower: Tower, block: int, x: Tensor) -> Tensor:
        """The tokens [B, T, d] with the prompts of this block, from the second block to J."""
        if not 0 < block < self.depth:
            return x
        prompt = self._prompt(tower, block).expand(len(x), -1, -1)
        if tower == "image":
            return torch.cat([x[:, : -self.vectors], prompt], dim=1)
        return torch.cat([x[:, :1], prompt, x[:, 1 + self.vectors :]], dim=1)

    def _prompt(self, tower: Tower, block: int) -> Tensor:
        prompt: Tensor = self.text[block]
        return prompt if tower == "text" else self.couple[block](prompt)

    def scopes(self) -> dict[str, Scope]:
        """Everything is shared."""
        return {name: Scope.SHARED for name, _ in self.named_parameters()}


class FedMaPLe(Method[CoupledPrompts, FedMaPLeParameters]):
    """Prompts and couplings, all shared."""

    name = "fedmaple"
    paper = "MaPLe, arXiv 2210.03117 (CVPR 2023), averaged"
    trained = "coupled prompts in the first blocks of both towers"
    shared = "the prompts and their couplings"
    Parameters = FedMaPLeParameters
    export_blocker = (
        "a client's image tower reads more tokens than that of zero-shot CLIP, and all of a "
        "bundle share one graph"
    )

    def build(self, backbone: Backbone, generator: torch.Generator) -> CoupledPrompts:
        """Prompts and couplings."""
        return CoupledPrompts(backbone, self.parameters, generator)
