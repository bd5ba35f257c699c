from pathlib import Path

from PIL import Image

from datasets.formats.listing import header_size, image_files, of_one_name


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
