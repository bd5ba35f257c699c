"""The files of folders: texts, images, and which of them are meant."""
import logging
import os
import stat
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from datasets.annotations import Problem
from datasets.images import orientation_of, spelling, upright_size
from util.errors import UserError

logger = logging.getLogger(__name__)
SUFFIXES = {".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".mpo", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def read_bytes(path: Path) -> bytes:
    """Raises FileNotFoundError if nothing is there, and UserError for what is no file, or cannot be read."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # reading a pipe would wait for ever
            raise UserError(f"{path}: not a file")
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def read_text(path: Path) -> str:
    """Of a file in UTF-8, with or without a byte-order mark. Raises what read_bytes does, and UserError for other
    text."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read as text in UTF-8: {error}") from error


def is_image(name: str) -> bool:
    """Whether a file of that name may be a picture. Hidden files are none: macOS and notebooks leave copies in them."""
    return os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")


def image_files(folder: Path) -> list[Path]:
    """In and below the folder, sorted. Hidden folders are left out, and so are links to folders, which the log names:
    what somebody else packed could lead anywhere."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for link in filter(os.path.islink, (os.path.join(parent, name) for name in folders)):
            logger.warning("%s is a link to a folder, which is not followed: name the folder itself", link)
        found += [Path(parent, name) for name in names if is_image(name) and os.path.isfile(os.path.join(parent, name))]
    return sorted(found)


def meant(wanted: Iterable[str], present: Iterable[str]) -> dict[str, str]:
    """By wanted name, the present one: the same, or the only one that differs in the form of its accents or in upper
    and lower case only, and that no other wanted name means. Without those that there is none for."""
    wanted, present = set(wanted), set(present)
    others = wanted - present
    found = {name: name for name in wanted & present}
    if not others:
        return found
    asked, free = Counter(map(spelling, others)), defaultdict(list)
    for name in present - wanted:
        free[spelling(name)].append(name)
    return found | {name: free[spelling(name)][0] for name in others
                    if asked[spelling(name)] == len(free[spelling(name)]) == 1}


def header_size(path: Path) -> tuple[int, int]:
    """Width and height of the upright picture; (1, 1) for a file that cannot be read, which reading it will say."""
    if not path.is_file():
        return 1, 1
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
