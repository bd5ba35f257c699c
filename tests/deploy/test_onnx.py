import json

import pytest
import torch

from deploy.graph import DetectionGraph
from deploy.onnx import DTYPES, outputs, write
from tests.deploy import test_graph
from tests.deploy.test_pt2 import IMAGES, SIZES, assert_same, expected
from tests.inference.test_artifact import artifact

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def run(path, images=IMAGES, sizes=SIZES):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(["labels", "boxes", "scores"], {"images": images.numpy(), "orig_target_sizes": sizes.numpy()})
    return [torch.from_numpy(x) for x in found]


def nodes(path):
    return [node.op_type for node in onnx.load(path).graph.node]


@pytest.fixture(scope="session")
def gathered(exported):
    return exported("onnx", sampler="gather")


@pytest.mark.slow
def test_the_file_is_the_graph_and_carries_its_artifact(exported, tiny_backend):
    path = exported("onnx")
    assert_same(run(path), expected(tiny_backend))
    (entry,) = [entry for entry in onnx.load(path).metadata_props if entry.key == "lite_detr"]
    assert json.loads(entry.value)["artifact"]["size"] == [64, 96]
    assert "GridSample" in nodes(path) and "LayerNormalization" in nodes(path)
    assert "ReduceMean" not in nodes(path)


@pytest.mark.slow
def test_the_gather_form_has_standard_operators_only(gathered, tiny_backend):
    assert_same(run(gathered), expected(tiny_backend))
    assert "GridSample" not in nodes(gathered)
    assert {entry.domain for entry in onnx.load(gathered).opset_import if entry.domain} <= {"pkg.onnxscript.torch_lib"}
    onnx.checker.check_model(gathered)


@pytest.mark.slow
def test_a_file_for_any_size_and_batch(exported, tiny_backend):
    images = torch.rand(3, 3, 75, 110)
    sizes = torch.tensor([[110, 75], [220, 150], [960, 640]])
    found = run(exported("onnx", size=None, batch=None), images, sizes)
    for place, wanted in enumerate(zip(*expected(tiny_backend, images, sizes))):
        assert_same([x[place:place + 1] for x in found], [x[None] for x in wanted])


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.parametrize("name", ["detr", "sdetr", "lite_sdetr", "deformable_detr", "h_detr", "dino"])
def test_every_detector(tiny_dino, tiny_sdetr, tmp_path, name):
    model, postprocess = test_graph.build(test_graph.CONFIGS[name](tiny_dino, tiny_sdetr))
    images = test_graph.IMAGES
    how = artifact(size=tuple(images.shape[-2:]), batch=len(images), sampler="grid_sample", uint8=False)
    (path,) = write(DetectionGraph(model, postprocess), how, tmp_path / "a.onnx")
    test_graph.assert_same(lambda *inputs: run(path, *inputs), test_graph.detections(model, postprocess))


@pytest.mark.slow
def test_half_precision_has_half_the_size_and_nearly_the_same_scores(exported, tiny_backend):
    path, whole = exported("onnx", dtype="float16"), exported("onnx")
    assert path.stat().st_size < 0.65 * whole.stat().st_size
    found, wanted = run(path)[2], expected(tiny_backend)[2]
    torch.testing.assert_close(found.sort().values, wanted.sort().values, rtol=0, atol=0.03)


def test_what_onnx_runtime_cannot_run_is_not_written():
    assert "bfloat16" not in DTYPES and "int8" not in DTYPES


def test_it_writes_one_file(tmp_path):
    assert outputs(tmp_path / "a.onnx") == [tmp_path / "a.onnx"]
