import gzip
import json
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.util.states import refusal
from util.checkpoint import read_checkpoint
from util.file_kind import file_kind, is_safetensors


def script(path):
    torch.jit.trace(torch.nn.Linear(2, 1), torch.zeros(1, 2)).save(str(path))


def archive(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("model.pth", "x")


def pointer(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 190\n")


KINDS = [
    (lambda path: path.touch(), "an empty file"), (pointer, "a Git LFS pointer"),
    (lambda path: path.write_text("\n<!DOCTYPE html><html><body>404"), "a web page"),
    (script, "a TorchScript program"), (archive, "a zip archive"),
    (lambda path: np.savez(path.open("wb"), a=np.zeros(2)), "NumPy arrays"),
    (lambda path: np.save(path.open("wb"), np.zeros(2)), "a NumPy array"),
    (lambda path: path.write_bytes(gzip.compress(b"x")), "a gzip archive"),
    (lambda path: path.write_text(json.dumps({"images": []})), "a JSON text"),
    (lambda path: path.write_bytes(bytes(1000)), "filled with zeros"),
    (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n"), "an HDF5 file"),
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of torch.jit
@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
@pytest.mark.parametrize("write, kind", KINDS)
def test_what_is_no_checkpoint_is_named(tmp_path, write, kind, name):
    write(tmp_path / name)
    text = refusal(read_checkpoint, tmp_path / name)
    assert f"{name} is no checkpoint: it is {kind}" in text
    assert "weights_only" not in text and "\n" not in text
    assert file_kind(tmp_path / name).startswith(kind)


def test_safetensors_are_known_by_their_content(tmp_path):
    save_file({"w": torch.arange(3.0)}, tmp_path / "model.bin")
    torch.save({"w": torch.arange(3.0)}, tmp_path / "model.safetensors")
    assert is_safetensors(tmp_path / "model.bin") and not is_safetensors(tmp_path / "model.safetensors")
    assert read_checkpoint(tmp_path / "model.bin")["model"]["w"].tolist() == [0, 1, 2]
    assert read_checkpoint(tmp_path / "model.safetensors")["w"].tolist() == [0, 1, 2]


def test_an_unknown_start_tells_nothing(tmp_path):
    (tmp_path / "x").write_bytes(b"\x80\x02whatever")
    assert file_kind(tmp_path / "x") == ""
