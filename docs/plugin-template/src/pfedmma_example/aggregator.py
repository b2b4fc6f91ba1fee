"""The geometric median of updates, by smoothed Weiszfeld steps (RFA, arXiv 1912.13445)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pfedmma_deploy.methods.aggregation import Aggregator, Tensors, Update, in_client_order


@dataclass(frozen=True)
class GeometricMedian(Aggregator):
    """The point whose summed L2 distance to the updates, by number of images, is smallest."""

    steps: int = 20
    smoothing: float = 1e-6
    """nu: distances below it count as it."""

    def combine(self, updates: Sequence[Update], server: Tensors) -> Tensors:
        """See `Aggregator`."""
        ordered = in_client_order(updates)
        shapes = {name: value.shape for name, value in ordered[0].shared.items()}
        points = torch.stack(
            [torch.cat([u.shared[name].double().flatten() for name in shapes]) for u in ordered]
        )
        counts = torch.tensor([float(update.num_examples) for update in ordered]).double()
        weights = counts / counts.sum()
        for _ in range(self.steps):
            centre = weights @ points
            distances = (points - centre).norm(dim=1).clamp(min=self.smoothing)
            weights = counts / distances
            weights = weights / weights.sum()
        parts = torch.split(weights @ points, [shape.numel() for shape in shapes.values()])
        state = {}
        for part, (name, shape) in zip(parts, shapes.items(), strict=True):
            state[name] = part.reshape(shape).to(ordered[0].shared[name].dtype)
        return state


GEOMETRIC_MEDIAN = GeometricMedian()
