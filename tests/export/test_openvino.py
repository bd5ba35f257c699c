"""Exported files of OpenVINO against the graph that they were made from."""
import importlib.util
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.transforms import eval_limits
from export.graph import DetectionGraph
from export.openvino import float32_nodes, write
from inference.artifact import Artifact
from inference.backends.openvino import new_core, open_backend, read_model
from models import build_detector
from models.ops import openvino_nodes
from util.errors import UserError
from util.model_card import ModelCard
from util.options import parse_options

ROOT = Path(__file__).resolve().parents[2]
SIZE = (96, 128)

needs_packages = pytest.mark.skipif(not all(map(importlib.util.find_spec, ("openvino", "onnx", "onnxscript"))),
                                    reason="needs openvino, onnx and onnxscript")
SAMPLERS = ["gather", pytest.param("native", marks=pytest.mark.skipif(
    not openvino_nodes.available(), reason=f"not built: {openvino_nodes.BUILD_COMMAND}"))]


def detector(tiny_dino, sampler="gather", dtype="float32", **options):
    """A graph with random weights, and what its file says."""
    torch.manual_seed(0)
    parsed = parse_options(tiny_dino(**options))
    model, _, postprocessors = build_detector(parsed)
    for name, parameter in model.named_parameters():  # fresh heads say the same of every query
        if "_embed" in name and parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    artifact = Artifact(ModelCard(parsed.to_dict(), {1: "cell"}), SIZE, 1, False, dtype, sampler,
                        *eval_limits(parsed.data))
    return DetectionGraph(model.eval(), postprocessors["bbox"]), artifact


def images(count=3):
    generator = torch.Generator().manual_seed(1)
    return [(torch.rand(1, 3, *SIZE, generator=generator), torch.tensor([[200, 150]])) for _ in range(count)]


def differences(graph, path):
    """The largest of scores and of boxes in px, over the detections that both have in one place."""
    core = new_core()
    _, model = read_model(core, path)
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
    worst = torch.zeros(2)
    for inputs in images():
        expected = graph(*inputs)
        labels, boxes, scores = (torch.from_numpy(x.copy()) for x in compiled([x.numpy() for x in inputs]).values())
        worst[0] = max(worst[0], (scores - expected[2]).abs().max())
        same = labels == expected[0]
        assert same.float().mean() > 0.9
        near = (boxes - expected[1]).abs()[same].amax(-1)
        worst[1] = max(worst[1], near.median())  # a tie may change the order
    return worst.tolist()


@needs_packages
@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_file_gives_what_the_graph_gives(tiny_dino, tmp_path, sampler):
    """In float32, and from the same program with weights in float16, half as large."""
    graph, artifact = detector(tiny_dino, sampler)
    full, half = tmp_path / "full.xml", tmp_path / "half.xml"
    assert write(graph, artifact, full) == [full, full.with_suffix('.bin')]
    write(graph, replace(artifact, dtype="float16"), half)
    score, box = differences(graph, full)
    assert score < 1e-4 and box < 1e-2
    score, box = differences(graph, half)
    assert score < 1e-2 and box < 1
    assert half.with_suffix(".bin").stat().st_size < 0.6 * full.with_suffix(".bin").stat().st_size
    assert ("KeyAwareDeformAttn" in full.read_text(encoding="utf-8")) == (sampler == "native")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full.bin", "full.xml", "half.bin", "half.xml"]
    assert read_model(new_core(), full)[0] == artifact
    kept = float32_nodes(read_model(new_core(), full)[1])
    assert len(kept) >= 2 * 2 + 3  # two encoder and two decoder layers, and the heads


@needs_packages
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("nncf") is None, reason="needs nncf")
def test_int8_quantizes_all_but_what_becomes_coordinates_and_scores(tiny_dino, tmp_path):
    graph, artifact = detector(tiny_dino, dtype="int8", enc_layers=1, num_expansion=1, dec_layers=1)
    path = tmp_path / "m.xml"
    write(graph, artifact, path, images())
    model = read_model(new_core(), path)[1]
    kept = set(float32_nodes(model))
    quantized = {node.get_friendly_name(): any(has_fake_quantize(value) for value in node.input_values())
                 for node in model.get_ops() if node.get_type_name() in ("MatMul", "Convolution")}
    assert kept and not any(quantized[name] for name in kept)
    assert sum(quantized.values()) > 20
    score, box = differences(graph, path)
    assert score < 0.1 and box < 20


def has_fake_quantize(value):
    node = value.get_node()
    while node.get_type_name() in ("Reshape", "Transpose", "Convert"):
        node = node.input_value(0).get_node()
    return node.get_type_name() == "FakeQuantize"


@needs_packages
def test_without_the_compiled_operators_the_file_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(openvino_nodes, "LIBRARY", tmp_path / "none.so")
    artifact = Artifact(ModelCard({"modelname": "dino", "num_classes": 2}, {}), None, None, False, "float32", "native",
                        8, 9)
    with pytest.raises(UserError, match="not built: make operators-openvino"):
        write(None, artifact, tmp_path / "m.xml")


@needs_packages
@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("cmake") and shutil.which("c++")), reason="needs cmake and a C++ compiler")
def test_the_example_in_cpp_finds_what_the_backend_finds(tiny_dino, tmp_path):
    from openvino.utils import get_cmake_path

    text = (ROOT / "docs/deployment.md").read_text(encoding="utf-8")
    for language, name in (("cpp", "detect.cpp"), ("cmake", "CMakeLists.txt")):
        block, = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
        (tmp_path / name).write_text(block, encoding="utf-8")
    build = tmp_path / "build"
    for command in (["cmake", "-S", tmp_path, "-B", build, f"-DOpenVINO_DIR={get_cmake_path()}"],
                    ["cmake", "--build", build]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
    graph, artifact = detector(tiny_dino)
    write(graph, artifact, tmp_path / "m.xml")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8))
    picture.save(tmp_path / "image.ppm")
    command = [build / "detect", tmp_path / "m.xml", tmp_path / "image.ppm"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    rows = np.array([line.split() for line in done.stdout.splitlines()], float)
    pixels = torch.from_numpy(np.asarray(picture)).permute(2, 0, 1).contiguous()
    found, = open_backend(tmp_path / "m.xml").detect([pixels], [picture.size])
    above = found["scores"] > 0.3
    assert len(rows) == above.sum() > 0
    np.testing.assert_allclose(rows[:, 1], found["scores"][above], atol=1e-3)
    assert subprocess.run([*command[:2], tmp_path / "none.ppm"], capture_output=True, timeout=60).returncode == 1
