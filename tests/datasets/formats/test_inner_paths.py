"""What paths in a data set's own files mean."""
import logging

import pytest

from datasets.formats.inner_paths import below, inner_path, listed_images
from util.errors import UserError


def test_inner_paths(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    assert inner_path(tmp_path, "b", tmp_path / "a") == (tmp_path / "a/b", False)
    assert inner_path(tmp_path, "x/y/a/b") == (tmp_path / "a/b", True)
    (tmp_path / "images").mkdir()
    assert inner_path(tmp_path, "/x/images/a/b")[0] == tmp_path / "a/b"
    assert inner_path(tmp_path, "../test/images")[0] is None is inner_path(tmp_path, "/x/test/images")[0]
    assert inner_path(tmp_path, "none") == (tmp_path / "none", False)
    assert inner_path(tmp_path, "/none/at/all")[0] is None and inner_path(tmp_path, "../none")[0] is None


def test_a_path_that_is_too_long_is_only_not_there(tmp_path):
    long = "a" * 300
    assert inner_path(tmp_path, long) == (tmp_path / long, False) and inner_path(tmp_path, f"/{long}")[0] is None


def test_what_leads_outside_says_where_it_stands(tmp_path):
    with pytest.raises(UserError, match=r"^x.yaml: train: '../a' lies outside .*train_images"):
        below(tmp_path, tmp_path, "../a", "x.yaml: train: '../a'")


def test_paths_of_another_machine_are_told_in_one_line(tmp_path, caplog):
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "images" / name).touch()
    (tmp_path / "train.txt").write_text("D:\\data\\set\\images\\a.png\r\nD:\\data\\set\\images\\b.png\r\n")
    with caplog.at_level(logging.INFO):
        assert listed_images(tmp_path / "train.txt", tmp_path, tmp_path) == [tmp_path / "images/a.png",
                                                                            tmp_path / "images/b.png"]
    assert len(caplog.records) == 1 and "2 paths are not there and mean files below" in caplog.text
