import pytest
import torch

from inference.artifact import KEY
from inference.backends.onnx import open_backend
from tests.deploy.test_verify import compared
from tests.inference.test_artifact import artifact
from util.errors import UserError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

GENERATOR = torch.Generator().manual_seed(7)
IMAGES = [torch.randint(0, 256, (3, 64, 96), generator=GENERATOR, dtype=torch.uint8) for _ in range(3)]
SIZES = [(96, 64), (960, 640), (300, 200)]


def assert_same(backend, tiny_backend):
    """As PyTorch finds it, with NMS, in images of one file and in several calls."""
    for found, wanted, size in zip(backend.detect(IMAGES, SIZES), tiny_backend.detect(IMAGES, SIZES), SIZES):
        assert (found["scores"].diff() <= 0).all()
        result = compared(found, wanted, max(size))
        assert result.compared > 0 == result.only_one
        assert result.score < 1e-4 and result.box < 1e-3 and len(found["scores"]) == len(wanted["scores"])


@pytest.mark.slow
def test_it_finds_what_pytorch_finds(exported, tiny_backend):
    backend = open_backend(exported("onnx", sampler="gather"))
    assert backend.card == tiny_backend.card and backend.input_size(500, 300) == (64, 96)
    assert_same(backend, tiny_backend)


def damaged(exported, tmp_path, change):
    model = onnx.load(exported("onnx", sampler="gather"))
    change(model)
    onnx.save(model, tmp_path / "a.onnx")
    return tmp_path / "a.onnx"


def set_metadata(text):
    return lambda model: onnx.helper.set_model_props(model, {KEY: text})


def rename_output(model):
    names = {"boxes": "corners"}
    for node in model.graph.node:
        node.output[:] = [names.get(name, name) for name in node.output]
    for output in model.graph.output:
        output.name = names.get(output.name, output.name)


@pytest.mark.slow
@pytest.mark.parametrize("change, message", [
    (lambda model: model.ClearField("metadata_props"), "a.onnx carries no metadata under 'lite_detr'"),
    (set_metadata("{"), "a.onnx: its metadata are no JSON"),
    (set_metadata('{"format": 99}'), "a.onnx: its metadata are of format 99"),
    (rename_output, "a.onnx has no boxes: it was not written by tools/export.py"),
], ids=["none", "broken", "other version", "other graph"])
def test_files_that_are_not_ours_are_refused(exported, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        open_backend(damaged(exported, tmp_path, change))


@pytest.mark.parametrize("content", [b"", b"no graph", b"PK\x03\x04"])
def test_what_is_no_onnx_file_is_refused(tmp_path, content):
    (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(UserError, match="a.onnx: ONNX Runtime does not run it"):
        open_backend(tmp_path / "a.onnx")


@pytest.mark.slow
def test_a_truncated_file_is_refused(exported, tmp_path):
    content = exported("onnx", sampler="gather").read_bytes()
    (tmp_path / "a.onnx").write_bytes(content[:len(content) // 2])
    with pytest.raises(UserError, match="a.onnx: ONNX Runtime does not run it"):
        open_backend(tmp_path / "a.onnx")


def identity(path, how, kind=onnx.TensorProto.FLOAT, shape=(1, 3, "h", "w")):
    """A file of ours, but for its graph, which detects nothing."""
    helper = onnx.helper
    inputs = [helper.make_tensor_value_info("images", kind, shape),
              helper.make_tensor_value_info("orig_target_sizes", onnx.TensorProto.INT64, [1, 2])]
    nodes = [helper.make_node("Identity", ["orig_target_sizes"], [name]) for name in ("labels", "boxes", "scores")]
    outputs = [helper.make_tensor_value_info(name, onnx.TensorProto.INT64, [1, 2])
               for name in ("labels", "boxes", "scores")]
    model = helper.make_model(helper.make_graph(nodes, "g", inputs, outputs), ir_version=10,
                              opset_imports=[helper.make_opsetid("", 18)])
    helper.set_model_props(model, {KEY: how.to_json()})
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("says, is_so", [
    ({"uint8": True}, {}), ({}, {"kind": onnx.TensorProto.UINT8}), ({"batch": 1 << 16}, {}),
    ({"batch": None}, {}), ({"size": (4, 6)}, {}), ({}, {"shape": (1, 3, 4, 6)})])
def test_metadata_that_lie_about_images_are_refused(tmp_path, says, is_so):
    with pytest.raises(UserError, match="a.onnx: its metadata are damaged: they say that images are"):
        open_backend(identity(tmp_path / "a.onnx", artifact(**says), **is_so))
    open_backend(identity(tmp_path / "b.onnx", artifact()))


def test_a_gpu_that_onnx_runtime_cannot_use_is_an_error(tmp_path, monkeypatch):
    """It would run on the CPU without a word."""
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime-gpu is installed")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.raises(UserError, match="a.onnx: ONNX Runtime cannot use cuda here"):
        open_backend(identity(tmp_path / "a.onnx", artifact()), "cuda")


def test_a_device_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(UserError, match="ONNX Runtime does not run on tpu"):
        open_backend(tmp_path / "a.onnx", "tpu")
