"""From whatever a user names to a stream of pictures: files, folders, patterns, arrays, videos, cameras."""
import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datasets.images import UPRIGHT, orientation_of, read_image, to_rgb
from inference.frames import Frame, Skipped
from inference.video import frame_count, is_address, is_video, read_video
from util.errors import UserError

MEMORY = (Image.Image, np.ndarray, Tensor)
Item = Path | str | int | Image.Image | np.ndarray | Tensor  # str: an address


@dataclass
class Source:
    """items: images, videos, or one camera or address. alone: whether it is one, named as such: what cannot be read is
    then an error, else it is skipped and counted."""

    items: list[Item]
    alone: bool
    skipped: Skipped = field(default_factory=Skipped)

    @property
    def single(self) -> bool:
        """Whether it is one image."""
        return self.alone and _is_image(self.items[0])

    @property
    def live(self) -> bool:
        """Whether it may never end."""
        return any(isinstance(item, (int, str)) for item in self.items)

    @property
    def files(self) -> list[Path]:
        return [item for item in self.items if isinstance(item, Path)]

    def frame_count(self) -> int | None:
        """How many pictures come, as far as files say."""
        counts = [1 if isinstance(item, MEMORY) or _is_image(item) else frame_count(item) for item in self.items]
        return None if None in counts else sum(count or 0 for count in counts)

    def __iter__(self) -> Iterator[Frame]:
        for place, item in enumerate(self.items):
            try:
                if isinstance(item, MEMORY):
                    yield Frame(as_image(item))
                elif isinstance(item, Path) and not is_video(item):
                    yield Frame(read_image(item), str(item))
                else:
                    yield from read_video(item, self.skipped)
            except UserError as error:
                if self.alone:
                    raise
                self.skipped.add(f"item {place}" if isinstance(item, MEMORY) else str(item), str(error))


def open_source(source: Any) -> Source:
    """Raises UserError for what is not there or cannot be a source; reads nothing yet."""
    if isinstance(source, Source):
        return source
    if isinstance(source, (list, tuple)):
        items = [item for entry in source for item in _items(entry)]
        if not items:
            raise UserError("the list of sources is empty")
        if len(items) > 1 and any(isinstance(item, (int, str)) for item in items):
            raise UserError("a camera or an address may never end: pass it alone")
        return Source(items, alone=False)
    items = _items(source)
    return Source(items, alone=len(items) == 1 and not _is_many(source))


def as_image(value: Image.Image | np.ndarray | Tensor) -> Image.Image:
    """RGB, upright. Raises UserError for arrays of another kind than uint8 [H, W, 3] or [H, W], and tensors of another
    kind than uint8 [3, H, W] or [1, H, W]."""
    if isinstance(value, Image.Image):
        try:
            orientation, rgb = orientation_of(value), to_rgb(value)
        except Exception as error:  # PIL raises many kinds for broken files, which it reads only now
            raise UserError(f"cannot read the image: {str(error) or type(error).__name__}") from error
        return rgb.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else rgb
    if isinstance(value, Tensor):
        if value.dtype != torch.uint8 or value.dim() != 3 or value.shape[0] not in (1, 3) or not value.numel():
            raise UserError(f"a tensor must be an RGB image, uint8 [3, H, W] with values from 0 to 255; this one is "
                            f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}" + _batch_advice(value))
        value = value.detach().cpu().permute(1, 2, 0).numpy()
    grey = value.ndim == 2 or value.ndim == 3 and value.shape[2] == 1
    if value.dtype != np.uint8 or not (grey or value.ndim == 3 and value.shape[2] == 3) or not value.size:
        raise UserError("an array must be an RGB image, uint8 [height, width, 3] with values from 0 to 255, or a grey "
                        f"one [height, width]; this one is {value.dtype} {list(value.shape)}" + _batch_advice(value))
    if grey:
        return Image.fromarray(np.ascontiguousarray(value.reshape(value.shape[:2]))).convert("RGB")
    return Image.fromarray(np.ascontiguousarray(value))


def _batch_advice(value: np.ndarray | Tensor) -> str:
    return ". Pass several images as a list" if value.ndim == 4 else ""


def _is_image(item: Item) -> bool:
    return isinstance(item, MEMORY) or isinstance(item, Path) and not is_video(item)


def _items(entry: Any) -> list[Item]:
    if isinstance(entry, MEMORY):
        return [entry]
    if isinstance(entry, int) and not isinstance(entry, bool):
        if entry < 0:
            raise UserError(f"camera {entry}: cameras are numbered from 0")
        return [entry]
    if isinstance(entry, str) and is_address(entry):
        return [entry]
    if not isinstance(entry, (str, os.PathLike)):
        raise UserError(f"a source must be a path, a pattern, a PIL image, an array, a tensor, the number of a camera, "
                        f"an rtsp address or a list of these, not {type(entry).__name__}")
    return list(_files(os.fspath(entry)))


def _files(name: str) -> list[Path]:
    path = Path(name)
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if _is_readable(p))
        if not found:
            raise UserError(f"no image or video in the folder {path}")
        return found
    if path.is_file():
        return [path]
    if path.exists():
        raise UserError(f"{path} is neither a file nor a folder")  # opening a pipe would wait for ever
    if glob.has_magic(name):
        found = sorted(Path(match) for match in glob.glob(name, recursive=True))
        found = [path for path in found if path.is_file()]
        if not found:
            raise UserError(f"no file matches {name}")
        return found
    if "://" in name:
        raise UserError(f"{name}: of addresses, only rtsp:// and rtsps:// can be opened; download the file")
    raise UserError(f"no file or folder {path}")


def _is_many(source: Any) -> bool:
    """Whether a path means all that is in it."""
    return isinstance(source, (str, os.PathLike)) and not is_address(str(source)) and not Path(source).is_file()


def _is_readable(path: Path) -> bool:
    """By its name. Pillow knows MPEG's, but not its pictures; PostScript is not read, see datasets.images.to_rgb."""
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN and kind != "EPS"}
    return path.is_file() and not path.name.startswith(".") and (path.suffix.lower() in known or is_video(path))
