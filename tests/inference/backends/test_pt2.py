import pytest
import torch

from inference.backends.pt2 import open_backend
from tests.inference.backends.test_onnx import IMAGES, SIZES, assert_same
from tests.inference.test_artifact import artifact
from util.errors import UserError


def test_it_finds_what_pytorch_finds(exported, tiny_backend):
    backend = open_backend(exported("pt2"))
    assert backend.card == tiny_backend.card and backend.input_size(500, 300) == (64, 96)
    assert_same(backend, tiny_backend)


@pytest.mark.slow
def test_a_file_for_any_size_and_batch_takes_one_image_but_no_sliver(exported, tiny_backend):
    backend = open_backend(exported("pt2", size=None, batch=None, sampler="gather"))
    assert_same(backend, tiny_backend)
    one = [IMAGES[0]], [SIZES[0]]
    assert len(backend.detect(*one)[0]["scores"]) == len(tiny_backend.detect(*one)[0]["scores"])
    with pytest.raises(UserError, match="no image as small or narrow as 90 x 5 px"):
        backend.detect([IMAGES[0][:, :5, :90]], [(90, 5)])


def test_another_graph_is_refused(tmp_path):
    save(tmp_path / "a.pt2", artifact().to_json())
    with pytest.raises(UserError, match="a.pt2 has no images and no orig_target_sizes: it was not written by"):
        open_backend(tmp_path / "a.pt2")


class Images(torch.nn.Module):
    def forward(self, images, orig_target_sizes):
        return images + 1


@pytest.mark.parametrize("says, dtype", [({"size": (4, 6)}, torch.uint8), ({"size": None}, torch.float32)])
def test_metadata_that_lie_about_images_are_refused(tmp_path, says, dtype):
    program = torch.export.export(Images(), (torch.zeros(1, 3, 4, 6, dtype=dtype), torch.zeros(1, 2)))
    torch.export.save(program, tmp_path / "a.pt2", extra_files={"lite_detr": artifact(**says).to_json()})
    with pytest.raises(UserError, match="a.pt2: its metadata are damaged: they say that images are"):
        open_backend(tmp_path / "a.pt2")


def save(path, text=None):
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),))
    torch.export.save(program, path, extra_files=None if text is None else {"lite_detr": text})


@pytest.mark.parametrize("text, message", [
    (None, "a.pt2 carries no metadata"), ("{", "a.pt2: its metadata are no JSON"),
    ('{"format": 99}', "a.pt2: its metadata are of format 99")])
def test_files_that_are_not_ours_are_refused(tmp_path, text, message):
    save(tmp_path / "a.pt2", text)
    with pytest.raises(UserError, match=message):
        open_backend(tmp_path / "a.pt2")


@pytest.mark.parametrize("damage", [lambda content: b"", lambda content: b"no graph",
                                    lambda content: content[:len(content) // 2]], ids=["empty", "text", "truncated"])
def test_damaged_files_are_refused(tmp_path, damage):
    save(tmp_path / "a.pt2", "{}")
    (tmp_path / "a.pt2").write_bytes(damage((tmp_path / "a.pt2").read_bytes()))
    with pytest.raises(UserError, match="a.pt2: PyTorch does not read it"):
        open_backend(tmp_path / "a.pt2")


def test_other_devices_are_an_error(tmp_path):
    with pytest.raises(UserError, match="pass cpu"):
        open_backend(tmp_path / "a.pt2", "tpu")
