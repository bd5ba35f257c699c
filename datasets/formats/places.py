"""Files in places of their own, as the config names them: train_images, train_annotations, val_images, ..."""
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from datasets.formats.coco import ROBOFLOW, CocoSource
from datasets.formats.combined import Joined, merged_names
from datasets.formats.listing import image_files, read_text
from datasets.formats.source import Layout, Source
from datasets.formats.voc import VocSource, xml_files
from datasets.formats.yolo import CLASSES, YoloSource
from util.class_names import ClassNames
from util.errors import UserError

NAME_FILES = (CLASSES, "obj.names")  # a name a line


def named_places(places: Mapping[str, tuple[list[str] | None, list[str] | None]]) -> Layout:
    """places: per split the folders of images and, as many, their annotations: a COCO file, a folder of Pascal VOC's
    xml files or a list of names in ImageSets/Main, or a folder of YOLO's label files with a classes.txt.

    Several sets in a split become one. Where there are several, or other kinds than COCO's, classes have one id in all
    splits, by their name. Raises UserError for what is not there.
    """
    sources = {split: _sources(split, images, annotations) for split, (images, annotations) in places.items()
               if images or annotations}
    every = [source for group in sources.values() for source in group]

    @cache
    def classes() -> ClassNames:
        return merged_names(every)

    plain = all(len(group) == 1 and isinstance(group[0], CocoSource) for group in sources.values())
    joined = {split: group[0] if plain else Joined(split, group, every, classes) for split, group in sources.items()}
    return Layout("places that the config names", Path(), joined, "what the config names as train_images, "
                                                                   "train_annotations, val_images, ...")


def _sources(split: str, images: list[str] | None, annotations: list[str] | None) -> list[Source]:
    if not images or not annotations or len(images) != len(annotations):
        raise UserError(f"{split}_images and {split}_annotations must name as many places, got {images!r} and "
                        f"{annotations!r}")
    sources = [_source(split, Path(folder), Path(place)) for folder, place in zip(images, annotations)]
    for source in sources:
        source.needs_labels = split != "test"
    return sources


def _source(split: str, images: Path, place: Path) -> Source:
    if not images.is_dir():
        raise UserError(f"{split}_images: no folder {images}")
    title = f"{split} {images.name}"
    if place.is_file() and place.suffix.lower() == ".json":
        return CocoSource(title, place, images, with_root=place.name == ROBOFLOW)
    if place.is_file() and place.parts[-3:-1] == ("ImageSets", "Main"):
        return VocSource(title, place.parents[2] / "Annotations", images, place)
    if place.is_dir() and xml_files(place):
        return VocSource(title, place, images, None)
    if place.is_dir() and (listed := names_file(place)):
        return YoloSource(title, listed, images, image_files(images), _names(listed), labels=place)
    raise UserError(f"{split}_annotations: {place} is no COCO file (.json), no folder of Pascal VOC's .xml files or "
                    f"list in ImageSets/Main, and no folder of YOLO's label files with a {NAME_FILES[0]}")


def names_file(labels: Path) -> Path | None:
    """The list of the classes of a folder of label files: in it, or in one of the two folders above."""
    folders = (labels, *Path(os.path.abspath(labels)).parents[:2])
    return next((folder / name for folder in folders for name in NAME_FILES if (folder / name).is_file()), None)


def _names(path: Path) -> list[str]:
    names = [line.strip() for line in read_text(path).rstrip().splitlines()]
    if not names or not all(names) or len(set(names)) < len(names):
        raise UserError(f"{path}: each line must name a class of its own")
    return names
