import os

import pytest

from util.errors import UserError
from util.outputs import keep_inputs, name_of_weights


@pytest.fixture
def picture(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "in/a.png").write_bytes(b"a")
    return tmp_path / "in/a.png"


def same(picture):
    return picture


def respelled(picture):
    return picture.parent / ".." / "in" / "." / "a.png"


def relative(picture):
    return os.path.relpath(picture)


def hard_link(picture):
    os.link(picture, picture.parent.parent / "out/a.png")
    return picture.parent.parent / "out/a.png"


def link(picture):
    (picture.parent.parent / "out/a.png").symlink_to(picture)
    return picture.parent.parent / "out/a.png"


def linked_folder(picture):
    (picture.parent.parent / "linked").symlink_to(picture.parent)
    return picture.parent.parent / "linked/a.png"


@pytest.mark.parametrize("name", [same, respelled, relative, hard_link, link, linked_folder])
def test_an_input_is_recognised_under_any_name(picture, name):
    output = name(picture)
    with pytest.raises(UserError, match="would be written over the input .*a.png"):
        keep_inputs(["elsewhere.png", output], [None, "https://example.org/a.pth", "absent.pth", picture])
    keep_inputs([output], [])


@pytest.mark.parametrize("name", ["in", "in/new/deep/a.png", "out/../in/b.png", "linked/b.png"])
def test_nothing_is_written_into_an_input_folder(picture, tmp_path, name):
    (tmp_path / "linked").symlink_to(tmp_path / "in")
    with pytest.raises(UserError, match="the input .*in: choose another place"):
        keep_inputs([tmp_path / name], [tmp_path / "in"])
    keep_inputs([tmp_path / "out/b.png", tmp_path], [tmp_path / "in"])


def test_new_files_and_those_of_an_earlier_run_may_be_written(picture, tmp_path):
    (tmp_path / "out/a.png").write_bytes(b"of an earlier run")
    keep_inputs([tmp_path / "out/a.png", tmp_path / "out/b.png", tmp_path / "new/a.png"], [picture])
    assert (tmp_path / "out/a.png").read_bytes() == b"of an earlier run" and not (tmp_path / "new").exists()


@pytest.mark.parametrize("one, other", [("a.png", "a.png"), ("a.png", "A.PNG"), ("caf\u00e9.png", "cafe\u0301.png")])
def test_two_outputs_of_one_name_are_refused(tmp_path, one, other):
    with pytest.raises(UserError, match="would be one file"):
        keep_inputs([tmp_path / one, tmp_path / "new" / ".." / other], [])
    keep_inputs([tmp_path / one, tmp_path / "new" / other], [])


@pytest.mark.parametrize("source, name", [
    ("outputs/a/checkpoint_best.pth", "a_checkpoint_best"), ("outputs/b/checkpoint_best.pth", "b_checkpoint_best"),
    ("b/x/../checkpoint0011.pth", "b_checkpoint0011"), ("/checkpoint.pth", "checkpoint"),
    ("weights/cells.safetensors", "cells"), ("bccd_lite_dino", "bccd_lite_dino"),
    ("https://host/r50/checkpoint.pth", "r50_checkpoint")])
def test_weights_of_two_runs_have_two_names(source, name):
    assert name_of_weights(source) == name


def test_a_checkpoint_in_the_working_folder_has_that_folders_name(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    assert name_of_weights("checkpoint.pth") == "a_checkpoint"
