"""The portable flavour outside of Python's ONNX Runtime: OpenVINO, Node.js and WebAssembly."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from pfedmma_deploy.data.class_names import build_prompts
from pfedmma_deploy.data.samples import load_sample
from pfedmma_deploy.export.bundle import ExportReport
from pfedmma_deploy.export.export_config import ExportConfig
from pfedmma_deploy.export.models import reduced_model
from pfedmma_deploy.runtime.text_tower import Tokenizer
from tests.export.sample import CLASS_NAMES, IMAGE_SIZE, PROMPT

pytest_plugins = ["tests.export.fixtures"]

MODELS = ("vision_model.onnx", "text_model.onnx", "classifier.onnx")
FORMS = {
    "fp32": ExportConfig(),
    "stored": ExportConfig(weights="fp16"),
    "int8": ExportConfig(precision="int8", weights="fp16"),
}
TOLERANCE = {
    "fp32": {"vision_model.onnx": 2e-6, "text_model.onnx": 2e-6, "classifier.onnx": 1e-4},
    "stored": {"vision_model.onnx": 2e-6, "text_model.onnx": 2e-6, "classifier.onnx": 1e-4},
    # Activations are rounded to 8 bits: a last digit may turn one over, block after block.
    "int8": {"vision_model.onnx": 5e-3, "text_model.onnx": 5e-3, "classifier.onnx": 0.1},
}
PACKAGES = ("onnxruntime-node", "onnxruntime-web")

NODE_PROGRAM = """
const fs = require("fs");
const [packageName, specification] = process.argv.slice(2);
const ort = require(packageName);
const isWeb = packageName === "onnxruntime-web";
if (isWeb) ort.env.wasm.numThreads = 1;
const kinds = { uint8: Uint8Array, int64: BigInt64Array, float32: Float32Array };
const read = (file) => new Uint8Array(fs.readFileSync(file));

async function main() {
  for (const { model, inputs, output, out } of JSON.parse(fs.readFileSync(specification))) {
    const session = await ort.InferenceSession.create(isWeb ? read(model) : model, {
      executionProviders: [isWeb ? "wasm" : "cpu"],
    });
    const feeds = {};
    for (const [name, { file, type, dims }] of Object.entries(inputs)) {
      feeds[name] = new ort.Tensor(type, new kinds[type](read(file).buffer), dims);
    }
    const found = (await session.run(feeds))[output];
    const { buffer, byteOffset, byteLength } = found.data;
    fs.writeFileSync(out, new Uint8Array(buffer, byteOffset, byteLength));
    console.log(JSON.stringify({ dims: found.dims, type: found.type }));
  }
}
main();
"""

Feeds = dict[str, NDArray[Any]]


@pytest.fixture(scope="module")
def forms(portable: ExportReport, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The portable models in every form that is meant for CPUs: form -> folder."""
    out = {"fp32": portable.bundle}
    for name in ("stored", "int8"):
        out[name] = tmp_path_factory.mktemp(name)
        for file in MODELS:
            model = reduced_model(onnx.load(portable.bundle / file), FORMS[name])
            onnx.save(model, out[name] / file)
    return out


@pytest.fixture(scope="module")
def feeds(portable: ExportReport) -> dict[str, Feeds]:
    """Photographs and class prompts, with zero-shot and both clients in each batch."""
    sample = load_sample("cifar10-sample")
    pictures = [
        sample.open_image(example).resize((IMAGE_SIZE, IMAGE_SIZE))
        for example in sample.examples[::500][:7]
    ]
    pixels = np.stack([np.asarray(picture, np.uint8) for picture in pictures])
    tokens = Tokenizer(portable.bundle / "tokenizer.json", 77)(build_prompts(CLASS_NAMES, PROMPT))

    def clients(count: int) -> NDArray[np.int64]:
        return np.arange(count, dtype=np.int64) % 3

    def strengths(count: int) -> NDArray[np.float32]:
        return np.linspace(1.5, 0, count, dtype=np.float32)

    image: Feeds = {
        "pixel_values": pixels,
        "client": clients(len(pixels)),
        "strength": strengths(len(pixels)),
    }
    text: Feeds = {
        "input_ids": tokens,
        "client": clients(len(tokens)),
        "strength": strengths(len(tokens)),
    }
    return {"vision_model.onnx": image, "text_model.onnx": text, "classifier.onnx": image}


def expected(file: Path, feed: Feeds) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    found: NDArray[np.float32] = session.run(None, feed)[0]
    return found


def require_equal(form: str, file: Path, feed: Feeds, found: NDArray[np.float32]) -> None:
    wanted = expected(file, feed)
    assert found.shape == wanted.shape
    difference = float(np.abs(found - wanted).max())
    print(f"{form} {file.name}: largest difference {difference:.1e}")
    assert difference < TOLERANCE[form][file.name]
    if file.name == "classifier.onnx":
        assert (found.argmax(-1) == wanted.argmax(-1)).all()


def test_old_runtimes_can_read_the_files(forms: Mapping[str, Path]) -> None:
    """Opset 18 in its oldest file version: ONNX Runtime 1.14 and OpenVINO 2023.0 of early 2023."""
    for folder in forms.values():
        for name in MODELS:
            model = onnx.load(folder / name)
            assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
            assert model.ir_version == 8


def test_onnx_runtime_fuses_the_gelu(portable: ExportReport, tmp_path: Path) -> None:
    """Spelled out for reach, and one operator again once it is loaded."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3  # it warns that the file is for this machine
    file = str(portable.bundle / "vision_model.onnx")
    onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds.count("BiasGelu") == 3 and "Erf" not in kinds


@pytest.mark.parametrize("form", FORMS)
def test_openvino(form: str, forms: Mapping[str, Path], feeds: Mapping[str, Feeds]) -> None:
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()
    for name in MODELS:
        # Its default is bfloat16 where the CPU has it, with an error of 2e-3.
        options = {"INFERENCE_PRECISION_HINT": "f32"}
        model = core.compile_model(str(forms[form] / name), "CPU", options)
        require_equal(form, forms[form] / name, feeds[name], model(feeds[name])[0])


def test_openvino_by_its_defaults(portable: ExportReport, feeds: Mapping[str, Feeds]) -> None:
    """bfloat16 where the CPU has it: reduced precision, the same end tokens and answers."""
    core = pytest.importorskip("openvino").Core()
    for name in MODELS:
        file = portable.bundle / name
        found = core.compile_model(str(file), "CPU")(feeds[name])[0]
        wanted = expected(file, feeds[name])
        assert np.abs(found - wanted).max() < 0.02 * np.abs(wanted).max()


@pytest.fixture(scope="module")
def node_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both npm packages, CPU only; skips, with the reason, where there are none."""
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        pytest.skip("NOT CHECKED in Node.js and WebAssembly: node and npm are not installed")
    folder = tmp_path_factory.mktemp("node")
    (folder / "package.json").write_text('{"private": true}')
    (folder / "run.cjs").write_text(NODE_PROGRAM)
    # Their installation script would fetch CUDA libraries.
    command = [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", *PACKAGES]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:]
        pytest.skip(f"NOT CHECKED in Node.js and WebAssembly: npm cannot install them: {last}")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("package", PACKAGES)
def test_node(
    package: str,
    form: str,
    forms: Mapping[str, Path],
    feeds: Mapping[str, Feeds],
    node_project: Path,
    tmp_path: Path,
) -> None:
    """`onnxruntime-web` is what browsers load; here its WebAssembly runs in Node.js."""
    specification = []
    for name in MODELS:
        inputs = {}
        for key, values in feeds[name].items():
            file = tmp_path / f"{name}.{key}"
            values.tofile(file)
            inputs[key] = {
                "file": str(file),
                "type": values.dtype.name,
                "dims": list(values.shape),
            }
        model = forms[form] / name
        output = onnx.load(model).graph.output[0].name
        out = str(tmp_path / f"{name}.out")
        specification.append({"model": str(model), "inputs": inputs, "output": output, "out": out})
    (tmp_path / "specification.json").write_text(json.dumps(specification))
    done = subprocess.run(
        ["node", "run.cjs", package, str(tmp_path / "specification.json")],
        cwd=node_project,
        env={**os.environ, "NODE_NO_WARNINGS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(MODELS)
    for name, answer in zip(MODELS, answers, strict=True):
        assert answer["type"] == "float32"
        found = np.fromfile(tmp_path / f"{name}.out", np.float32).reshape(answer["dims"])
        require_equal(form, forms[form] / name, feeds[name], found)
