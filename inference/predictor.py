"""A trained detector for images, folders, videos and cameras.

    predictor = Predictor("weights/bccd_lite_dino.safetensors", device="cuda")
    for found in predictor("street.jpg"):
        print(found.name, found.score, found.box)
"""
import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from inference.backends import Backend
from inference.frames import Frame, prefetched
from inference.results import Detections
from inference.scores import DEFAULT, Score, score_limits
from inference.sources import open_source
from inference.tiles import SUPPORT, Window, checked_tiles, merged, windows
from util.class_names import ClassNames
from util.errors import UserError
from util.model_card import ModelCard

EXPORTED = (".onnx", ".xml", ".pt2")
AHEAD = 2  # batches that wait, decoded and resized, while the detector runs


class Predictor:
    """One interface for weights and exported files.

    source: weights (.pth, .safetensors, an https address, a name that tools/zoo.py lists), an exported file (.onnx,
    .xml, .pt2), or a Backend.
    config: a config file; without one, what the weights carry. options: "KEY=VALUE" each, override its keys;
    num_queries and dec_layers may be fewer than the weights have. dtype: "float32", "float16" or "bfloat16", in which
    weights are kept and computed with, except for what becomes coordinates and scores; "auto": bfloat16 where this
    device is clearly faster in it, else float32. amp: the half precision that suits the device, where dtype is not
    given. compile: torch.compile, see CompiledDetector. Raises UserError for files that are missing, unreadable or do
    not fit each other, and for arguments that an exported file cannot follow.

    card: what is known of the detector. class_names: of its category ids.
    """

    def __init__(self, source: str | os.PathLike | Backend, config: str | os.PathLike | None = None, *,
                 options: list[str] | None = None, device: str | torch.device = "cpu", amp: bool = False,
                 dtype: str | None = None, compile: bool = False):
        self.backend: Backend = (source if isinstance(source, Backend)
                                 else open_backend(source, config, options, device, amp, dtype, compile))

    @property
    def card(self) -> ModelCard:
        return self.backend.card

    @property
    def class_names(self) -> ClassNames:
        return self.card.class_names

    def __call__(self, source: Any, score: Score = DEFAULT, batch_size: int = 1,
                 tiles: int | tuple[int, int] | None = None, overlap: float = 0.2, stream: bool = False) -> Any:
        """Detections of one image; of several images, or of the frames of a video, a list, or with stream=True a
        generator, which needs the same memory for any number of them.

        source: a path, a folder, a pattern such as "*.jpg", a PIL image, an array uint8 [H, W, 3] (RGB) or [H, W], a
        tensor uint8 [3, H, W], a video, the number of a camera or an rtsp address (these two only with stream=True), or
        a list of these. What cannot be read is logged and left out, but is an error if it is the only source.
        score: see inference.scores.score_limits. batch_size: images at once; what is found does not depend on it.
        tiles: side in px, or (height, width), of overlapping parts in which large images are searched; overlap: the
        part of a side that neighbours share. The results of a stream keep their images, for `draw`.
        """
        frames = open_source(source)
        search = Search(score_limits(score, self.card), _checked_batch_size(batch_size),
                        None if tiles is None else checked_tiles(tiles, overlap), overlap)
        if frames.live and not stream:
            raise UserError("a camera or an address may never end: pass stream=True")
        if frames.single and not stream:
            (found,) = self._results(frames, search)
            return found
        results = self._results(prefetched_inputs(self.backend, frames, search, frames.live), search)
        return results if stream else [result if not result.path else replace(result, image=None) for result in results]

    def _results(self, frames: Iterable["Frame | Prepared"], search: "Search") -> Iterator[Detections]:
        """Of frames that are prepared already, or are prepared here."""
        images = (frame if isinstance(frame, Prepared) else prepared(self.backend, frame, search) for frame in frames)
        while batch := list(itertools.islice(images, search.batch_size)):
            inputs = (part for image in batch for part in image.inputs)
            sizes = ((right - left, bottom - top) for image in batch for left, top, right, bottom in image.parts)
            found: list[dict[str, Tensor]] = []
            while chosen := list(itertools.islice(inputs, search.batch_size)):
                found += self.backend.detect(chosen, list(itertools.islice(sizes, len(chosen))))
            for image in batch:
                own, found = found[:len(image.parts)], found[len(image.parts):]
                yield self._result(image, own, search)

    def _result(self, image: "Prepared", found: list[dict[str, Tensor]], search: "Search") -> Detections:
        frame = image.frame
        if len(found) == 1:
            rows = search.above_limits(found[0])
        else:
            parts = [search.above_limits(part, SUPPORT) for part in found]
            rows = merged(list(zip(image.parts, parts)), frame.image.size, search.limits)
        return Detections(rows["boxes"], rows["scores"], rows["labels"], self.class_names, frame.image.size, frame.path,
                          frame.number, frame.time, frame.image)


@dataclass(frozen=True)
class Search:
    """How images are searched. limits [num_classes]: the least scores. tiles: (height, width) px, or None."""

    limits: Tensor
    batch_size: int = 1
    tiles: tuple[int, int] | None = None
    overlap: float = 0.2

    def above_limits(self, found: dict[str, Tensor], factor: float = 1.0) -> dict[str, Tensor]:
        """The detections of at least the least score, times a factor. A box that is no number is none."""
        labels = found["labels"]
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.limits):
            raise UserError(f"the detector found the category id {int(labels.max())}, but its metadata say "
                            f"num_classes={len(self.limits)}")
        keep = (found["scores"] >= factor * self.limits[labels]) & found["boxes"].isfinite().all(1)
        return {name: value[keep] for name, value in found.items()}


@dataclass(frozen=True)
class Prepared:
    """A frame, its parts, and each of them resized for the detector, uint8 [3, h, w]; of several only when its turn
    comes: many tiles at once would not fit into memory."""

    frame: Frame
    parts: list[Window]
    inputs: Iterable[Tensor]


def prepared(backend: Backend, frame: Frame, search: Search) -> Prepared:
    size = frame.image.size
    try:
        parts = [(0, 0, *size)] if search.tiles is None else windows(size, search.tiles, search.overlap)
    except UserError as error:
        raise UserError(f"{frame.path or 'an image in memory'}: {error}") from error

    def resized(part: Window) -> Tensor:
        image = frame.image if part == (0, 0, *size) else frame.image.crop(part)
        return F.pil_to_tensor(F.resize(image, backend.input_size(*image.size)))

    return Prepared(frame, parts, map(resized, parts) if len(parts) > 1 else [resized(parts[0])])


def prefetched_inputs(backend: Backend, frames: Iterable[Frame], search: Search, live: bool) -> Iterator[Prepared]:
    """Prepared in a thread while the detector runs; of a live source only the newest frame waits."""
    images = (prepared(backend, frame, search) for frame in frames)
    return prefetched(images, AHEAD * search.batch_size, newest=live)


def default_device(source: str | os.PathLike) -> str:
    """"cuda" where there is a GPU and the detector of this source, see Predictor, runs on it, else "cpu"."""
    suffix = Path(source).suffix.lower()
    if suffix == ".onnx":
        from inference.backends import onnx

        return "cuda" if onnx.runs_on_cuda() else "cpu"
    return "cuda" if suffix not in EXPORTED and torch.cuda.is_available() else "cpu"


def open_backend(source: str | os.PathLike, config: str | os.PathLike | None = None, options: list[str] | None = None,
                 device: str | torch.device = "cpu", amp: bool = False, dtype: str | None = None,
                 compile: bool = False) -> Backend:
    """What runs the weights or the exported file `source`, see Predictor."""
    suffix = Path(source).suffix.lower()
    if suffix not in EXPORTED:
        from inference.backends import torch_model

        return torch_model.open_backend(source, device, config=config, options=options, amp=amp, dtype=dtype,
                                        compile=compile)
    if config is not None or options or amp or dtype is not None or compile:
        raise UserError(f"{source} is an exported file: its config, options and precision were chosen when it was "
                        "written, and it is not compiled again")
    if not Path(source).is_file():
        raise UserError(f"no file {source}")
    if suffix == ".onnx":
        from inference.backends import onnx

        return onnx.open_backend(Path(source), str(device))
    if suffix == ".xml":
        from inference.backends import openvino

        return openvino.open_backend(Path(source), str(device))
    from inference.backends import pt2

    return pt2.open_backend(Path(source), str(device))


def _checked_batch_size(batch_size: int) -> int:
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise UserError(f"batch_size {batch_size!r} must be a whole number from 1")
    return batch_size
