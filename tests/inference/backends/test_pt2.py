import pytest
import torch

from inference.backends.pt2 import open_backend
from tests.inference.backends.test_onnx import assert_same
from util.errors import UserError


def test_it_finds_what_pytorch_finds(exported, tiny_backend):
    backend = open_backend(exported("pt2"))
    assert backend.card == tiny_backend.card and backend.input_size(500, 300) == (64, 96)
    assert_same(backend, tiny_backend)


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
