"""What a bundle knows of its clients' certainty, in files of its own and in `classifier.onnx`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pfedmma_deploy.calibration import MEAN_WEIGHT, ClientCalibration
from pfedmma_deploy.errors import ExportError
from pfedmma_deploy.export.banks import CLIENT_INPUT
from pfedmma_deploy.export.publish import write_features
from pfedmma_deploy.runtime.bundle import GENERAL_EMBEDS, MEAN_EMBEDS

Features = NDArray[np.float32]
NOTHING_REJECTED = -1e30
"""A threshold that every score passes; infinity would not survive all runtimes."""
DEFAULTS = ("temperature", "threshold")
"""Banks of the classifier that whoever calls it may replace."""


@dataclass(frozen=True)
class Calibrations:
    """The calibrations of a bundle's clients, and the words that compete with its classes."""

    words: tuple[str, ...]
    general: Features
    """Their zero-shot text features, [W, D], L2-normalised."""
    clients: tuple[ClientCalibration | None, ...]
    """By client index, zero-shot first; at least one of them is there."""

    def means(self) -> Features:
        """Directions of the mean images, [clients, D]; zeros where there is no calibration."""
        return np.stack([client_rows(one, self.general.shape[1])["mean"] for one in self.clients])

    def write(self, folder: Path) -> None:
        """Write both files of features to a bundle's folder."""
        write_features(folder / GENERAL_EMBEDS, self.general)
        write_features(folder / MEAN_EMBEDS, self.means())

    def banks(self) -> dict[str, Features]:
        """What a classifier gathers by client: `temperature` and `threshold` [clients], `mean`."""
        rows = [client_rows(one, self.general.shape[1]) for one in self.clients]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def client_rows(found: ClientCalibration | None, dim: int) -> dict[str, Features]:
    """A client's row of every bank; without a calibration one that changes and rejects nothing.

    Raises:
        ExportError: the mean image is of another model.
    """
    if found is None:
        limit, temperature, mean = NOTHING_REJECTED, 1.0, np.zeros(dim)
    else:
        threshold = found.calibration.threshold()
        limit = NOTHING_REJECTED if threshold is None else threshold
        temperature, mean = found.calibration.temperature, found.mean
    if mean.shape != (dim,):
        raise ExportError(
            f"A client's mean image has {mean.size} numbers, the model's features {dim}: "
            "personalize the client again, which fits its calibration anew."
        )
    values = {"temperature": temperature, "threshold": limit, "mean": mean}
    return {name: np.asarray(value, np.float32) for name, value in values.items()}


def add_certainty(model: onnx.ModelProto, found: Calibrations, logit_scale: float) -> None:
    """Put the clients' certainty into a finished fp32 classifier.

    Class scores are divided by the client's temperature, and there are two more outputs: `known`
    [B], the score of `pfedmma_deploy.calibration`, and `unknown` bool [B], whether it lies below
    the client's threshold. `temperature` and `threshold`, [clients] each, become inputs that have
    defaults. This happens behind the fusion, which knows the graph as it was.

    Args:
        model: `classifier.onnx`.
        found: of its clients.
        logit_scale: factor on the cosines.
    """
    graph = model.graph
    features, (logits, *_) = _features(graph), graph.output
    # What the graph called by the output's name until now.
    raw = "logits.raw"
    for node in graph.node:
        node.output[:] = [raw if name == logits.name else name for name in node.output]
    tables = {**found.banks(), "general": logit_scale * found.general.T}
    tables |= {"closeness": np.array([MEAN_WEIGHT * logit_scale], np.float32)}
    for name, values in tables.items():
        graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "axis"))
    graph.node.extend(
        [
            _node("Gather", ["temperature", CLIENT_INPUT], "temperature.own"),
            _node("Unsqueeze", ["temperature.own", "axis"], "temperature.column"),
            _node("Div", [raw, "temperature.column"], logits.name),
            _node("ReduceLogSumExp", [raw, "axis"], "known.classes", keepdims=0),
            _node("MatMul", [features, "general"], "known.words"),
            _node("ReduceLogSumExp", ["known.words", "axis"], "known.general", keepdims=0),
            _node("Sub", ["known.classes", "known.general"], "known.names"),
            _node("Gather", ["mean", CLIENT_INPUT], "mean.own"),
            _node("Mul", [features, "mean.own"], "mean.products"),
            _node("ReduceSum", ["mean.products", "axis"], "mean.cosine", keepdims=0),
            _node("Mul", ["mean.cosine", "closeness"], "mean.closeness"),
            _node("Add", ["known.names", "mean.closeness"], "known"),
            _node("Gather", ["threshold", CLIENT_INPUT], "threshold.own"),
            _node("Less", ["known", "threshold.own"], "unknown"),
        ]
    )
    batch = logits.type.tensor_type.shape.dim[0].dim_param
    for name, kind in (("known", TensorProto.FLOAT), ("unknown", TensorProto.BOOL)):
        graph.output.append(helper.make_tensor_value_info(name, kind, [batch]))
    for name in DEFAULTS:
        shape = list(tables[name].shape)
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))


def _node(kind: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, [output], **attributes)


def _features(graph: onnx.GraphProto) -> str:
    """The value that holds the image features: what is multiplied with the texts at the end."""
    made_by = {name: node for node in graph.node for name in node.output}
    node = made_by[graph.output[0].name]
    while node.op_type != "Unsqueeze":
        if node.op_type not in {"Squeeze", "MatMul"} or node.input[0] not in made_by:
            raise ExportError(
                f"The classifier ends in {node.op_type}, expected the product of features and "
                "texts: torch 2.15 exports it so; please report this with the version installed."
            )
        node = made_by[node.input[0]]
    return str(node.input[0])
