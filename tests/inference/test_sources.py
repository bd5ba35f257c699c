import os

import numpy as np
import pytest
import torch
from PIL import Image

from inference.sources import as_image, open_source
from tests.inference.scenes import moving, scene, write_sound, write_video
from util.errors import UserError

PICTURE = scene(red=(0, 0, 10, 10))


@pytest.fixture
def folder(tmp_path):
    """Two pictures, a video, and what is neither."""
    root = tmp_path / "files"
    (root / "deeper").mkdir(parents=True)
    PICTURE.save(root / "b.png")
    PICTURE.save(root / "a.JPG")
    PICTURE.save(root / ".hidden.png")
    PICTURE.save(root / "print.eps")
    PICTURE.save(root / "deeper/c.png")
    write_video(root / "c.mp4", moving(3))
    (root / "notes.txt").write_text("no picture")
    return root


def names(source):
    return [frame.path.rpartition("/")[2] for frame in open_source(source)]


def test_a_file_is_one_image(folder):
    for path in (folder / "b.png", str(folder / "b.png")):
        source = open_source(path)
        (frame,) = source
        assert source.single and np.array_equal(frame.image, PICTURE) and frame.path == str(folder / "b.png")
        assert frame.number is None and source.frame_count() == 1


def test_a_folder_is_its_images_and_videos(folder):
    source = open_source(folder)
    assert not source.single and not source.live and source.frame_count() == 2 + 3
    assert names(folder) == ["a.JPG", "b.png", "c.mp4", "c.mp4", "c.mp4"]


def test_a_pattern_is_what_matches(folder):
    assert names(f"{folder}/*.png") == ["b.png"]
    assert names(f"{folder}/**/*.png") == ["b.png", "c.png"]
    assert not open_source(f"{folder}/*.png").single
    with pytest.raises(UserError, match="no file matches .*gif"):
        open_source(f"{folder}/*.gif")


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(folder):
    PICTURE.save(folder / "x[1].png")
    assert names(folder / "x[1].png") == ["x[1].png"] and open_source(folder / "x[1].png").single


def test_a_list_is_everything_in_it(folder):
    source = open_source([folder / "b.png", PICTURE, np.asarray(PICTURE), f"{folder}/*.JPG", folder / "c.mp4"])
    assert [frame.path.rpartition("/")[2] for frame in source] == ["b.png", "", "", "a.JPG", "c.mp4", "c.mp4", "c.mp4"]
    assert not open_source([PICTURE]).single


def test_what_cannot_be_read_is_skipped_in_a_list_and_an_error_alone(folder):
    write_sound(folder / "sound.mp4")
    source = open_source([folder / "notes.txt", Image.open(folder / "b.png"), folder / "sound.mp4", np.zeros((4, 4))])
    messages = []
    source.skipped.report = messages.append
    assert len(list(source)) == 1 and source.skipped.count == 3
    assert "notes.txt" in messages[0] and "sound.mp4" in messages[1] and "float64 [4, 4]" in messages[2]
    assert str(source.skipped).endswith("sound.mp4, item 3")
    for alone in (folder / "notes.txt", folder / "sound.mp4", np.zeros((4, 4))):
        with pytest.raises(UserError):
            list(open_source(alone))


def test_an_image_that_pillow_has_not_read_yet_may_be_broken(folder):
    (folder / "cut.png").write_bytes((folder / "b.png").read_bytes()[:100])
    with pytest.raises(UserError, match="cannot read the image"):
        list(open_source(Image.open(folder / "cut.png")))


@pytest.mark.parametrize("source, message", [
    ("none.jpg", "no file or folder none.jpg"), (["none.jpg"], "none.jpg"), ([], "the list of sources is empty"),
    (-1, "cameras are numbered from 0"), (True, "not bool"), (1.5, "not float"), (None, "not NoneType"),
    ("https://host/a.jpg", "only rtsp"), ([0, PICTURE], "pass it alone"), (["rtsp://host/a", 0], "pass it alone")])
def test_what_is_no_source_is_told(source, message):
    with pytest.raises(UserError, match=message):
        open_source(source)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.mp4")
    with pytest.raises(UserError, match="a.mp4 is neither a file nor a folder"):
        open_source(tmp_path / "a.mp4")


def test_an_empty_folder_is_told(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match="no image or video in the folder"):
        open_source(tmp_path)


def test_cameras_and_addresses_are_live():
    assert open_source(0).live and open_source("rtsp://host/a").live and open_source([0]).live
    assert open_source(0).frame_count() is None and open_source(0).files == []


@pytest.mark.parametrize("value", [
    np.asarray(PICTURE), np.asarray(PICTURE)[:, ::-1][:, ::-1], np.asarray(PICTURE, order="F"),
    torch.from_numpy(np.array(PICTURE)).permute(2, 0, 1), PICTURE, PICTURE.convert("RGBA")])
def test_an_image_in_memory_stays_what_it_is(value):
    assert np.array_equal(as_image(value), PICTURE) and as_image(value).mode == "RGB"


def test_grey_arrays_are_three_equal_channels():
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    for value in (grey, grey[..., None], torch.from_numpy(grey)[None]):
        assert np.array_equal(as_image(value), np.stack([grey] * 3, -1))


def test_a_turned_image_in_memory_is_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    PICTURE.save(tmp_path / "turned.png", exif=exif)
    assert as_image(Image.open(tmp_path / "turned.png")).size == PICTURE.size[::-1]


@pytest.mark.parametrize("value, message", [
    (np.zeros((4, 5, 3)), r"uint8 \[height, width, 3\].*float64 \[4, 5, 3\]"),
    (np.zeros((3, 40, 50), np.uint8), r"\[3, 40, 50\]"), (np.zeros((4, 5, 4), np.uint8), r"\[4, 5, 4\]"),
    (np.zeros((0, 5, 3), np.uint8), r"\[0, 5, 3\]"), (np.zeros((2, 4, 5, 3), np.uint8), "as a list"),
    (np.zeros(5, np.uint8), r"uint8 \[5\]"), (torch.zeros(3, 4, 5), r"uint8 \[3, H, W\].*float32 \[3, 4, 5\]"),
    (torch.zeros(4, 5, 3, dtype=torch.uint8), r"\[4, 5, 3\]"),
    (torch.zeros(2, 3, 4, 5, dtype=torch.uint8), "as a list"),
    (torch.zeros(3, 0, 5, dtype=torch.uint8), r"\[3, 0, 5\]")])
def test_arrays_and_tensors_of_other_kinds_are_told(value, message):
    with pytest.raises(UserError, match=message):
        as_image(value)
