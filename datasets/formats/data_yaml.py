"""The file that describes a YOLO data set: data.yaml, or another name."""
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from datasets.formats.listing import SUFFIXES, image_files
from datasets.formats.source import Layout
from datasets.formats.yolo import YoloSource
from util.errors import UserError

logger = logging.getLogger(__name__)
KEYS = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}
OUTSIDE = ("lies outside {root}, and a data set's own files do not choose what is read outside its folder: name the "
           "place in the config (train_images, train_annotations, ...)")


def yolo(path: Path) -> Layout | None:
    """path: the folder of the yaml file, or the file."""
    described = path if path.is_file() else _yaml_in(path)
    if described is None or described.suffix not in (".yaml", ".yml"):
        return None
    content = _read(described)
    names = _names(content, described)
    root = _root(content, described)
    sources = {}
    for split, keys in KEYS.items():
        entries = next((content[key] for key in keys if content.get(key)), None)
        if entries is not None:
            sources[split] = _source(described, root, split, _texts(entries, keys[0], described), names)
    return Layout("YOLO", described.parent, sources, f"what 'train:', 'val:' and 'test:' in {described.name} name")


def _yaml_in(folder: Path) -> Path | None:
    """data.yaml, or the only other yaml file, if it lists names."""
    found = sorted(path for suffix in ("yaml", "yml") for path in folder.glob(f"*.{suffix}"))
    other = found[0] if len(found) == 1 and b"names" in found[0].read_bytes() else None
    return next((path for path in found if path.stem == "data"), other)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: not the description of a YOLO data set, it holds a {type(content).__name__}")
    return content


def _names(content: dict[str, Any], path: Path) -> list[str]:
    names, count = content.get("names"), content.get("nc")
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise UserError(f"{path}: the numbers of the 'names' must be 0, 1, .. {len(names) - 1}, got "
                            f"{sorted(names, key=str)[:5]}")
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not names:
        raise UserError(f"{path}: 'names' must list the classes")
    names = [str(name) for name in names]
    if any(not name.strip() for name in names) or len(set(names)) < len(names):
        raise UserError(f"{path}: each of the 'names' must be a text that no other has, got {names[:10]}")
    if count is not None and count != len(names):
        raise UserError(f"{path}: nc is {count!r}, but there are {len(names)} 'names'")
    return names


def _root(content: dict[str, Any], described: Path) -> Path:
    """The folder that the splits are relative to; `path` of another machine is passed over."""
    root, path = described.parent, content.get("path")
    if not path:
        return root
    found = inner_path(root, str(path))
    return found if found is not None and found.is_dir() else root


def _texts(entries: Any, key: str, described: Path) -> list[str]:
    texts = entries if isinstance(entries, list) else [entries]
    if not all(isinstance(text, str) and text.strip() and "\0" not in text for text in texts):
        raise UserError(f"{described}: {key!r} must be a path or a list of paths, got {entries!r}")
    return texts


def _source(described: Path, root: Path, split: str, entries: list[str], names: list[str]) -> YoloSource:
    """entries: folders of images, or text files that list images."""
    places = [_found(described.parent, root, entry, f"{described}: {split}: {entry!r}") for entry in entries]
    images: list[Path] = []
    for place in places:
        images += image_files(place) if place.is_dir() else _listed(place, described.parent, root)
    single = places[0] if len(places) == 1 and places[0].is_dir() else described.parent
    repeated = len(images) - len(set(images))
    if repeated:
        logger.warning("%s: %s lists %d images more than once: read once", described, split, repeated)
    return YoloSource(f"{described.parent.name} {split}", described, single, sorted(set(images)), names)


def _listed(path: Path, top: Path, root: Path) -> Iterable[Path]:
    """The images that a text file lists, one a line: from its own folder where the path starts with a dot, else from
    the data set's."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}, which must be a folder of images or a text file that lists them: {error}"
                        ) from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            start = path.parent if line.lstrip().startswith("./") else root
            image = _found(top, start, line.strip(), f"{path}, line {number}: {line.strip()!r}", must_exist=False)
            if image.suffix.lower() not in SUFFIXES:
                raise UserError(f"{path}, line {number}: {line.strip()!r} is no image")
            yield image


def _found(top: Path, root: Path, entry: str, where: str, must_exist: bool = True) -> Path:
    """What an entry means below the folder `top`. Raises UserError if that is nothing."""
    found = inner_path(top, entry, root)
    if found is None:
        raise UserError(f"{where} {OUTSIDE.format(root=top)}")
    if must_exist and not found.exists():
        raise UserError(f"{where} is not there: there is no {found}")
    return found


def inner_path(top: Path, entry: str, root: Path | None = None) -> Path | None:
    """The path of an entry below `top`: from `root`, else from `top`, else what the end of the entry is called there,
    as for a file that was written on another machine. None: it leads outside."""
    top, entry = Path(os.path.abspath(top)), entry.replace("\\", "/").strip()
    starts = [Path(os.path.abspath(start / entry)) for start in (root or top, top)]
    inner = [path for path in starts if path.is_relative_to(top)]
    if found := next((path for path in inner if path.exists()), None):
        return found
    parts = [part for part in entry.split("/") if part not in ("", ".")]
    while parts and parts[0] == "..":
        parts.pop(0)
    for first in range(len(parts) if ".." not in parts else 0):
        tail = top.joinpath(*parts[first:])
        if tail.exists():
            logger.info("%s: %r is not there and means %s", top, entry, tail)
            return tail
    return inner[0] if inner else None
