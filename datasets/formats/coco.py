"""COCO annotation files beside their images: COCO 2017's folders and Roboflow's export."""
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datasets.annotations import SPLITS, Problem, read_content
from datasets.formats.coco_file import read_coco_file, unused_root
from datasets.formats.parsed import Parsed
from datasets.formats.source import Layout, Source
from util.class_names import ClassNames
from util.errors import UserError

ROBOFLOW = "_annotations.coco.json"
ROBOFLOW_FOLDERS = {"train": "train", "val": "valid", "test": "test"}


class CocoSource(Source):
    """An annotation file, and the folder of its images. with_root: see unused_root."""

    exclusive = True

    def __init__(self, title: str, annotations: Path, images: Path, with_root: bool = False):
        super().__init__(title, annotations, [images])
        self.with_root = with_root

    def read(self) -> Parsed:
        return read_coco_file(self.annotations, self.with_root)

    def names(self) -> ClassNames:
        try:
            return self.read().table.names
        except UserError:  # for an inspection
            return {category["id"]: category["name"] for category in self.content()[0]["categories"]}

    def files(self) -> Iterable[Path]:
        return [self.annotations]

    def content(self) -> tuple[dict[str, Any], list[Problem]]:
        content, derived = read_content(self.annotations)
        root = unused_root(content["categories"], {a.get("category_id") for a in content["annotations"]})
        if self.with_root and root is not None:
            content["categories"].remove(root)
        return content, derived


def coco_2017(root: Path) -> Layout | None:
    """train2017/ and val2017/ beside annotations/."""
    places = {split: (root / images, root / annotations) for split, (images, annotations) in SPLITS.items()}
    if not any(images.is_dir() or annotations.is_file() for images, annotations in places.values()):
        return None
    sources = {split: CocoSource(images.name, annotations, images) for split, (images, annotations) in places.items()
               if annotations.is_file() or images.is_dir()}
    return Layout("COCO 2017", root, sources, ", ".join(f"{images}/ with {annotations}"
                                                        for images, annotations in SPLITS.values()))


def roboflow(root: Path) -> Layout | None:
    """train/, valid/ and test/, each with an annotation file among its images."""
    sources = {split: CocoSource(folder, root / folder / ROBOFLOW, root / folder, with_root=True)
               for split, folder in ROBOFLOW_FOLDERS.items() if (root / folder / ROBOFLOW).is_file()}
    if not sources:
        return None
    return Layout("Roboflow's COCO export", root, sources,
                  ", ".join(f"{folder}/{ROBOFLOW}" for folder in ROBOFLOW_FOLDERS.values()))
