"""What the query behind a box attended to, drawn over the image: its sampling points, or a heat map.

K points, H x W a map that spans the image.
"""
from collections.abc import Iterable

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

# Of the levels, finest first; bright on the darkened image. More levels begin again.
LEVEL_COLOURS = ("#ffd60a", "#2fe0ff", "#ff5ad1", "#7dff5a", "#ff8a3d")
HEAT_COLOURS = "inferno"
LONG_SIDE = 900  # px of a picture
SMOOTH = 2  # pictures are drawn this many times larger, then reduced
MARGIN = 0.06  # around what is shown, on each side, of its own
SMALLEST_PART = 0.02  # of an image's sides, that is shown

Region = tuple[float, float, float, float]  # left, top, right, bottom in pixels of the image


def level_colour(level: int) -> str:
    return LEVEL_COLOURS[level % len(LEVEL_COLOURS)]


def region_around(box: Tensor, points: Tensor, size: tuple[int, int]) -> Region:
    """The part of an image of `size` (width, height) that shows a box [4] xyxy and points [K, 2], all in px, with some
    space around them; in the proportions of the image."""
    limit = box.new_tensor(size)
    corners = torch.cat([box.view(2, 2), points]).clamp(min=box.new_zeros(2), max=limit)
    low, high = corners.amin(0), corners.amax(0)
    share = float(((high - low) * (1 + 2 * MARGIN) / limit).max())  # of each side
    sides = limit * min(max(share, SMALLEST_PART), 1)
    low = torch.minimum(((low + high - sides) / 2).clamp(min=0), limit - sides)
    left, top, right, bottom = *low.tolist(), *(low + sides).tolist()
    return left, top, right, bottom


def draw_samples(image: Image.Image, box: Tensor, points: Tensor, weights: Tensor, levels: Iterable[int],
                 region: Region | None = None) -> Image.Image:
    """Points [K, 2] in px of the image, of which those with large weights [K] are large and opaque, in the colour of
    their level; and the box [4] xyxy in white. `region` is the part of the image that is shown; default: all of it.
    """
    canvas, draw, unit, to_canvas = _view(image, box, region)
    strongest = max(float(weights.max()), 1e-12) if len(weights) else 1.0
    drawn = sorted(zip(weights.tolist(), to_canvas(points), levels))  # the largest on top
    for weight, (x, y), level in drawn:
        share = weight / strongest
        radius, opacity = unit * (2.5 + 7 * share**0.5), round(110 + 145 * share)
        red, green, blue = bytes.fromhex(level_colour(level)[1:])
        circle = x - radius, y - radius, x + radius, y + radius
        draw.ellipse(circle, fill=(red, green, blue, opacity), outline=(0, 0, 0, opacity), width=round(unit))
    return canvas.reduce(SMOOTH)


def draw_heat_map(image: Image.Image, box: Tensor, weights: Tensor, region: Region | None = None) -> Image.Image:
    """Weights [H, W] as colours over the image, from the smallest to the largest; box and region as in draw_samples."""
    low, high = weights.aminmax()
    smooth = F.interpolate(((weights - low) / (high - low).clamp(min=1e-12))[None, None].float(), image.size[::-1],
                           mode="bilinear")[0, 0].numpy()
    colours = matplotlib.colormaps[HEAT_COLOURS](smooth, bytes=True)[..., :3]
    mixed = 0.45 * np.asarray(image.convert("L"), dtype=np.float32)[..., None] + 0.55 * colours
    canvas, *_ = _view(Image.fromarray(mixed.astype(np.uint8)), box, region, darken=False)
    return canvas.reduce(SMOOTH)


def _view(image: Image.Image, box: Tensor, region: Region | None, darken: bool = True):
    """A canvas that shows the region, with the box; what draws on it; the width of a thin line on it; and a function
    from points [K, 2] of the image to points of the canvas."""
    left, top, right, bottom = region or (0, 0, *image.size)
    factor = SMOOTH * LONG_SIDE / max(right - left, bottom - top)
    size = max(SMOOTH, round((right - left) * factor)), max(SMOOTH, round((bottom - top) * factor))
    canvas = image.convert("RGB").resize(size, Image.Resampling.BILINEAR, (left, top, right, bottom))
    if darken:
        canvas = Image.blend(canvas.convert("L").convert("RGB"), canvas, 0.5).point(lambda value: value * 0.72)
    draw = ImageDraw.Draw(canvas, "RGBA")  # on an RGB canvas this mode blends translucent colours
    unit = SMOOTH * LONG_SIDE / 600

    def to_canvas(points: Tensor) -> list[list[float]]:
        return ((points - points.new_tensor([left, top])) * factor).tolist()

    (x0, y0), (x1, y1) = to_canvas(torch.cat([*box.view(2, 2).aminmax(dim=0)]).view(2, 2))
    draw.rectangle((x0, y0, x1, y1), outline="black", width=round(4 * unit))
    draw.rectangle((x0 + unit, y0 + unit, max(x1 - unit, x0 + unit), max(y1 - unit, y0 + unit)), outline="white",
                   width=round(2 * unit))
    return canvas, draw, unit, to_canvas
