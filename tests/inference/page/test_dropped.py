import numpy as np
import pytest
from PIL import Image

from inference.page.dropped import MOST_IMAGES, THUMBNAIL, notice, receive
from util.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """As a server keeps uploads: in a folder with a long name."""
    folder = tmp_path / ("f" * 40)
    folder.mkdir()
    return folder


def test_images_of_odd_kinds_are_received(folder):
    Image.fromarray(np.arange(60000, dtype=np.uint16).reshape(200, 300)).save(folder / "deep.png")
    Image.new("CMYK", (400, 30)).save(folder / "print.tif")
    Image.new("P", (5, 5)).save(folder / "tiny.gif")
    received, problems = receive([str(folder / name) for name in ("deep.png", "print.tif", "tiny.gif")])
    assert problems == [] and [entry.title for entry in received] == ["deep.png", "print.tif", "tiny.gif"]
    assert [entry.read().size for entry in received] == [(300, 200), (400, 30), (5, 5)]
    assert max(received[0].thumbnail.size) == THUMBNAIL and np.asarray(received[0].read()).max() == 255


def test_what_cannot_be_read_is_named_without_its_folder(folder):
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "empty.png").touch()
    Image.new("RGB", (9, 9)).save(folder / "good.png")
    received, problems = receive([str(folder / name) for name in ("broken.jpg", "good.png", "empty.png")])
    assert [entry.title for entry in received] == ["good.png"]
    assert [problem.split(":")[0] for problem in problems] == ["cannot read the image broken.jpg",
                                                               "cannot read the image empty.png"]
    assert not any(str(folder) in problem for problem in problems)
    (folder / "good.png").unlink()
    with pytest.raises(UserError, match="^cannot read the image good.png"):
        received[0].read()


def test_too_many_are_cut(folder):
    Image.new("RGB", (9, 9)).save(folder / "a.png")
    received, problems = receive([str(folder / "a.png")] * (MOST_IMAGES + 5))
    assert len(received) == MOST_IMAGES and problems == ["Only the first 50 of 55 images were taken."]


def test_a_notice_is_no_html_of_the_visitor():
    assert notice(["<script>"]) == '<div class="problem">&lt;script&gt;</div>' and notice([]) == ""
