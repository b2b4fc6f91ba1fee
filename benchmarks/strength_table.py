"""What the strength costs: the exported image tower beside the same one without that input.

    python benchmarks/strength_table.py --backbone pfedmma-tiny,ViT-B-32 --rounds 15

Both are exported here from one random client of each method, in standard operators, and timed in
turns; the one without has the strength 1 as a constant, which the exporter folds away. What counts
is the CPU time of one thread: other processes lengthen it less than the time on the clock.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.backbone.loading import RANDOM, load_backbone
from pfedmma_deploy.benchmark.report import (
    Contestant,
    Row,
    environment_lines,
    make_section,
    new_row,
    run_rounds,
    timed,
)
from pfedmma_deploy.benchmark.subjects import open_tuned
from pfedmma_deploy.export.banks import CLIENT_INPUT, STRENGTH_INPUT, ExportClient, stack_banks
from pfedmma_deploy.export.graph import ImageGraph
from pfedmma_deploy.export.onnx_file import to_bytes, to_onnx
from pfedmma_deploy.methods.registry import make_method
from pfedmma_deploy.system import describe_environment

METHODS = ("pfedmma", "plora", "fedclip")
"""One of each way in which a strength acts: in the blocks, in attention, on the feature."""
THREADS = 1
WITHOUT, WITH = "without strength", "with strength"
COLUMNS = {
    "backbone": ("backbone", 1),
    "method": ("method", 1),
    "batch": ("batch_size", 1),
    "graph": ("name", 1),
    "images per CPU second": ("images_per_second", 1),
    "ratio": ("ratio", 1),
    "low quartile": ("low", 1),
    "high quartile": ("high", 1),
}


class Fixed(nn.Module):
    """The tower at strength 1, which is no input."""

    def __init__(self, graph: ImageGraph) -> None:
        super().__init__()
        self.tower, self.strength = graph, nn.Buffer(torch.ones(1))

    def forward(self, pixel_values: Tensor, client: Tensor) -> Tensor:
        features: Tensor = self.tower(pixel_values, client, self.strength)
        return features


def export_both(backbone: Backbone, method: str, folder: Path) -> dict[str, Path]:
    """Both models of one random client, by name."""
    generator = torch.Generator().manual_seed(0)
    adapter = make_method(method, {}).build(backbone, generator).eval()
    for value in adapter.parameters():
        value.data = 0.02 * torch.randn(value.shape, generator=generator)
    graph = ImageGraph(backbone, stack_banks([ExportClient("1", adapter)], backbone)["image"])
    size = backbone.image_size
    example = {
        "pixel_values": torch.zeros(2, size, size, 3, dtype=torch.uint8),
        CLIENT_INPUT: torch.tensor([0, 1]),
        STRENGTH_INPUT: torch.ones(2),
    }
    files = {}
    for name, module in ((WITHOUT, Fixed(graph)), (WITH, graph)):
        given = {key: value for key, value in example.items() if key != STRENGTH_INPUT}
        model = to_onnx(module.eval(), example if name == WITH else given, "image_embeds", "batch")
        files[name] = folder / f"{method}-{name.replace(' ', '-')}.onnx"
        files[name].write_bytes(to_bytes(model, {}))
    return files


def contestants(files: dict[str, Path], size: int, batch: int) -> dict[str, Contestant]:
    """One call of each model on a batch of random pixels, strengths mixed."""
    rng = np.random.default_rng(0)
    feed = {
        "pixel_values": rng.integers(0, 256, (batch, size, size, 3), dtype=np.uint8),
        CLIENT_INPUT: np.ones(batch, np.int64),
        STRENGTH_INPUT: rng.uniform(0, 1.5, batch).astype(np.float32),
    }
    found: dict[str, Contestant] = {}
    for name, file in files.items():
        session = open_tuned(file, "cpu", THREADS)
        own = {node.name: feed[node.name] for node in session.get_inputs()}
        found[name] = partial(session.run, None, own), batch
    return found


def measure(given: argparse.Namespace) -> Iterator[Row]:
    """Two rows for each backbone, method and batch size."""
    for name in given.backbone.split(","):
        backbone = load_backbone(name, RANDOM)
        for method in METHODS:
            with tempfile.TemporaryDirectory() as folder:
                files = export_both(backbone, method, Path(folder))
                for batch in map(int, given.batch_sizes.split(",")):
                    calls = contestants(files, backbone.image_size, batch)
                    windows = run_rounds(
                        calls, given.rounds, given.seconds, clock=time.process_time
                    )
                    for label in files:
                        about: Row = {"name": label, "method": method}
                        row = new_row("rate", name, about, batch_size=batch)
                        row |= timed(windows, label, WITHOUT)
                        yield row | row["ratios"].get(WITHOUT, {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--backbone", default="pfedmma-tiny")
    parser.add_argument("--batch-sizes", default="1,32")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.5)
    given = parser.parse_args()
    environment = describe_environment(THREADS)
    section = make_section("", "", COLUMNS, list(measure(given)))
    print(environment_lines(environment), end="\n\n")
    for line in (section.columns, ["---"] * len(section.columns), *section.cells):
        print(f"| {' | '.join(line)} |")


if __name__ == "__main__":
    main()
