"""Exported files of OpenVINO against the graph that they were made from."""
import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.transforms import eval_limits
from deploy.graph import DetectionGraph
from deploy.int8 import float32_nodes, quantize
from deploy.openvino import save, write
from inference.artifact import KEY, Artifact
from inference.backends.openvino import open_backend, read_model
from models import build_detector
from models.ops import native_available, openvino_nodes
from util.errors import UserError
from util.model_card import ModelCard
from util.options import parse_options

ROOT = Path(__file__).resolve().parents[2]
SIZE = (96, 128)

needs_packages = pytest.mark.skipif(not all(map(importlib.util.find_spec, ("openvino", "onnx", "onnxscript"))),
                                    reason="needs openvino, onnx and onnxscript")
SAMPLER = "native" if openvino_nodes.available() and native_available("cpu") else "gather"


@pytest.fixture(scope="module")
def exported(tiny_dino, tmp_path_factory):
    """A graph with random weights, what its file says, and the file in float32: tracing takes most of the time."""
    torch.manual_seed(0)
    options = parse_options(tiny_dino(enc_layers=1, dec_layers=1))
    model, _, postprocessors = build_detector(options)
    for name, parameter in model.named_parameters():  # fresh heads say the same of every query
        if "_embed" in name and parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    artifact = Artifact(ModelCard(options.to_dict(), {1: "cell"}), SIZE, 1, False, "float32", SAMPLER,
                        *eval_limits(options.data))
    graph = DetectionGraph(model.eval(), postprocessors["bbox"])
    path = tmp_path_factory.mktemp("openvino") / "full.xml"
    assert write(graph, artifact, path) == [path, path.with_suffix(".bin")]
    return graph, artifact, path


def images(count=3):
    generator = torch.Generator().manual_seed(1)
    return [(torch.rand(1, 3, *SIZE, generator=generator), torch.tensor([[200, 150]])) for _ in range(count)]


def differences(graph, path):
    """Of scores, all of them, and of boxes in px where both have one label in one place."""
    core = openvino_nodes.shared_core()
    _, model = read_model(core, path)
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
    of_scores, of_boxes = [], []
    for inputs in images():
        expected = graph(*inputs)
        labels, boxes, scores = (torch.from_numpy(x.copy()) for x in compiled([x.numpy() for x in inputs]).values())
        of_scores.append((scores - expected[2]).abs().flatten())
        of_boxes.append((boxes - expected[1]).abs()[labels == expected[0]].flatten())
    return torch.cat(of_scores), torch.cat(of_boxes)


@needs_packages
@pytest.mark.slow
def test_a_file_gives_what_the_graph_gives(exported):
    graph, artifact, path = exported
    scores, boxes = differences(graph, path)
    assert scores.max() < 1e-4 and boxes.median() < 1e-2  # boxes of equal scores change places
    assert read_model(openvino_nodes.shared_core(), path)[0] == artifact
    assert ('type="KeyAwareDeformAttn"' in path.read_text(encoding="utf-8")) == (SAMPLER == "native")
    assert sorted(file.name for file in path.parent.iterdir()) == ["full.bin", "full.xml"]


@needs_packages
@pytest.mark.parametrize("replaced", [0, 1])
def test_a_crash_while_files_are_replaced_leaves_no_pair_of_two_models(tmp_path, monkeypatch, replaced):
    import openvino

    path = tmp_path / "m.xml"
    for suffix in (".xml", ".bin"):
        path.with_suffix(suffix).write_text("earlier")
    monkeypatch.setattr(openvino, "save_model", lambda model, path, compress_to_fp16: [
        path.with_suffix(suffix).write_text("new") for suffix in (".xml", ".bin")])
    done, replace = [], os.replace

    def crashing(source, target):
        if len(done) == replaced:
            raise KeyboardInterrupt
        done.append(replace(source, target))

    monkeypatch.setattr(os, "replace", crashing)
    with pytest.raises(KeyboardInterrupt):
        save(None, path, float16=False)
    assert not path.exists()
    assert path.with_suffix(".bin").read_text() == ("new" if replaced else "earlier")
    monkeypatch.setattr(os, "replace", replace)
    save(None, path, float16=False)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"m.xml": "new", "m.bin": "new"}


@needs_packages
@pytest.mark.slow
def test_float16_is_half_as_large(exported, tmp_path):
    graph, _, full = exported
    save(read_model(openvino_nodes.shared_core(), full)[1], tmp_path / "half.xml", float16=True)
    scores, _ = differences(graph, tmp_path / "half.xml")
    assert scores.median() < 1e-2  # with random weights the last of the selected queries change
    assert (tmp_path / "half.bin").stat().st_size < 0.6 * full.with_suffix(".bin").stat().st_size


@needs_packages
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("nncf") is None, reason="needs nncf")
def test_int8_quantizes_all_but_what_becomes_coordinates_and_scores(exported, tmp_path):
    graph, artifact, full = exported
    model = quantize(read_model(openvino_nodes.shared_core(), full)[1], images())
    kept = set(float32_nodes(model))
    quantized = {node.get_friendly_name(): any(has_fake_quantize(value) for value in node.input_values())
                 for node in model.get_ops() if node.get_type_name() in ("MatMul", "Convolution")}
    assert len(kept) >= 2 + 3  # a layer each of encoder and decoder, and the heads
    assert not any(quantized[name] for name in kept)
    assert sum(quantized.values()) > 20
    model.set_rt_info(artifact.to_json(), KEY)
    save(model, tmp_path / "m.xml", float16=False)
    scores, _ = differences(graph, tmp_path / "m.xml")
    assert scores.median() < 0.05


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
def test_the_example_in_cpp_finds_what_the_backend_finds(exported, tmp_path):
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
    path = exported[2]
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8))
    picture.save(tmp_path / "image.ppm")
    nodes = [openvino_nodes.LIBRARY] if SAMPLER == "native" else []
    command = [build / "detect", path, tmp_path / "image.ppm", *nodes]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    rows = np.array([line.split() for line in done.stdout.splitlines()], float)
    pixels = torch.from_numpy(np.asarray(picture)).permute(2, 0, 1).contiguous()
    found, = open_backend(path).detect([pixels], [picture.size])
    above = found["scores"] > 0.3
    assert len(rows) == above.sum() > 0
    np.testing.assert_allclose(rows[:, 1], found["scores"][above], atol=1e-3)
    command[2] = tmp_path / "none.ppm"
    assert subprocess.run(command, capture_output=True, timeout=60).returncode == 1
