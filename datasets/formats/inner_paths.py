"""What paths in a data set's own files mean: they lead nowhere but below its folder."""
import logging
import os
from pathlib import Path

from datasets.formats.listing import SUFFIXES, read_text
from util.errors import UserError

logger = logging.getLogger(__name__)
OUTSIDE = ("lies outside {top}, and a data set's own files do not choose what is read outside its folder: name the "
           "place in the config (train_images, train_annotations, ...)")


def listed_images(path: Path, top: Path, root: Path) -> list[Path]:
    """The images that a text file lists, one a line: from its own folder where the path starts with a dot, else from
    the data set's. Raises UserError, with the line, for what leads outside and for other files."""
    images, moved = [], []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        entry = line.strip()
        if not entry:
            continue
        where = f"{path}, line {number}: {entry!r}"
        image, is_moved = inner_path(top, entry, path.parent if entry.startswith("./") else root)
        if image is None:
            raise UserError(f"{where} {OUTSIDE.format(top=top)}")
        if image.suffix.lower() not in SUFFIXES:
            raise UserError(f"{where} is no image")
        images.append(image)
        if is_moved:
            moved.append((entry, image))
    if moved:
        logger.warning("%s: %d paths are not there and mean files below %s, such as %r: %s", path, len(moved), top,
                    *moved[0])
    return images


def below(top: Path, root: Path, entry: str, where: str) -> Path:
    """The file or folder below `top` that an entry means. Raises UserError, which begins with `where`, if it leads
    outside or there is none."""
    found, moved = inner_path(top, entry, root)
    if found is None:
        raise UserError(f"{where} {OUTSIDE.format(top=top)}")
    if not os.path.exists(found):
        raise UserError(f"{where} is not there: there is no {found}")
    if moved:
        logger.warning("%s is not there and means %s", where, found)
    return found


def inner_path(top: Path, entry: str, root: Path | None = None) -> tuple[Path | None, bool]:
    """The path of an entry below `top`: from `root`, else from `top`, else what the end of the entry is called there,
    as for a file that was written on another machine; and whether it is that. None: it leads outside."""
    top, entry = Path(os.path.abspath(top)), entry.replace("\\", "/").strip()
    starts = [Path(os.path.abspath(start / entry)) for start in (root or top, top)]
    inner = [path for path in starts if path.is_relative_to(top)]
    if found := next((path for path in inner if os.path.exists(path)), None):
        return found, False
    parts = [part for part in entry.split("/") if part not in ("", ".")]
    while parts and parts[0] == "..":
        parts.pop(0)
    for first in range(len(parts) if ".." not in parts else 0):
        tail = top.joinpath(*parts[first:])
        if os.path.exists(tail) and parts[first:] != ["images"]:  # which may be those of any split
            return tail, first > 0 or not entry.startswith("../")  # Roboflow writes ../train/images
    return (inner[0] if inner else None), False
