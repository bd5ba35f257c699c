import os
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from datasets.formats.listing import header_size, image_files, meant, of_one_name, read_text
from util.errors import UserError


def test_only_files_in_utf8_are_texts(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfa\r\nb")
    assert read_text(path) == "a\r\nb"
    path.write_bytes("a".encode("utf-16"))
    with pytest.raises(UserError, match="a.txt: cannot be read as text in UTF-8"):
        read_text(path)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    for name in ("folder", "pipe"):
        with pytest.raises(UserError, match=f"{name}: not a file"):
            read_text(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "none")


def test_names_that_are_written_otherwise_are_meant_if_nothing_else_is():
    nfc, nfd = (unicodedata.normalize(form, "Fußgänger.txt") for form in ("NFC", "NFD"))
    assert meant(["a", nfc, "IMG.txt", "none"], ["a", nfd, "img.TXT", "b"]) == {
        "a": "a", nfc: nfd, "IMG.txt": "img.TXT"}
    assert meant(["a", "A"], ["a"]) == {"a": "a"}  # that is the other's
    assert meant(["ab", "AB"], ["Ab"]) == {} == meant(["ab"], ["Ab", "AB"])


def test_hidden_files_pipes_and_links_to_folders_are_no_images(tmp_path, caplog):
    outside = tmp_path / "outside"
    for name in ("set/a.png", "set/._a.png", "set/.ipynb_checkpoints/a-checkpoint.png", "outside/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / "set/pipe.png")
    (tmp_path / "set/folder.png").mkdir()
    (tmp_path / "set/link").symlink_to(outside)
    (tmp_path / "set/c.png").symlink_to(outside / "b.png")
    assert image_files(tmp_path / "set") == [tmp_path / "set/a.png", tmp_path / "set/c.png"]
    assert "set/link is a link to a folder, which is not followed" in caplog.text
    assert header_size(tmp_path / "set/pipe.png") == (1, 1)


def test_images_are_listed_in_order_and_below_the_folder(tmp_path):
    for name in ("b.JPG", "a/c.png", "x.txt", "a/d.webp", "no_suffix"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert image_files(tmp_path) == [tmp_path / "a/c.png", tmp_path / "a/d.webp", tmp_path / "b.JPG"]


def test_headers_give_the_upright_size(tmp_path):
    exif = Image.Exif()
    for orientation, size in ((1, (40, 30)), (3, (40, 30)), (6, (30, 40))):
        exif[0x0112] = orientation
        Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg", exif=exif)
        assert header_size(tmp_path / "a.jpg") == size
    (tmp_path / "a.jpg").write_text("no image")
    assert header_size(tmp_path / "a.jpg") == header_size(tmp_path / "none.jpg") == (1, 1)


def test_images_of_one_name_are_set_apart():
    images = [Path(name) for name in ("a/x.jpg", "a/x.png", "b/x.jpg", "a/x.y.jpg")]
    single, problems = of_one_name(images)
    assert single == images[2:] and [problem.kind for problem in problems] == ["repeated_name"]
    assert "a/x.jpg and a/x.png" in problems[0].text
