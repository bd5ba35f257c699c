"""COCO annotation files: what is read, what is derived where a converter left it out, and what is refused.

Training, evaluation and tools/inspect_dataset.py --fix share these rules. What a file says unmistakably is taken,
however it is written (`read_content`); what may mean several things is a problem (`entry_problems`); boxes end at the
border of their image (`usable_annotations`).
"""
import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets.boxes import cut, doubt, faults, reaching_over
from util.errors import UserError

SPLITS = {  # split: image folder, annotation file
    "train": ("train2017", "annotations/instances_train2017.json"),
    "val": ("val2017", "annotations/instances_val2017.json"),
    "test": ("test2017", "annotations/image_info_test-dev2017.json"),
}
DERIVED = {  # kind of problem: what was derived
    "default": "areas and crowd flags that are left out: the box's area, no crowd",
    "area": "areas that are null, not above 0, the same for all or larger than their box: the box's area",
    "crowd": "crowd flags that are null or words: 0 or 1",
    "number": "numbers written as text, and ids written as 1.0: numbers",
    "text_id": "image ids that are numbers beside others that are texts: texts",
    "box": "boxes that are left out: those around the polygons of their annotation",
    "annotation_id": "annotations without an id: numbered",
    "file_name": "file names that are left out, as in LVIS: those of the images' coco_url, below its host",
    "size": "image sizes that are left out: those of the files",
    "outline": "lines with corners in place of a box: the boxes around them",
    "confidence": "lines with a number after the box, such as a confidence: left out",
    "keypoints": "lines with keypoints after the box: left out",
}
WARNED = {  # kind of problem: what a training only tells of
    "no_labels": "images without an annotation file, taken as images without objects",
    "no_image": "label files without an image, left out",
    "from_0": "files with boxes from pixel 0, where Pascal VOC counts from 1: if all count from 0, boxes are 1 px off",
}
CROWD_WORDS = {"": 0, "0": 0, "false": 0, "none": 0, "null": 0, "1": 1, "true": 1}
MAX_CATEGORY_ID = 9_999  # a detector has an output for every id up to the largest


@dataclass(frozen=True)
class Problem:
    """Something wrong with one image or annotation: `kind` names the check, `entry` is the image or annotation."""

    kind: str
    text: str
    entry: dict[str, Any]


def read_content(path: Path) -> tuple[dict[str, Any], list[Problem]]:
    """A COCO annotation file with what can be derived (see DERIVED), and for each such value what was there.

    Image ids are all numbers or all texts. Raises UserError if it cannot be read, or is not a COCO file; individual
    images and annotations are not checked.
    """
    if not path.is_file():
        raise UserError(f"no annotation file {path}")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_entry)  # BOM or none
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}") from error
    _check_lists(content, path)
    derived = list(_derive(content))
    check_categories(content["categories"], path)
    return content, derived


def name_in_url(image: dict[str, Any]) -> str | None:
    """The file name in an image's coco_url, such as val2017/000000000139.jpg; None if there is none."""
    url = image.get("coco_url")
    return url.partition("://")[2].partition("/")[2] or None if isinstance(url, str) else None


def _entry(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Raises ValueError if one of the lists is there twice: all but the last would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        repeated = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        if lists := sorted({"images", "annotations", "categories"}.intersection(repeated)):
            raise ValueError(f"{lists[0]!r} is there more than once")
    return found


def has_size(image: dict[str, Any]) -> bool:
    """Whether an image's entry has a valid width and height."""
    return all(_is_number(image.get(side)) and 0 < image[side] < math.inf for side in ("width", "height"))


def entry_problems(content: dict[str, Any]) -> Iterator[Problem]:
    """What makes single images and annotations of `read_content` unusable without a look at the pixels."""
    for category in content["categories"]:
        if category["id"] > MAX_CATEGORY_ID:
            yield Problem("large_category_id", f"the category {category['name']!r} has the id {category['id']}: at most"
                                               f" {MAX_CATEGORY_ID} is allowed, because a detector has an output for "
                                               "every id up to the largest", category)
    seen = set()
    for image in content["images"]:
        absent = [k for k in ("id", "file_name", "height", "width") if k not in image]
        if absent:
            kind = "no_size" if {"id", "file_name"} <= image.keys() else "incomplete"
            yield Problem(kind, f"an entry of 'images' (id {image.get('id')!r}) has no {absent[0]!r}", image)
        elif not has_size(image):
            yield Problem("no_size", f"image {image['id']!r} has the width {image['width']!r} and the height "
                                     f"{image['height']!r}: they must be numbers above 0", image)
        if not {"id", "file_name"} <= image.keys():
            continue
        if not _is_id(image["id"]) or not is_text(image["file_name"]):
            yield Problem("incomplete", f"an image has the id {image['id']!r} and the file_name "
                                        f"{image['file_name']!r}: they must be a number or text, and text", image)
        elif image["id"] in seen:
            yield Problem("repeated_image_id", f"'images' has the id {image['id']!r} more than once", image)
        else:
            seen.add(image["id"])
    categories = {category["id"] for category in content["categories"]}
    for annotation in content["annotations"]:
        where, box = f"annotation {annotation['id']!r}", annotation.get("bbox")
        absent = [k for k in ("image_id", "category_id", "bbox") if k not in annotation]
        if absent:
            yield Problem("incomplete", f"an entry of 'annotations' (id {annotation['id']!r}) has no {absent[0]!r}",
                          annotation)
        elif not _is_id(annotation["category_id"]) or annotation["category_id"] not in categories:
            yield Problem("unknown_category", f"{where} has category_id {annotation['category_id']!r}, which "
                                              "'categories' does not list", annotation)
        elif not _is_id(annotation["image_id"]) or annotation["image_id"] not in seen:
            yield Problem("unknown_image", f"{where} has image_id {annotation['image_id']!r}, which 'images' does not "
                                           "list", annotation)
        elif not _is_box(box):
            yield Problem("not_a_box", f"{where}: bbox must be four numbers [x, y, width, height], got {box!r}",
                          annotation)
        elif not _is_number(annotation["area"]):
            yield Problem("not_a_box", f"{where}: area must be a number, got {annotation['area']!r}", annotation)
        elif annotation["iscrowd"] not in (0, 1):
            yield Problem("not_a_crowd", f"{where}: iscrowd must be 0 or 1, got {annotation['iscrowd']!r}", annotation)


def usable_annotations(images: dict[Any, dict], annotations: list[dict]) -> tuple[list[dict], int]:
    """The annotations whose box has a part in its image, each cut at the border: the box, and the area where it is
    larger than what is left of the box; and how many were cut by more than ROUNDING. The others are dropped.
    images: by id, with "width" and "height"."""
    useless = np.any(list(faults(*box_columns(images, annotations)).values()), 0)
    usable = [annotation for annotation, is_useless in zip(annotations, useless) if not is_useless]
    boxes, sizes = box_columns(images, usable)
    over = reaching_over(boxes, sizes, tolerance=0)
    areas = np.array([a["area"] for a in usable], float)
    shown, left = cut(boxes, areas, sizes)
    kept = [a | {"bbox": box, "area": area} if is_over else a
            for a, box, area, is_over in zip(usable, shown.tolist(), left.tolist(), over)]
    return kept, int(reaching_over(boxes, sizes).sum())


def doubtful_boxes(images: dict[Any, dict], annotations: list[dict]) -> str | None:
    """What bbox seems to be if it is not [x, y, width, height] in pixels; None if there is no reason to think so."""
    return doubt(*box_columns(images, annotations))


def box_columns(images: dict[Any, dict], annotations: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [n, 4] and the sizes of their images [n, 2], as datasets/boxes.py takes them."""
    sizes = {i: (image["width"], image["height"]) for i, image in images.items()}
    return (np.array([a["bbox"] for a in annotations], float).reshape(-1, 4),
            np.array([sizes[a["image_id"]] for a in annotations], float).reshape(-1, 2))


def _check_lists(content: Any, path: Path) -> None:
    """Raises UserError unless there are lists of objects; an absent list of annotations becomes an empty one."""
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a COCO file, it holds a {type(content).__name__}")
    for name in ("images", "categories"):
        if not content.get(name):
            raise UserError(f"{path}: no {name!r}, or an empty list of them")
    content.setdefault("annotations", [])
    for name in ("images", "categories", "annotations"):
        entries = content[name]
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise UserError(f"{path}: {name!r} must be a list of objects")


def check_categories(categories: list[dict], path: Path) -> None:
    """Raises UserError unless each category has an id of its own, a whole number from 0, and a name."""
    for category in categories:
        absent = [k for k in ("id", "name") if k not in category]
        if absent:
            raise UserError(f"{path}: an entry of 'categories' (id {category.get('id')!r}) has no {absent[0]!r}")
    ids = [category["id"] for category in categories]
    if not all(type(i) is int and i >= 0 for i in ids):
        raise UserError(f"{path}: category ids must be integers from 0, got {sorted(ids, key=str)[:5]}")
    repeated = [i for i, count in Counter(ids).items() if count > 1]
    if repeated:
        raise UserError(f"{path}: 'categories' has the id {min(repeated)} more than once")
    for category in categories:
        if not is_text(category["name"]) or not category["name"].strip():
            raise UserError(f"{path}: the category {category['id']} has the name {category['name']!r}: it must be text")


def _derive(content: dict[str, Any]) -> Iterator[Problem]:
    """Puts numbers, flags, areas and ids where they follow from what is there; says what was there instead."""
    for category in content["categories"]:
        yield from _replace(category, "id", _whole, "number", "a category")
    for image in content["images"]:
        for name, read in (("id", lambda value: value if isinstance(value, str) else _whole(value)),
                           ("width", _number), ("height", _number)):
            yield from _replace(image, name, read, "number", f"image {image.get('id')!r}")
        if image.get("file_name") is None and (in_url := name_in_url(image)):
            image["file_name"] = in_url
            yield Problem("file_name", f"image {image.get('id')!r}: no file_name", image)
    image_ids = [image["id"] for image in content["images"] if _is_id(image.get("id"))]
    if len({isinstance(i, str) for i in image_ids}) == 2:
        for image in content["images"]:
            if _is_id(image.get("id")):
                yield from _replace(image, "id", str, "text_id", "an image")
        image_ids = [str(i) for i in image_ids]
    by_text, listed = {str(i): i for i in image_ids}, set(image_ids)
    same_area = _same_area(content["annotations"])
    for number, annotation in enumerate(content["annotations"], 1):
        if not _is_plain(annotation, listed, same_area):
            yield from _derive_annotation(annotation, number, by_text, same_area)


def _is_plain(annotation: dict[str, Any], image_ids: set, same_area: float | None) -> bool:
    """Whether there is nothing to derive, as in most files: quick, for millions of annotations."""
    image_id, iscrowd = annotation.get("image_id"), annotation.get("iscrowd")
    return (annotation.get("id") is not None and type(image_id) in (int, str) and image_id in image_ids
            and type(annotation.get("category_id")) is int and type(iscrowd) is int and 0 <= iscrowd <= 1
            and _is_box(annotation.get("bbox")) and _is_number(annotation.get("area"))
            and _is_likely_area(annotation["area"], annotation["bbox"], same_area))


def _derive_annotation(annotation: dict[str, Any], number: int, image_ids: dict[str, Any],
                       same_area: float | None) -> Iterator[Problem]:
    """image_ids: by their text. same_area: the area of all annotations, if they have the same."""
    if annotation.get("id") is None:
        annotation["id"] = number
        yield Problem("annotation_id", f"the annotation number {number}: no id", annotation)
    where = f"annotation {annotation['id']!r}"

    def listed(value: Any) -> Any:
        if not _is_id(value):
            return None
        return next((image_ids[key] for key in (str(value), str(_whole(value))) if key in image_ids), None)

    yield from _replace(annotation, "image_id", listed, "number", where)
    yield from _replace(annotation, "category_id", _whole, "number", where)
    if not annotation.get("bbox"):
        box = _around(annotation.get("segmentation"))
        if box is not None:
            annotation["bbox"] = box
            yield Problem("box", f"{where}: no bbox", annotation)
    yield from _replace(annotation, "bbox", _numbers, "number", where)
    if "iscrowd" not in annotation:
        annotation["iscrowd"] = 0
        yield Problem("default", f"{where}: no iscrowd", annotation)
    else:
        yield from _replace(annotation, "iscrowd", flag_of, "crowd", where)
    yield from _derive_area(annotation, same_area, where)


def _derive_area(annotation: dict[str, Any], same_area: float | None, where: str) -> Iterator[Problem]:
    stated, area = annotation.get("area"), _number(annotation.get("area"))
    box = annotation["bbox"] if _is_box(annotation.get("bbox")) else [0, 0, 0, 0]
    if "area" not in annotation:
        annotation["area"] = box[2] * box[3]
        yield Problem("default", f"{where}: no area", annotation)
    elif stated is None or area is not None and not _is_likely_area(area, box, same_area):
        annotation["area"] = box[2] * box[3]
        yield Problem("area", f"{where}: area {stated!r}, box {box!r}", annotation)
    else:
        yield from _replace(annotation, "area", _number, "number", where)


def _is_likely_area(area: float, box: list[float], same_area: float | None) -> bool:
    own = box[2] * box[3]
    return 0 < area <= 1.1 * own + 1 and (same_area is None or own <= 1.1 * area + 1)


def _same_area(annotations: list[dict]) -> float | None:
    """The area that all annotations state, if there are several and they state the same."""
    areas = [area for annotation in annotations if (area := _number(annotation.get("area"))) is not None]
    return areas[0] if len(areas) > 1 and len(set(areas)) == 1 else None


def _replace(entry: dict[str, Any], name: str, read: Any, kind: str, where: str) -> Iterator[Problem]:
    """Replaces a value by what `read` makes of it, unless that is None; says so if it differs in value or type."""
    if name not in entry:
        return
    old, new = entry[name], read(entry[name])
    if new is not None and (type(new) is not type(old) or new != old and new == new):
        entry[name] = new
        yield Problem(kind, f"{where}: {name} {old!r}", entry)


def _whole(value: Any) -> int | None:
    """The whole number that value is, as 1, 1.0, "1" or "1.0"; None if it is none."""
    if isinstance(value, str):
        try:
            return int(value)  # by way of a float, long ones would be rounded
        except ValueError:
            pass
    number = _number(value)
    return int(number) if number is not None and math.isfinite(number) and number == int(number) else None


def _number(value: Any) -> float | None:
    """The number that value is or spells; None if it is none, or an integer too large for a float."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return None
    return value if _is_number(value) else None


def _numbers(value: Any) -> list[float] | None:
    if not isinstance(value, list):
        return None
    numbers = [_number(number) for number in value]
    return None if any(number is None for number in numbers) else numbers  # type: ignore[return-value]


def flag_of(value: Any) -> int | None:
    """The 0 or 1 that value is or spells; None if it is neither."""
    if isinstance(value, (int, float)):
        return int(value) if value in (0, 1) else None
    return CROWD_WORDS.get(str(value).strip().lower())


def _around(polygons: Any) -> list[float] | None:
    """The box [x, y, width, height] around polygons [[x, y, x, y, ...], ...]."""
    if not isinstance(polygons, list) or not polygons:
        return None
    points = [_numbers(polygon) for polygon in polygons]
    if any(not p or len(p) < 6 or len(p) % 2 or not all(map(math.isfinite, p)) for p in points):
        return None
    x, y = ([value for p in points if p for value in p[first::2]] for first in (0, 1))
    return [min(x), min(y), max(x) - min(x), max(y) - min(y)]


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


def _is_number(value: Any) -> bool:
    """Whether value is a number that a float can hold."""
    return type(value) is float or type(value) is int and abs(value) < 1e300


def _is_id(value: Any) -> bool:
    return type(value) is int or isinstance(value, str) or type(value) is float and math.isfinite(value)


def is_text(value: Any) -> bool:
    """Whether value is text that can be printed, and be the name of a file."""
    return isinstance(value, str) and "\0" not in value and not any("\ud800" <= c <= "\udfff" for c in value)
