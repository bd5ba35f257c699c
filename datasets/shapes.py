"""How large the images of a training can become."""
from collections.abc import Iterable

import torch

from datasets.transforms import ResizeShorter, scaled, train_limits
from util.integers import round_up
from util.options import DataOptions


def mosaic_size(options: DataOptions, size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of a mosaic in place of an image of that size: the same, or the largest of the training if that
    is less; 2 px a side at least."""
    _, largest, max_size = train_limits(options)
    height, width = ResizeShorter([largest], max_size).result(*size, largest)
    width, height = (width, height) if width < size[0] else size
    return max(width, 2), max(height, 2)


def largest_train_shape(options: DataOptions, sizes: Iterable[tuple[int, int]], batch_size: int,
                        fix_size: bool = False, pad_multiple: int = 1) -> tuple[int, int]:
    """The largest (height, width) that training and padding give a batch of images of these sizes (width, height),
    whatever data_aug_ keys are set. For a single image that is the shape with the largest area; in a batch of several,
    the largest height may meet the largest width. pad_multiple: see padding_for.
    """
    height, width = _largest_shape(options, sizes, batch_size, fix_size)
    return round_up(height, pad_multiple), round_up(width, pad_multiple)


def padding_for(options: DataOptions, device: torch.device) -> int:
    """The height and the width of a training batch are multiples of this, px.

    On a GPU, cuDNN plans every convolution anew for each input size, and without padding nearly every batch of a DETR
    training has a new size.
    """
    return options.pad_multiple or (32 if device.type == "cuda" else 1)


def _largest_shape(options: DataOptions, sizes: Iterable[tuple[int, int]], batch_size: int,
                   fix_size: bool) -> tuple[int, int]:
    """largest_train_shape before padding to multiples."""
    _, size, max_size = train_limits(options)
    if fix_size:
        return size, max_size
    resize, (low, high) = ResizeShorter([size], max_size), scaled(options.data_aug_scales2_crop, options)
    shapes, originals = set(), set(sizes)
    if options.data_aug_mosaic:
        originals |= {mosaic_size(options, original) for original in originals}
    for original in originals:
        shapes |= {resize.result(*original, one) for one in scaled(options.data_aug_scales, options)}
        for resized in scaled(options.data_aug_scales2_resize, options):
            sides = resize.result(*original, resized)[::-1]
            smallest, largest = ([min(limit, side) for side in sides] for limit in (low, high))
            for long, short in ((0, 1), (1, 0)):
                # The longest crop, but no longer than what fills size x max_size.
                crop = largest.copy()
                crop[short] = min(largest[short], max(smallest[short], round(largest[long] * size / max_size)))
                shapes.add(resize.result(crop[0], crop[1], size))
                ratio = largest[long] / smallest[short]
                if ratio * size > max_size:  # the shorter side is rounded, which moves the longer by half the ratio
                    sides_of_result = int(max(max_size + ratio / 2, ratio)), max(1, round(max_size / ratio))
                    shapes.add((sides_of_result[short], sides_of_result[long]))
    if batch_size == 1:
        return max(shapes, key=lambda shape: shape[0] * shape[1])
    return max(height for height, _ in shapes), max(width for _, width in shapes)
