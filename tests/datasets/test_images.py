"""Images of every kind become upright RGB of 8 bits, in one way for all who read them."""
import io
import logging
import struct
import unicodedata
import zlib

import numpy as np
import pytest
from PIL import Image

from datasets import images
from datasets.images import find_files, inside, note_headers, read_image, to_rgb, upright_box, upright_size
from util.errors import UserError

RAMP = np.arange(600).reshape(20, 30)  # height, width


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.setattr(images, "_said", set())


def saved(path, pixels, orientation=None, **options):
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, exif=exif, **options)
    return path


def grey(image):
    assert image.mode == "RGB"
    pixels = np.asarray(image)
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


def stretched(values):
    return np.round(255 * (values - values.min()) / (values.max() - values.min()))


# values

@pytest.mark.parametrize("kind, factor, offset, suffix", [
    (np.uint16, 40, 2000, "png"), (np.uint16, 40, 2000, "tif"), (np.uint16, 100, 0, "tif"),
    (np.int32, 10**6, -10**8, "tif"),
    (np.float32, 1 / 600, 0, "tif"), (np.float32, 100, -5000, "tif"), (">u2", 40, 2000, "tif")])
def test_grey_values_of_more_than_8_bits_are_scaled_by_their_range(tmp_path, kind, factor, offset, suffix):
    values = (RAMP * factor + offset).astype(kind)
    image = Image.frombytes("I;16B", (30, 20), values.tobytes()) if kind == ">u2" else values
    found = grey(read_image(saved(tmp_path / f"a.{suffix}", image)))
    assert np.abs(found - stretched(values.astype(float))).max() <= 1 and found.min() == 0 and found.max() == 255


def test_a_few_outliers_do_not_count_in_the_range():
    values = np.tile(np.linspace(2000, 6000, 500), (400, 1)).astype(np.uint16)  # 200,000 pixels: one at either end
    values[5, 5], values[6, 6] = 65535, 0
    found = grey(to_rgb(Image.fromarray(values)))
    assert found[5, 5] == 255 and found[6, 6] == 0
    assert np.abs(found[0] - np.linspace(0, 255, 500)).max() <= 1
    small = np.full((400, 500), 100, np.uint16)
    small[5, 5] = 200  # on an even background, it is what there is to see
    assert np.unique(grey(to_rgb(Image.fromarray(small)))).tolist() == [0, 255]


def test_values_that_are_not_finite_are_no_part_of_the_range():
    values = RAMP.astype(np.float32)
    values[0, :3] = np.nan, np.inf, -np.inf
    found = grey(to_rgb(Image.fromarray(values)))
    assert found[0, :3].tolist() == [0, 255, 0] and found[0, 3] == 0 and found[-1, -1] == 255
    for constant in (np.nan, 7.0, 3e38):
        assert not grey(to_rgb(Image.fromarray(np.full((4, 5), constant, np.float32)))).any()


def test_images_of_other_modes(tmp_path):
    colour = Image.new("RGB", (30, 20), (200, 30, 60))
    for mode, wanted in (("RGB", (200, 30, 60)), ("RGBA", (200, 30, 60)), ("P", None), ("L", (84, 84, 84)),
                         ("LA", (84, 84, 84)), ("1", None)):
        image = colour.convert(mode)
        found = read_image(saved(tmp_path / "a.png", image))
        assert found.mode == "RGB" and found.getpixel((3, 3)) == (wanted or image.convert("RGB").getpixel((3, 3)))
    clear = Image.new("RGBA", (30, 20), (200, 30, 60, 0))  # transparency is ignored
    assert read_image(saved(tmp_path / "a.png", clear)).getpixel((3, 3)) == (200, 30, 60)
    palette = colour.convert("P", palette=Image.Palette.ADAPTIVE)
    wanted = palette.convert("RGB").getpixel((3, 3))
    assert read_image(saved(tmp_path / "b.png", palette, transparency=0)).getpixel((3, 3)) == wanted
    ink = Image.new("CMYK", (30, 20), (0, 255, 255, 0))  # which JPEG stores inverted
    found = read_image(saved(tmp_path / "a.jpg", ink, quality=100)).getpixel((3, 3))
    assert found[0] > 250 and max(found[1:]) < 5


@pytest.mark.parametrize("suffix", ["gif", "tif"])
def test_the_first_of_several_pictures_is_read_and_told(tmp_path, caplog, suffix):
    frames = [Image.fromarray(np.roll(RAMP, k).astype(np.uint8)) for k in (0, 50)]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    found = grey(read_image(tmp_path / f"a.{suffix}"))
    assert np.array_equal(found, RAMP.astype(np.uint8)) and "only the first is read" in caplog.text


def test_what_an_image_loses_is_told_once_for_each_kind(tmp_path, caplog):
    files = [saved(tmp_path / f"{i}.png", RAMP.astype(np.uint16)) for i in range(3)]
    floats = saved(tmp_path / "a.tif", RAMP.astype(np.float32))
    note_headers([(file, (30, 20)) for file in files], "train2017")
    for file in (*files, floats, floats):
        read_image(file)
    assert [record.message.split(":")[0] for record in caplog.records] == [
        f"images of more than 8 bits (I;16), such as {files[0]}", f"images of more than 8 bits (F), such as {floats}"]


def test_colour_of_16_bits_is_told(tmp_path, caplog):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + np.full((30, 3), 0x1234, ">u2").tobytes() for _ in range(20))
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 30, 20, 16, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    assert read_image(tmp_path / "a.png").getpixel((3, 3)) == (0x12,) * 3
    assert "only the upper 8 bits" in caplog.text


# orientation

@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_upright(tmp_path, orientation, suffix):
    """A picture that was stored turned comes back as it was, to the pixel."""
    upright = Image.fromarray(RAMP.astype(np.uint8)).convert("RGB")
    back = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]  # PIL's Transpose that undoes it
    stored = upright if back is None else upright.transpose(Image.Transpose(back))
    options = {"lossless": True} if suffix == "webp" else {}
    path = saved(tmp_path / f"a.{suffix}", stored, orientation, **options)
    assert read_image(path).tobytes() == upright.tobytes()
    assert read_image(path, (30, 20)).tobytes() == upright.tobytes()
    assert upright_size(stored.size, orientation) == (30, 20)
    if suffix != "tif" and orientation >= 5:  # PIL itself turns TIFF, always
        assert read_image(path, stored.size).tobytes() == stored.tobytes()
    with pytest.raises(UserError, match="a.*: it is 30x20 px, the annotations say 31x20"):
        read_image(path, (31, 20))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_turn_with_their_picture(tmp_path, orientation):
    stored = Image.new("RGB", (30, 20))
    stored.paste((255, 255, 255), (3, 5, 3 + 10, 5 + 4))
    turned = read_image(saved(tmp_path / "a.png", stored, orientation))
    left, top, right, bottom = turned.getbbox()
    assert upright_box([3, 5, 10, 4], stored.size, orientation) == [left, top, right - left, bottom - top]


def test_an_orientation_that_means_nothing_is_passed_over(tmp_path):
    for value in (0, 9, 300):
        assert read_image(saved(tmp_path / "a.png", RAMP.astype(np.uint8), value)).size == (30, 20)
    buffer = io.BytesIO()
    Image.fromarray(RAMP.astype(np.uint8)).save(buffer, "JPEG", exif=b"Exif\0\0garbage")
    (tmp_path / "a.jpg").write_bytes(buffer.getvalue())
    assert read_image(tmp_path / "a.jpg").size == (30, 20)


def test_pictures_annotated_as_stored_are_named(tmp_path, caplog):
    turned = saved(tmp_path / "turned.png", RAMP.astype(np.uint8), 6)
    with caplog.at_level(logging.WARNING):
        note_headers([(turned, (20, 30)), (tmp_path / "none.png", (1, 1))], "train2017")
        assert not caplog.records
        note_headers([(turned, (30, 20))], "train2017")
    assert "train2017: 1 images, such as turned.png, have an EXIF orientation" in caplog.text


# files

@pytest.mark.parametrize("content", [b"", b"<html>", b"GIF89a"])
def test_a_broken_file_is_named(tmp_path, content):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(UserError, match="cannot read the image .*a.jpg"):
        read_image(tmp_path / "a.jpg")


def test_names_of_other_systems_find_their_files(tmp_path, caplog):
    (tmp_path / "part").mkdir()
    for name in ("part/1.jpg", unicodedata.normalize("NFD", "köln.jpg"), "A.JPG", "b.jpg", "B.jpg", "a\\b.jpg"):
        (tmp_path / name).touch()
    wanted = {"part\\1.jpg": "part/1.jpg", "./part/../b.jpg": "b.jpg", "B.jpg": "B.jpg", "a\\b.jpg": "a\\b.jpg",
              unicodedata.normalize("NFC", "köln.jpg"): unicodedata.normalize("NFD", "köln.jpg"), "a.jpg": "A.JPG"}
    with caplog.at_level(logging.INFO):
        found, lacking = find_files(tmp_path, [*wanted, "none.jpg", "b\0.jpg", "part"])
    assert found == wanted
    assert lacking == ["none.jpg", "b\0.jpg", "part"] and "2 file names" in caplog.text


def test_a_file_that_another_name_means_is_not_taken(tmp_path):
    for name in ("A.jpg", "x.jpg", "X.JPG"):
        (tmp_path / name).touch()
    found, lacking = find_files(tmp_path, ["A.jpg", "a.jpg", "X.jpg"])
    assert list(found) == ["A.jpg"] and lacking == ["a.jpg", "X.jpg"]


@pytest.mark.parametrize("name", ["../a.jpg", "..\\a.jpg", "part/../../a.jpg", "/etc/hostname", ".."])
def test_no_name_leads_outside(tmp_path, name):
    folder = tmp_path / "train2017"
    folder.mkdir()
    (tmp_path / "a.jpg").touch()
    with pytest.raises(UserError, match="leads outside"):
        find_files(folder, [name])


def test_the_parent_of_a_link_is_the_folder_that_holds_the_link(tmp_path):
    """The system would take link/../a.jpg to be beside what the link points to."""
    folder, elsewhere = tmp_path / "train2017", tmp_path / "elsewhere/part"
    folder.mkdir()
    elsewhere.mkdir(parents=True)
    (elsewhere.parent / "a.jpg").touch()
    (folder / "link").symlink_to(elsewhere)
    assert inside(folder, "link/../a.jpg") == folder / "a.jpg"
    assert find_files(folder, ["link/../a.jpg"]) == ({}, ["link/../a.jpg"])


def test_a_picture_that_is_a_program_is_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *args: pytest.fail("runs Ghostscript"))
    Image.fromarray(RAMP.astype(np.uint8)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")
    with pytest.raises(UserError, match="cannot read the image .*a.jpg: it is PostScript"):
        read_image(tmp_path / "a.jpg")


# scaled

@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("size", [(64, 48), (65, 47), (33, 90), (7, 5)])
@pytest.mark.parametrize("within", [(32, 24), (20, 40), (200, 200), (8, 6), (1, 1)])
def test_a_picture_is_scaled_into_a_frame_with_its_edges_where_they_belong(tmp_path, suffix, size, within):
    pixels = np.zeros((size[1], size[0]), np.uint8)
    left, top = size[0] // 3, size[1] // 2
    pixels[top:, left:] = 255
    path = saved(tmp_path / f"a.{suffix}", pixels, quality=100)
    found = read_image(path, size, within)
    factor = min(most / side for most, side in zip(within, size))
    assert found.size == tuple(max(1, round(side * factor)) for side in size)
    values = grey(found).astype(float) / 255
    for axis, edge, side in ((0, left, 0), (1, top, 1)):  # the bright part of the last row and of the last column
        profile = values[-1] if axis == 0 else values[:, -1]
        wanted = (size[side] - edge) * found.size[side] / size[side]
        assert abs(profile.sum() - wanted) <= 0.6


def test_scaling_down_decodes_only_what_it_needs(tmp_path, monkeypatch):
    path, decoded = saved(tmp_path / "a.jpg", Image.new("RGB", (641, 481))), []
    convert = images.to_rgb
    monkeypatch.setattr(images, "to_rgb", lambda image: decoded.append(image.size) or convert(image))
    for within in ((320, 240), (160, 120), (321, 241), (640, 480)):
        read_image(path, (641, 481), within)
    assert decoded == [(321, 241), (161, 121), (641, 481), (641, 481)]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("annotated", ["upright", "stored"])
def test_a_scaled_picture_is_turned_like_a_whole_one(tmp_path, orientation, annotated):
    pixels = np.kron(np.arange(1, 13).reshape(3, 4) * 20, np.ones((32, 32))).astype(np.uint8)
    path = saved(tmp_path / "a.jpg", pixels, orientation, quality=100)
    size = upright_size((128, 96), orientation) if annotated == "upright" else (128, 96)
    whole, small = read_image(path, size), read_image(path, size, (size[0] // 2, size[1] // 2))
    assert small.size == (whole.width // 2, whole.height // 2)
    assert np.abs(grey(small).astype(int)[8::16, 8::16] - grey(whole).astype(int)[16::32, 16::32]).max() <= 2


def test_a_scaled_picture_has_the_annotated_size(tmp_path):
    path = saved(tmp_path / "a.png", Image.new("RGB", (40, 30)))
    with pytest.raises(UserError, match="a.png: it is 40x30 px, the annotations say 41x30"):
        read_image(path, (41, 30), (20, 20))
