"""Transforms of the user's own in a training: config key data_aug_extra, which names Python code.

They are of torchvision (v2) or an Albumentations pipeline; either is told by what the named function returns.
"""
import contextlib
import copy
import importlib
import importlib.util
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from datasets.transforms import keep_boxes, resize
from util.errors import UserError, nearest

# Of image [3, H, W] uint8, boxes [n, 4] xyxy px, and numbers [n] of the boxes: the same afterwards.
Change = Callable[[Tensor, Tensor, Tensor], tuple[Any, Any, Any]]


class Extra:
    """The transforms that `path` names, applied to an image tensor and its target.

    path: "package.module:name" or "path/to/file.py:name" of a function without arguments that returns them. Runs that
    code. Raises UserError if it cannot be found or run and, when it is used, if what comes back is no image with its
    boxes.

    An image that has become larger is scaled back into its size. Boxes are cut at the border; those without a part in
    the image are dropped. A box that has become larger or smaller has its area changed in proportion. Random numbers of
    torch, NumPy, Python and Albumentations follow from torch's.
    """

    def __init__(self, path: str):
        self.path = path
        function = _named(path)
        try:
            made = function()
        except Exception as error:
            raise UserError(f"data_aug_extra={path}: the call fails: {type(error).__name__}: {error}") from error
        self.change = _change(made, path)

    def __reduce__(self) -> tuple:
        return Extra, (self.path,)  # what a file defines cannot be pickled

    def __call__(self, image: Tensor, target: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        boxes = target["boxes"].as_subclass(Tensor)
        with seeded():
            changed, its_boxes, numbers = self.change(image, boxes, torch.arange(len(boxes)))
        fault = _fault(changed, its_boxes, numbers, len(boxes))
        if fault:
            raise UserError(f"data_aug_extra={self.path}: {fault}")
        numbers = numbers.long()
        return _fitted(changed, _taken(target, its_boxes.float(), numbers, changed.shape[1:]), image.shape[1:])


def _named(path: str) -> Callable[[], Any]:
    where, _, name = path.rpartition(":")
    if not where or not name:
        raise UserError(f"data_aug_extra={path} must be package.module:name or path/to/file.py:name")
    try:
        module = _file_module(Path(where)) if where.endswith(".py") else importlib.import_module(where)
    except UserError:
        raise
    except ModuleNotFoundError as error:
        lacking = str(error.name)
        advice = "" if where == lacking or where.startswith(f"{lacking}.") else (
            f", which {where} imports: pip install {lacking.partition('.')[0]}")
        raise UserError(f"data_aug_extra={path}: there is no module {lacking}{advice}") from error
    except Exception as error:
        raise UserError(f"data_aug_extra={path}: {where} does not run: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value)]
        raise UserError(f"data_aug_extra={path}: {where} has no function {name!r}.{nearest(name, known)}")
    return function


def _file_module(file: Path) -> Any:
    if not file.is_file():
        raise UserError(f"data_aug_extra: there is no file {file}")
    spec = importlib.util.spec_from_file_location(f"data_aug_extra_{file.stem}", file)
    assert spec is not None and spec.loader is not None  # it ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its classes look for it
    spec.loader.exec_module(module)
    return module


def _change(made: Any, path: str) -> Change:
    if isinstance(made, v2.Transform):
        return lambda *given: _by_torchvision(made, *given)
    library = sys.modules.get("albumentations")
    if library is not None and isinstance(made, (library.BaseCompose, library.BasicTransform)):
        pipeline = _with_boxes(library, made)
        return lambda *given: _by_albumentations(pipeline, *given)
    raise UserError(f"data_aug_extra={path} must return a transform of torchvision.transforms.v2 or an Albumentations "
                    f"pipeline, not {type(made).__name__}")


def _by_torchvision(transform: v2.Transform, image: Tensor, boxes: Tensor, numbers: Tensor) -> tuple[Any, Any, Any]:
    given = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=tuple(image.shape[1:]))
    result = transform(tv_tensors.Image(image), {"boxes": given, "labels": numbers})
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
        return result, None, None
    changed, target = result
    boxes = target.get("boxes")
    if isinstance(boxes, tv_tensors.BoundingBoxes):
        boxes = F.convert_bounding_box_format(boxes, new_format="XYXY").as_subclass(Tensor)
    return changed.as_subclass(Tensor) if isinstance(changed, Tensor) else changed, boxes, target.get("labels")


def _with_boxes(library: Any, made: Any) -> Any:
    """A pipeline that takes boxes as they are here, with the limits (min_area, ...) of the given one's bbox_params."""
    whole = isinstance(made, library.Compose)
    given = made.processors.get("bboxes") if whole else None
    params = copy.copy(given.params) if given else library.BboxParams("pascal_voc")
    params.format, params.label_fields, params.clip = "pascal_voc", ["labels"], True
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Got processor for bboxes")  # where no transform moves them
        return library.Compose(list(made.transforms) if whole else [made], bbox_params=params,
                               p=made.p if whole else 1.0)


def _by_albumentations(pipeline: Any, image: Tensor, boxes: Tensor, numbers: Tensor) -> tuple[Any, Any, Any]:
    pipeline.set_random_seed(random.getrandbits(31))
    result = pipeline(image=np.ascontiguousarray(image.permute(1, 2, 0).numpy()), bboxes=boxes.numpy(),
                      labels=numbers.numpy())
    changed, kept = result["image"], np.asarray(result["bboxes"], np.float32).reshape(-1, 4)
    if isinstance(changed, np.ndarray) and changed.ndim == 3:
        changed = torch.from_numpy(np.ascontiguousarray(changed)).permute(2, 0, 1)
    return changed, torch.from_numpy(kept), torch.from_numpy(np.asarray(result["labels"], np.float32))


def _fault(image: Any, boxes: Any, numbers: Any, count: int) -> str:
    """What is wrong with a result, for `count` boxes before; empty if nothing is."""
    if not (isinstance(image, Tensor) and image.dtype == torch.uint8 and image.ndim == 3 and image.shape[0] == 3
            and image.numel()):
        found = f"{image.dtype} {list(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        return f"the result must be an image, uint8 [3, height, width], and its boxes; it is {found}"
    if not (isinstance(boxes, Tensor) and isinstance(numbers, Tensor) and boxes.ndim == 2 and boxes.shape[1] == 4):
        return "the result has no boxes [n, 4] with labels [n]"
    if len(boxes) != len(numbers):
        return (f"the result has {len(boxes)} boxes, but {len(numbers)} labels: what drops boxes must drop their "
                "labels too, as torchvision's SanitizeBoundingBoxes does")
    if not boxes.isfinite().all() or (boxes[:, 2:] < boxes[:, :2]).any():
        return f"the result has a broken box, such as {_broken(boxes)}"
    if numbers.numel() and not ((numbers >= 0) & (numbers < count) & (numbers == numbers.long())).all():
        return "the result has other labels than the image had: they number its boxes, and are no classes"
    return ""


def _broken(boxes: Tensor) -> list[float]:
    wrong = ~boxes.isfinite().all(1) | (boxes[:, 2:] < boxes[:, :2]).any(1)
    return boxes[wrong][0].tolist()


def _taken(target: dict[str, Any], boxes: Tensor, numbers: Tensor, size: torch.Size) -> dict[str, Any]:
    """The target with the boxes of these numbers as they have become in an image of `size` (height, width)."""
    height, width = size
    before = target["boxes"].as_subclass(Tensor)[numbers]
    boxes = torch.minimum(boxes.clamp(min=0), torch.tensor([width, height, width, height]))
    (old, new) = ((corners[:, 2:] - corners[:, :2]).prod(1) for corners in (before, boxes))
    rest = {name: target[name][numbers] for name in ("labels", "area", "iscrowd")}
    rest["area"] = rest["area"] * (new / old)
    rest["boxes"] = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width))
    return keep_boxes(target | rest, (boxes[:, 2:] > boxes[:, :2]).all(1))


def _fitted(image: Tensor, target: dict[str, Any], size: torch.Size) -> tuple[Tensor, dict[str, Any]]:
    """Scaled into (height, width), where it is larger."""
    factor = min(most / side for most, side in zip(size, image.shape[1:]))
    if factor >= 1:
        return tv_tensors.Image(image), target
    height, width = (max(1, round(side * factor)) for side in image.shape[1:])
    return resize(tv_tensors.Image(image), target, (height, width))


@contextlib.contextmanager
def seeded() -> Iterator[None]:
    """Python's and NumPy's global random numbers follow from torch's within; afterwards they go on where they were."""
    states = random.getstate(), np.random.get_state()
    seed = int(torch.randint(2**31, ()))
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
