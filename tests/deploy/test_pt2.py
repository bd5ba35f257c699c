import pytest
import torch

from deploy.graph import DetectionGraph
from deploy.pt2 import outputs, write
from inference.artifact import Artifact
from models.ops import native_available
from tests.deploy.test_verify import compared
from tests.inference.test_artifact import artifact
from util.errors import UserError

IMAGES = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(5))
SIZES = torch.tensor([[960, 640]])


def as_rows(outputs):
    labels, boxes, scores = (x[0] for x in outputs)
    return {"labels": labels, "boxes": boxes, "scores": scores}


def assert_same(found, expected):
    result = compared(as_rows(found), as_rows(expected), 960)
    assert result.compared > 0 == result.only_one
    assert result.score < 1e-4 and result.box < 1e-3
    torch.testing.assert_close(found[2].sort().values, expected[2].sort().values, rtol=0, atol=1e-5)


def run(path, images=IMAGES, sizes=SIZES):
    with torch.no_grad():
        return torch.export.load(path).module()(images, sizes)


def expected(backend, images=IMAGES, sizes=SIZES):
    with torch.no_grad():
        return DetectionGraph(backend.model, backend.postprocess)(images, sizes)


def test_the_file_is_the_graph_and_carries_its_artifact(exported, tiny_backend):
    path = exported("pt2")
    assert_same(run(path), expected(tiny_backend))
    extra = {"lite_detr": ""}
    torch.export.load(path, extra_files=extra)
    found = Artifact.from_json(extra["lite_detr"], "")
    assert found.card == tiny_backend.card and found.size == (64, 96) and found.sampler == "grid_sample"


@pytest.mark.slow
@pytest.mark.skipif(not native_available("cpu"), reason="the operators are not built")
def test_the_compiled_operators_are_nodes(exported, tiny_backend):
    path = exported("pt2", sampler="native")
    targets = {str(node.target) for node in torch.export.load(path).graph.nodes}
    assert "deform_attn.key_aware_deform_attn.default" in targets
    assert_same(run(path), expected(tiny_backend))


@pytest.mark.slow
def test_a_file_for_any_size_and_batch(exported, tiny_backend):
    """In the gather form; that of ONNX has the other."""
    images = torch.rand(3, 3, 75, 110)
    sizes = torch.tensor([[110, 75], [220, 150], [960, 640]])
    found = run(exported("pt2", size=None, batch=None, sampler="gather"), images, sizes)
    for place, wanted in enumerate(zip(*expected(tiny_backend, images, sizes))):
        assert_same([x[place:place + 1] for x in found], [x[None] for x in wanted])


def test_it_writes_one_file(tmp_path):
    assert outputs(tmp_path / "a.pt2") == [tmp_path / "a.pt2"]


def test_a_folder_that_is_not_there_is_an_error_and_leaves_nothing(tiny_backend, tmp_path, monkeypatch):
    monkeypatch.setattr("deploy.pt2.trace", lambda graph, artifact: torch.export.export(torch.nn.Identity(), (IMAGES,)))
    graph = DetectionGraph(tiny_backend.model, tiny_backend.postprocess)
    with pytest.raises(UserError, match="there is no folder"):
        write(graph, artifact(), tmp_path / "gone" / "a.pt2")
    assert list(tmp_path.iterdir()) == []
