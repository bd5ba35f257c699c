"""Damages to a sound set: each changes the annotation file or an image."""
import json
import shutil

from PIL import Image

SIZE = (100, 80)  # width, height of every image


def file_of(root, split):
    return root / f"annotations/instances_{split}2017.json"


def picture(root, split, number):
    return root / f"{split}2017/{split}{number}.png"


def save(root, split, number, image, **options):
    image.save(picture(root, split, number), **options)


def edit(change, split="train"):
    """A damage that changes the annotation file."""
    def damage(root):
        content = json.loads(file_of(root, split).read_text())
        change(content)
        file_of(root, split).write_text(json.dumps(content))
    return damage


def box(*values, **other):
    """One more annotation, with id 77, of image 3."""
    return edit(lambda content: content["annotations"].append(
        {"id": 77, "image_id": 3, "category_id": 2, "bbox": list(values)} | other))


def image(**change):
    """The third image's entry, changed."""
    return edit(lambda content: content["images"][2].update(change))


def converted(mode):
    def damage(root):
        with Image.open(picture(root, "train", 3)) as old:
            save(root, "train", 3, old.convert(mode))
    return damage


def turned(size, orientation=6):
    """An EXIF orientation in the third file, and an entry of this size."""
    def damage(root):
        image(width=size[0], height=size[1])(root)
        exif = Image.Exif()
        exif[0x0112] = orientation
        with Image.open(picture(root, "train", 3)) as old:
            save(root, "train", 3, old.copy(), exif=exif)
    return damage


def repeated_id(file_name):
    return edit(lambda content: content["images"].append(content["images"][2] | {"file_name": file_name}))


DAMAGES = {  # name: damage, kind, text that names it
    "nan": (box(float("nan"), 1, 2, 3), "not_finite", "train3.png, annotation 77"),
    "infinite": (box(1, 1, float("inf"), 3), "not_finite", "annotation 77"),
    "zero width": (box(5, 5, 0, 10), "empty", "annotation 77"),
    "negative height": (box(5, 50, 10, -10), "empty", "annotation 77"),
    "outside": (box(100, 5, 10, 10), "outside", "annotation 77"),
    "right of the border": (box(90, 5, 20, 10), "clipped", "annotation 77"),
    "left of the border": (box(-3, 5, 20.3, 10), "clipped", "annotation 77"),
    "tiny": (box(5, 5, 0.5, 10), "tiny", "annotation 77"),
    "whole image": (box(0, 0, 100, 80), "whole_image", "annotation 77"),
    "repeated box": (box(10, 20, 30, 40, category_id=1), "repeated_box", "annotation 77"),
    "area": (box(5, 5, 10, 10, area=400), "area", "area 400"),
    "area as text": (box(5, 5, 10, 10, area="90"), "number", "annotation 77: area '90'"),
    "area of no number": (box(5, 5, 10, 10, area=[90]), "not_a_box", "annotation 77"),
    "area null": (box(5, 5, 10, 10, area=None), "area", "annotation 77: area None"),
    "area of nothing": (box(5, 5, 10, 10, area=0), "area", "area 0"),
    "crowd as text": (box(5, 5, 10, 10, iscrowd="0"), "crowd", "annotation 77: iscrowd '0'"),
    "crowd of no flag": (box(5, 5, 10, 10, iscrowd="perhaps"), "not_a_crowd", "annotation 77"),
    "unknown image": (box(5, 5, 10, 10, image_id=99), "unknown_image", "99"),
    "image id of a wrong type": (box(5, 5, 10, 10, image_id=[3]), "unknown_image", "[3]"),
    "unknown category": (box(5, 5, 10, 10, category_id=99), "unknown_category", "99"),
    "three numbers": (box(5, 5, 10), "not_a_box", "annotation 77"),
    "image id as text": (box(5, 5, 10, 10, image_id="3"), "number", "annotation 77: image_id '3'"),
    "box in a polygon": (box(bbox=[], segmentation=[[5, 5, 15, 5, 10, 15]]), "box", "annotation 77"),
    "no annotation id": (box(5, 5, 10, 10, id=None), "annotation_id", "the annotation number 6"),
    "large category id": (edit(lambda content: content["categories"].append({"id": 74673216, "name": "panel"})),
                          "large_category_id", "74673216"),
    "no bbox": (edit(lambda content: content["annotations"][0].pop("bbox")), "incomplete", "'bbox'"),
    "no file name": (edit(lambda content: content["images"][2].pop("file_name")), "incomplete", "'file_name'"),
    "no width": (edit(lambda content: content["images"][2].pop("width")), "no_size", "id 3"),
    "width as text": (image(width="100"), "number", "image 3: width '100'"),
    "width of no number": (image(width="wide"), "no_size", "image 3"),
    "width that is not finite": (image(width=float("nan")), "no_size", "image 3"),
    "annotation id": (box(5, 5, 10, 10, id=10), "repeated_annotation_id", "annotation 10"),
    "image id, same file": (repeated_id("train3.png"), "repeated_image_id", "id 3"),
    "image id, other file": (repeated_id("train4.png"), "repeated_image_id", "id 3"),
    "no file": (lambda root: picture(root, "train", 3).unlink(), "missing", "train3.png"),
    "truncated": (lambda root: picture(root, "train", 3).write_bytes(picture(root, "train", 3).read_bytes()[:9000]),
                  "unreadable", "train3.png"),
    "no image": (lambda root: picture(root, "train", 3).write_text("<html>"), "unreadable", "train3.png"),
    "of another size": (image(width=110, height=90), "other_size", "100x80 px, the annotations say 110x90"),
    "annotated as stored": (turned(SIZE), "stored", "train3.png"),
    "orientation": (turned(SIZE, 3), "orientation", "orientation 3"),
    "grey": (converted("L"), "not_rgb", "train3.png: L"),
    "transparent": (converted("RGBA"), "not_rgb", "RGBA"),
    "16 bits": (converted("I;16"), "deep", "train3.png"),
    "same file": (lambda root: shutil.copy(picture(root, "train", 1), picture(root, "train", 3)), "repeated_file",
                  "train3.png is train1.png"),
    "unlisted": (lambda root: (root / "train2017/notes.txt").write_text("x"), "unlisted", "notes.txt"),
}
