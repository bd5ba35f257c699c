"""What to do with a folder of no known layout: what it seems to hold, and how the options name its places."""
import os
import shlex
from collections.abc import Iterable
from pathlib import Path

from datasets.annotations import SPLITS
from datasets.formats.coco import ROBOFLOW
from datasets.formats.listing import is_image
from datasets.formats.places import NAME_FILES, names_file

WORDS = {"train": ("train", ""), "val": ("val", "valid", "validation"), "test": ("test",)}  # as folders are called


def advice(path: Path) -> str:
    """A sentence for the error about a path."""
    for seen in (_sets_inside, _yaml_files, _named_labels, _xml_files, _json_files, _labels):
        if found := seen(path):
            return found
    return "Files in other places are named in the config: train_images, train_annotations, val_images, ..."


def _sets_inside(path: Path) -> str:
    marks = ["data.yaml", "Annotations", f"train/{ROBOFLOW}", SPLITS["train"][1]]
    sets = [folder for folder in _folders(path) if any((folder / mark).exists() for mark in marks)]
    voc = [folder for folder in sets if (folder / "ImageSets/Main/train.txt").is_file()]
    if len(voc) < 2:
        return sets and f"But {' and '.join(map(str, sets))} may: pass that as --data" or ""
    places = {split: (_listed(folder / "JPEGImages" for folder in voc),
                      _listed(folder / f"ImageSets/Main/{split}.txt" for folder in voc)) for split in ("train", "val")}
    return f"But {' and '.join(map(str, voc))} do: pass one of them, or all. {_places(places)}"


def _yaml_files(path: Path) -> str:
    found = sorted(_files([path], ".yaml") + _files([path], ".yml"))
    return f"If {' or '.join(map(str, found))} describes a YOLO data set, pass that file as --data" if found else ""


def _named_labels(path: Path) -> str:
    """Label files with a list of the classes, beside which other programs write files of other kinds."""
    return _labels(path) if any((folder / name).is_file() for folder in _near(path) for name in NAME_FILES) else ""


def _labels(path: Path) -> str:
    found = _by_split(path, ".txt", besides={"train.txt", "valid.txt", "val.txt", "test.txt", *NAME_FILES})
    places = {split: file.parent for split, file in found.items()}
    named = all(map(names_file, places.values()))
    return places and _places(_with_images(path, places)) + (
        "" if named else f", with {NAME_FILES[0]} among the label files: the name of a class in each line") or ""


def _xml_files(path: Path) -> str:
    found = _by_split(path, ".xml")
    return found and _places(_with_images(path, {split: file.parent for split, file in found.items()})) or ""


def _json_files(path: Path) -> str:
    if path.is_dir():
        found = _by_split(path, ".json")
    else:
        found, path = {"train": path} if path.suffix.lower() == ".json" else {}, path.parent
        path = path.parent if path.name == "annotations" else path
    return found and _places(_with_images(path, found)) or ""


def _by_split(path: Path, suffix: str, besides: Iterable[str] = ()) -> dict[str, Path]:
    """For each split, the first file with that suffix whose name or folder says so; all others are of the train set."""
    found: dict[str, Path] = {}
    for file in _files(_near(path), suffix):
        words = f"{file.parent.relative_to(path)} {file.stem}".lower()
        split = next((name for name in ("val", "test") if name in words), "train")
        if file.name not in besides and not file.name.lower().startswith("readme"):
            found.setdefault(split, file)
    return found


def _with_images(path: Path, annotations: dict[str, Path]) -> dict[str, tuple[str, str]]:
    """By split, where its images seem to lie, and its annotations."""
    places = {}
    for split, place in annotations.items():
        beside = place if place.is_dir() else place.parent
        folders = [path / base / word / last for word in WORDS[split] for base in ("images", "")
                   for last in ("", "images")]
        folder = next((one for one in [*folders, beside, path / "images", *_folders(path)] if _has_images(one)), None)
        places[split] = (str(folder or "FOLDER_OF_IMAGES"), str(place))
    return places


def _places(places: dict[str, tuple[str, str]]) -> str:
    words = [shlex.quote(f"{split}_{what}={place}") for split, both in sorted(places.items())
             for what, place in zip(("images", "annotations"), both)]
    rest = [] if "val" in places else ["val_fraction=0.1"]
    return f"Its places are named so, in place of --data: --options {' '.join(words + rest)}"


def _listed(paths: Iterable[Path]) -> str:
    return f"[{','.join(map(str, paths))}]"


def _near(path: Path) -> list[Path]:
    """The folder, those in it, and those in them."""
    return [path, *(inner for folder in _folders(path) for inner in (folder, *_folders(folder)))]


def _folders(path: Path) -> list[Path]:
    inside = path.iterdir() if path.is_dir() else ()
    return sorted(folder for folder in inside if folder.is_dir() and not folder.name.startswith("."))


def _files(folders: Iterable[Path], suffix: str) -> list[Path]:
    return [file for folder in folders if folder.is_dir() for file in sorted(folder.iterdir())
            if file.suffix.lower() == suffix and not file.name.startswith(".") and file.is_file()]


def _has_images(folder: Path) -> bool:
    return folder.is_dir() and any(is_image(name) for name in os.listdir(folder))
