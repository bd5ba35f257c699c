"""A corrected copy of a COCO-format folder: what training would drop or refuse is left out, cut or corrected."""
import json
import os
import shutil
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from datasets.coco import SPLITS
from datasets.inspection.split import USELESS, SplitInspection, box_problems
from util.errors import UserError
from util.files import write_text


def repair(inspections: list[SplitInspection], new_root: str | Path) -> dict[str, dict[str, tuple[int, int]]]:
    """Writes new_root with the same layout; KINDS in datasets/inspection/split.py says what happens to each problem.

    Image files are hard links to the old ones where the file system allows, so they must not be edited in place; turned
    ones are rewritten. Returns by split the numbers of "images" and "annotations" before and after. Raises UserError
    if new_root holds anything, if a split would have no image left, and for file names that lead outside the folder.
    """
    new_root = Path(new_root)
    if new_root.exists() and (not new_root.is_dir() or any(new_root.iterdir())):
        raise UserError(f"--fix {new_root}: it exists and is not an empty folder")
    contents = {inspection.split: repaired_content(inspection) for inspection in inspections}
    for inspection in inspections:
        split = inspection.split
        if not contents[split]["images"]:
            raise UserError(f"--fix: no image of {inspection.folder} would be left")
        turned = {problem.entry["id"] for problem in inspection.problems if problem.kind == "turned"}
        folder = (new_root / SPLITS[split][0]).resolve()
        for image in contents[split]["images"]:
            target = Path(os.path.normpath(folder / image["file_name"]))
            if not target.is_relative_to(folder):
                raise UserError(f"--fix: the file name {image['file_name']} leads outside {inspection.folder}")
            _copy(inspection.folder / image["file_name"], target, image["id"] in turned)
        path = new_root / SPLITS[split][1]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(contents[split]))
    return {i.split: {name: (len(i.content.get(name, [])), len(contents[i.split][name]))
                      for name in ("images", "annotations")} for i in inspections}


def repaired_content(inspection: SplitInspection) -> dict[str, Any]:
    """The annotation file of the corrected copy."""
    images = _repaired_images(inspection)
    useless = {id(problem.entry) for problem in inspection.problems if problem.kind in USELESS}
    annotations = [dict(a) for a in inspection.content.get("annotations", [])
                   if id(a) not in useless and a["image_id"] in images]
    annotations = _without(annotations, box_problems(images, annotations), {"not_finite", "empty", "outside"})
    for annotation in annotations:
        _cut(annotation, images[annotation["image_id"]])
    annotations = _without(annotations, box_problems(images, annotations), {"repeated_box"})  # cut ones may be equal
    for number, annotation in enumerate(annotations, 1):
        annotation["id"] = number
    return inspection.content | {"images": list(images.values()), "annotations": annotations}


def _repaired_images(inspection: SplitInspection) -> dict[Any, dict]:
    """By id: images whose file can be read, with the size of the file once it is turned."""
    images = dict(inspection.images)
    for problem in inspection.problems:
        # It is unknown which of the two files the boxes belong to.
        if problem.kind == "repeated_image_id" and problem.entry["id"] in images:
            if images[problem.entry["id"]]["file_name"] != problem.entry["file_name"]:
                del images[problem.entry["id"]]
    sizes = {}
    for image_id in images:
        file = inspection.files[image_id]
        if file is not None and not file.error:
            sizes[image_id] = file.size
    sizes |= {p.entry["id"]: sizes[p.entry["id"]][::-1] for p in inspection.problems
              if p.kind == "turned" and p.entry["id"] in sizes}
    return {i: images[i] | {"width": width, "height": height} for i, (width, height) in sizes.items()}


def _without(annotations: list[dict], problems: Any, kinds: set[str]) -> list[dict]:
    dropped = {id(problem.entry) for problem in problems if problem.kind in kinds}
    return [annotation for annotation in annotations if id(annotation) not in dropped]


def _cut(annotation: dict, image: dict) -> None:
    """Cuts the box at the image's border, and the area at the box's."""
    x, y, width, height = annotation["bbox"]
    left, top = max(x, 0), max(y, 0)
    # Differences of corners would round the sides of boxes that need no cut.
    width = image["width"] - left if x + width > image["width"] else width - (left - x)
    height = image["height"] - top if y + height > image["height"] else height - (top - y)
    annotation["bbox"] = [left, top, width, height]
    area = annotation.get("area", 0)
    annotation["area"] = min(area, width * height) if area > 0 else width * height


def _copy(source: Path, target: Path, turned: bool) -> None:
    if target.exists():  # listed twice
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if turned:
        with Image.open(source) as image:
            ImageOps.exif_transpose(image).save(target, image.format, quality=95)
        return
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system
        shutil.copy2(source, target)
