"""Image files of a folder, and what their headers say."""
import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from datasets.annotations import Problem
from datasets.images import orientation_of, upright_size

SUFFIXES = {".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".mpo", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def image_files(folder: Path) -> list[Path]:
    """In and below the folder, sorted."""
    return sorted(Path(parent, name) for parent, _, names in os.walk(folder) for name in names
                  if os.path.splitext(name)[1].lower() in SUFFIXES)


def header_size(path: Path) -> tuple[int, int]:
    """Width and height of the upright picture; (1, 1) for a file that cannot be read, which reading it will say."""
    try:
        with Image.open(path) as image:
            return upright_size(image.size, orientation_of(image))
    except Exception:  # PIL raises many kinds for broken files
        return 1, 1


def of_one_name(images: Iterable[Path]) -> tuple[list[Path], list[Problem]]:
    """The images that have their folder's only file of that name but for the suffix, and the others as problems: it
    is unknown which of them a label file is about."""
    groups = defaultdict(list)
    for image in images:
        groups[image.with_suffix("")].append(image)
    shared = [group for group in groups.values() if len(group) > 1]
    return ([group[0] for group in groups.values() if len(group) == 1],
            [Problem("repeated_name", f"{' and '.join(map(str, group))} are images of one name, and it is unknown "
                                      "which of them the annotations are about", {}) for group in shared])
