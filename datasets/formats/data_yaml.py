"""The file that describes a YOLO data set: data.yaml, or another name."""
import logging
import math
import os
from pathlib import Path
from typing import Any

import yaml

from datasets.formats.inner_paths import below, inner_path, listed_images
from datasets.formats.listing import image_files, read_text
from datasets.formats.source import Layout
from datasets.formats.yolo import YoloSource
from util.errors import UserError

logger = logging.getLogger(__name__)
KEYS = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}
NONE = ("", "~", "null", "Null", "NULL")


def yolo(path: Path) -> Layout | None:
    """path: the folder of the yaml file, or the file. A val or test set that is named but not there is left out:
    exports name those that they lack."""
    described = path if path.is_file() else _yaml_in(path)
    if described is None or described.suffix not in (".yaml", ".yml"):
        return None
    content = _read(described)
    names, keypoints = _names(content, described), _keypoints(content, described)
    root = _root(content, described)
    sources = {}
    for split, keys in KEYS.items():
        entries = next((content[key] for key in keys if content.get(key, "") not in NONE), None)
        if entries is None:
            continue
        texts = _texts(entries, keys[0], described)
        try:
            places = [below(described.parent, root, text, f"{described}: {split}: {text!r}") for text in texts]
        except UserError as error:
            if split == "train":
                raise
            logger.warning("%s. There is no %s set then", error, split)
            continue
        sources[split] = _source(described, root, split, places, names, keypoints)
    return Layout("YOLO", described.parent, sources, f"what 'train:', 'val:' and 'test:' in {described.name} name")


def _yaml_in(folder: Path) -> Path | None:
    """data.yaml, or the only other yaml file, if it lists names."""
    found = sorted(path for suffix in ("yaml", "yml") for path in folder.glob(f"*.{suffix}") if path.is_file())
    other = found[0] if len(found) == 1 and b"names" in found[0].read_bytes() else None
    return next((path for path in found if path.stem == "data"), other)


class _Loader(yaml.SafeLoader):
    """Every word is text: YAML reads the class `no` as False, 010 as 8 and 12:30 as 750. No key may be there twice."""

    yaml_implicit_resolvers: dict = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        found = super().construct_mapping(node, deep)
        if len(found) < len(node.value):
            raise yaml.constructor.ConstructorError(None, None, "a key is there twice", node.start_mark)
        return found


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(read_text(path), _Loader)  # a SafeLoader
    except (yaml.YAMLError, OSError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: not the description of a YOLO data set, it holds a {type(content).__name__}")
    return content


def _names(content: dict[str, Any], path: Path) -> list[str]:
    names, count = content.get("names"), content.get("nc")
    if isinstance(names, dict):
        if set(names) != set(map(str, range(len(names)))):
            raise UserError(f"{path}: the numbers of the 'names' must be 0, 1, .. {len(names) - 1}, got "
                            f"{', '.join(sorted(map(str, names))[:5])}")
        names = [names[str(i)] for i in range(len(names))]
    if not isinstance(names, list) or not names:
        raise UserError(f"{path}: 'names' must list the classes")
    if not all(isinstance(name, str) and name.strip() for name in names) or len(set(names)) < len(names):
        raise UserError(f"{path}: each of the 'names' must be a text that no other has, got {names[:10]}")
    if count is not None and count != str(len(names)):
        raise UserError(f"{path}: nc is {count}, but there are {len(names)} 'names'")
    return names


def _keypoints(content: dict[str, Any], path: Path) -> int:
    """How many numbers of keypoints follow each box."""
    shape = content.get("kpt_shape")
    if shape is None:
        return 0
    if not isinstance(shape, list) or not all(isinstance(word, str) and word.isdecimal() for word in shape):
        raise UserError(f"{path}: kpt_shape must be two numbers, got {shape!r}")
    return math.prod(map(int, shape))


def _root(content: dict[str, Any], described: Path) -> Path:
    """The folder that the splits are relative to; `path` of another machine is passed over."""
    root, path = described.parent, content.get("path")
    if not isinstance(path, str) or path in NONE:
        return root
    found, _ = inner_path(root, path)
    return found if found is not None and os.path.isdir(found) else root


def _texts(entries: Any, key: str, described: Path) -> list[str]:
    texts = entries if isinstance(entries, list) else [entries]
    if not all(isinstance(text, str) and text.strip() and "\0" not in text for text in texts):
        raise UserError(f"{described}: {key!r} must be a path or a list of paths, got {entries!r}")
    return texts


def _source(described: Path, root: Path, split: str, places: list[Path], names: list[str],
            keypoints: int) -> YoloSource:
    """places: folders of images, or text files that list images."""
    images: list[Path] = []
    for place in places:
        images += image_files(place) if place.is_dir() else listed_images(place, described.parent, root)
    single = places[0] if len(places) == 1 and places[0].is_dir() else described.parent
    repeated = len(images) - len(set(images))
    if repeated:
        logger.warning("%s: %s lists %d images more than once: read once", described, split, repeated)
    return YoloSource(f"{described.parent.name} {split}", described, single, sorted(set(images)), names,
                      keypoints=keypoints)
