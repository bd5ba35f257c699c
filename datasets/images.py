"""Image files as training, evaluation and detection see them: upright, RGB, 8 bits per channel."""
import logging
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from util.errors import UserError

logger = logging.getLogger(__name__)

ORIENTATION = 0x0112  # the EXIF tag
UPRIGHT = {  # its values other than 1: what turns the stored picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90}
IGNORED_SHARE = 100_000  # of as many pixels, the darkest and the brightest do not count in the range of an image
_said: set[str] = set()  # kinds of images that the log has told of


def read_image(path: str | os.PathLike, annotated_size: tuple[float, float] | None = None,
               within: tuple[int, int] | None = None) -> Image.Image:
    """The first picture of a file in RGB, upright as its EXIF orientation says. Transparency is ignored.

    Grey values of more than 8 bits are scaled to 0..255 from the range of the image, without its IGNORED_SHARE darkest
    and brightest pixels; the log says so once.

    annotated_size: (width, height) of the picture that the boxes belong to. If only the picture as it is stored has
    that size, it is left as it is stored. within: (width, height) that the picture is scaled to fill as far as its
    proportions allow; a JPEG is then decoded at a half or less, where that is enough. Raises UserError with the file's
    name if it cannot be read, or has another size.
    """
    try:
        with Image.open(Path(path)) as image:
            note_kind(image, path)
            stored, orientation = image.size, orientation_of(image)
            size = upright_size(stored, orientation)
            if annotated_size is not None and size != annotated_size == stored:
                orientation = 1
            rgb = to_rgb(image) if within is None else _fitted(image, upright_size(within, orientation))
    except Exception as error:  # PIL raises many kinds for broken files
        raise UserError(f"cannot read the image {path}: {str(error) or type(error).__name__}") from error
    if annotated_size is not None and annotated_size not in (size, stored):
        raise UserError(f"cannot use the image {path}: it is {size[0]}x{size[1]} px, the annotations say "
                        f"{annotated_size[0]}x{annotated_size[1]}")
    return rgb.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else rgb


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation that PIL has left to apply, 1 to 8."""
    if image.format == "TIFF":  # PIL turns those itself
        return 1
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # broken EXIF data beside a sound picture
        return 1
    return value if value in UPRIGHT else 1


def upright_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """(width, height) of a stored picture once it is turned."""
    return size[::-1] if orientation >= 5 else size


def upright_box(box: list[float], size: tuple[float, float], orientation: int) -> list[float]:
    """The box [x, y, width, height] of a stored picture of `size` (width, height), once that is turned."""
    x, y, width, height = box
    right, below = size[0] - x - width, size[1] - y - height
    return {1: [x, y, width, height], 2: [right, y, width, height], 3: [right, below, width, height],
            4: [x, below, width, height], 5: [y, x, height, width], 6: [below, x, height, width],
            7: [below, right, height, width], 8: [y, right, height, width]}[orientation]


def note_headers(files: Iterable[tuple[Path, tuple[float, float]]], title: str) -> None:
    """Logs what is special about image files, given with their annotated (width, height). Broken ones are passed
    over."""
    stored = []
    for path, annotated_size in files:
        try:
            with Image.open(path) as image:
                note_kind(image, path)
                size, orientation = image.size, orientation_of(image)
        except Exception:  # reading it will say so
            continue
        if annotated_size == size != upright_size(size, orientation):
            stored.append(path.name)
    if stored:
        logger.warning("%s: %d images, such as %s, have an EXIF orientation that turns them, but are annotated with "
                       "their size before: boxes are taken for those of the stored picture, which training and "
                       "evaluation then see, unlike tools/detect.py. Look whether they fit; "
                       "tools/inspect_dataset.py --fix turns them", title, len(stored), ", ".join(stored[:3]))


def note_kind(image: Image.Image, path: str | os.PathLike) -> None:
    """Logs, the first time, that images of this kind lose something when they are read."""
    if _is_deep(image.mode):
        _say_once(f"images of more than 8 bits ({image.mode})", "each is scaled to 8 bits from its own range of "
                  f"values, but for 1 in {IGNORED_SHARE:,} pixels at either end", path)
    elif ";16" in str(getattr(image, "tile", "")):  # PIL's decoder drops the lower bits
        _say_once("colour images of 16 bits per channel", "only the upper 8 bits of each are read, which are dark "
                  "where the values do not reach 65535", path)
    if getattr(image, "is_animated", False) and image.format != "MPO":  # of MPO, photos have a preview
        _say_once("files of several pictures", "only the first is read", path)


def find_files(folder: Path, names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """By the file names of annotations, what the files inside `folder` are called below it; and the names that there
    is no file for.

    A name is found too if it differs from the file's only in its slashes, in the form of its accents or in upper and
    lower case, and no other name means that file. Raises UserError for a name that leads outside the folder.
    """
    top = {entry.name for entry in os.scandir(folder) if entry.is_file()}
    found, others = {}, []
    for name in names:
        if name in top:
            found[name] = name
        elif os.path.isfile(path := inside(folder, name.replace("\\", "/"))):
            found[name] = path.relative_to(os.path.normpath(folder)).as_posix()
        else:
            others.append(name)
    files = _spelled_files(folder, set(found.values())) if others else {}
    written_otherwise = {name: files[spelling(name)][0] for name in others if len(files.get(spelling(name), ())) == 1}
    if written_otherwise:
        name, file_name = next(iter(written_otherwise.items()))
        logger.info("%s: %d file names, such as %r, differ from the file's (%r) in accents or in upper and lower case",
                    folder.name, len(written_otherwise), name, file_name)
    return found | written_otherwise, [name for name in others if name not in written_otherwise]


def _spelled_files(folder: Path, taken: set[str]) -> dict[str, list[str]]:
    """The files in and below the folder, but for those in `taken`, by their spelling."""
    files = defaultdict(list)
    for directory, _, names in os.walk(folder):
        for name in (os.path.relpath(os.path.join(directory, name), folder) for name in names):
            if name not in taken:
                files[spelling(name)].append(name)
    return files


def spelling(name: str) -> str:
    """The same for names that differ in slashes, in the form of accents or in upper and lower case only."""
    return unicodedata.normalize("NFC", os.path.normpath(name.replace("\\", "/"))).casefold()


def inside(folder: Path, name: str) -> Path:
    """The path of an annotation's file name below `folder`. Raises UserError if it leads outside."""
    path = Path(os.path.normpath(folder / name))
    if not path.is_relative_to(os.path.normpath(folder)):
        raise UserError(f"the file name {name!r} leads outside {folder}")
    return path


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture as it is stored, in RGB; see read_image. Raises ValueError for PostScript, whatever its file's name:
    Pillow would run it in Ghostscript, and it is a program."""
    if image.format == "EPS":
        raise ValueError("it is PostScript, which is a program and is not run: save the picture as a PNG")
    return (_in_8_bits(image) if _is_deep(image.mode) else image).convert("RGB")


def _fitted(image: Image.Image, within: tuple[int, int]) -> Image.Image:
    """to_rgb of a picture that has not been decoded yet, scaled into (width, height)."""
    factor = min(most / side for most, side in zip(within, image.size))
    width, height = (max(1, round(side * factor)) for side in image.size)
    drafted = image.draft(None, (width, height))
    # The last column and row of a decoded half may show only half a pixel more: the box is where the picture ends.
    box = drafted[1] if drafted else (0, 0, *image.size)
    return to_rgb(image).resize((width, height), Image.Resampling.BILINEAR, box=box)


def _say_once(what: str, text: str, path: str | os.PathLike) -> None:
    if what not in _said:
        _said.add(what)
        logger.warning("%s, such as %s: %s", what, path, text)


def _is_deep(mode: str) -> bool:
    return mode[0] in "IF"


def _in_8_bits(image: Image.Image) -> Image.Image:
    """Grey values of any range as 0..255; NaN and -infinity as 0, infinity as 255."""
    values = np.asarray(image).astype(np.float64)
    finite = values[np.isfinite(values)]
    if not finite.size:
        return Image.new("L", image.size)
    ignored = finite.size // IGNORED_SHARE
    low, high = np.partition(finite, (ignored, -1 - ignored))[[ignored, -1 - ignored]]
    if low == high:  # small things on an even background
        low, high = finite.min(), finite.max()
    scaled = (np.nan_to_num(values, nan=low, posinf=high, neginf=low).clip(low, high) - low) / ((high - low) or 1)
    return Image.fromarray((255 * scaled).round().astype(np.uint8))
