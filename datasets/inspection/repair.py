"""A corrected copy of a data set, in COCO 2017's layout: what training would drop or refuse is corrected, cut or left
out."""
import json
import os
import shutil
from pathlib import Path
from typing import Any

from datasets.annotations import SPLITS, usable_annotations
from datasets.benchmark_facts import NEGATIVE, NOT_EXHAUSTIVE
from datasets.images import inside, upright_box
from datasets.inspection.split import USELESS, SplitInspection, box_problems
from util.errors import UserError
from util.files import write_text


def repair(inspections: list[SplitInspection], new_root: str | Path) -> dict[str, dict[str, tuple[int, int]]]:
    """Writes new_root in COCO 2017's layout; KINDS in datasets/inspection/split.py says what happens to each problem.

    Image files are hard links to the old ones where the file system allows, so they must not be edited in place.
    Returns by split the numbers of "images" and "annotations" before and after. Raises UserError
    if new_root holds anything, if a split would have no image left, and for file names that lead outside the folder.
    """
    new_root = Path(new_root)
    if new_root.exists() and (not new_root.is_dir() or any(new_root.iterdir())):
        raise UserError(f"{new_root}: it exists and is not an empty folder")
    contents = {inspection.split: repaired_content(inspection) for inspection in inspections}
    _renumber_categories(inspections, contents)
    for inspection in inspections:
        split = inspection.split
        if not contents[split]["images"]:
            raise UserError(f"no image of {inspection.folder} would be left")
        for image in contents[split]["images"]:
            source = inspection.paths[image["id"]]
            assert source is not None  # images without a file were left out
            image["file_name"] = source.relative_to(inspection.folder).as_posix()
            _copy(source, inside(new_root / SPLITS[split][0], image["file_name"]))
        path = new_root / SPLITS[split][1]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(contents[split]))
    return {i.split: {name: (len(i.content[name]), len(contents[i.split][name]))
                      for name in ("images", "annotations")} for i in inspections}


def repaired_content(inspection: SplitInspection) -> dict[str, Any]:
    """The annotation file of the corrected copy."""
    images = _repaired_images(inspection)
    useless = {id(problem.entry) for problem in inspection.problems if problem.kind in USELESS}
    stored = {problem.entry["id"] for problem in inspection.problems if problem.kind == "stored"}
    annotations = [_turned(a, inspection) if a["image_id"] in stored else dict(a)
                   for a in inspection.content["annotations"] if id(a) not in useless and a["image_id"] in images]
    annotations, _ = usable_annotations(images, annotations)
    repeated = {id(problem.entry) for problem in box_problems(images, annotations) if problem.kind == "repeated_box"}
    annotations = [annotation for annotation in annotations if id(annotation) not in repeated]
    for number, annotation in enumerate(annotations, 1):
        annotation["id"] = number
    return inspection.content | {"images": list(images.values()), "annotations": annotations}


def _turned(annotation: dict, inspection: SplitInspection) -> dict:
    """The annotation of a picture as it is stored, for the upright picture; its masks are left out."""
    file = inspection.files[annotation["image_id"]]
    assert file is not None
    return {name: value for name, value in annotation.items() if name not in ("segmentation", "keypoints")} | {
        "bbox": upright_box(annotation["bbox"], file.size, file.orientation)}


def _renumber_categories(inspections: list[SplitInspection], contents: dict[str, dict]) -> None:
    """Numbers the categories of all splits from 1 if an id is too large; the same id becomes the same number."""
    if not any(problem.kind == "large_category_id" for inspection in inspections for problem in inspection.problems):
        return
    ids = sorted({category["id"] for content in contents.values() for category in content["categories"]})
    numbers = {old: number for number, old in enumerate(ids, 1)}
    for content in contents.values():
        content["categories"] = [category | {"id": numbers[category["id"]]} for category in content["categories"]]
        for annotation in content["annotations"]:
            annotation["category_id"] = numbers[annotation["category_id"]]
        for image in content["images"]:
            image |= {name: [numbers[i] for i in image[name] if i in numbers]
                      for name in (NEGATIVE, NOT_EXHAUSTIVE) if name in image}


def _repaired_images(inspection: SplitInspection) -> dict[Any, dict]:
    """By id: images whose file can be read, with the size of the upright picture."""
    images = dict(inspection.images)
    for problem in inspection.problems:
        # It is unknown which of the two files the boxes belong to.
        if problem.kind == "repeated_image_id" and problem.entry["id"] in images:
            if images[problem.entry["id"]]["file_name"] != problem.entry["file_name"]:
                del images[problem.entry["id"]]
    found = {}
    for image_id, image in images.items():
        file = inspection.files[image_id]
        if file is not None and not file.error:
            width, height = file.upright_size
            found[image_id] = image | {"width": width, "height": height}
    return found


def _copy(source: Path, target: Path) -> None:
    if target.exists():  # listed twice
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system
        shutil.copy2(source, target)
