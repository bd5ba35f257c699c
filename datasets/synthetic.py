"""A small synthetic detection set in COCO format: textured pictures of six shapes, made in seconds without a download.

    python -m datasets.synthetic DIR [--train 600] [--val 100] [--seed 0] [--size 320]

A picture depends only on (seed, size, split, index), and geometry is integer arithmetic after one rounding, so the
annotations are the same on every machine. Colours do not depend on the class: only the shape tells it.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

CLASSES: tuple[str, ...] = ("disc", "ring", "square", "triangle", "star", "cross")

FORMAT = 1  # raise it when the same parameters give a different set, so that older folders are not mistaken for it
SPLITS = ("train2017", "val2017")
ANNOTATIONS = "annotations/instances_{}.json"
MIN_SIDE, MAX_SIDE = 8, 200  # sides of an object's box in pixels
MAX_OBJECTS = 8  # crowds come on top
MAX_IOU, MIN_VISIBLE = 0.3, 0.6  # between two boxes; share of an object that later ones must leave uncovered
PERIOD, EMPTY, CROWD = 20, 3, 7  # of 20 consecutive pictures, number 3 has no object and number 7 has a crowd
TRIES = 20  # placements tried before an object is given up

GRID = 4  # samples per pixel and axis when a shape is rendered
OPAQUE = GRID * GRID  # the coverage of a pixel that lies wholly inside a shape
UNIT = 4096  # shapes are defined on the integer square [-UNIT, UNIT] x [-UNIT, UNIT]

OUTLINES = {  # polygon corners as complex numbers; disc and ring are tested by radius instead
    "square": [1j**k for k in range(4)],
    "triangle": [np.exp(2j * np.pi * k / 3) for k in range(3)],
    "star": [(0.45 if k % 2 else 1) * np.exp(1j * np.pi * k / 5) for k in range(10)],
    "cross": [corner * 1j**k for k in range(4) for corner in (1 - 0.3j, 1 + 0.3j, 0.3 + 0.3j)],
}

Part = tuple[int, int, np.ndarray]  # left, top (pixels), and the coverage of each pixel, 0..OPAQUE


def generate(
    root: str | os.PathLike, train: int = 600, val: int = 100, seed: int = 0, size: int = 320, progress: bool = False
) -> None:
    """Write the set to `root`: train2017/, val2017/ and annotations/instances_{train2017,val2017}.json.

    `train` and `val` count pictures (>= 0); both sides of a picture lie in [3/4 size, size] pixels (size >= 32), those
    of an object's box in [8, min(200, 5/8 size)], of a crowd's in [8, size/2]. About 5 % of the pictures are empty, and
    as many hold a crowd. `root` appears only once it is complete, and is left alone if it already holds this very set.
    Raises ValueError for numbers out of range and for a `root` that holds anything else.
    """
    if min(train, val, seed) < 0 or size < 32:
        raise ValueError(f"need train, val, seed >= 0 and size >= 32, got {train=}, {val=}, {seed=}, {size=}")
    root = Path(root).resolve()
    parameters = {"format": FORMAT, "train": train, "val": val, "seed": seed, "size": size}
    if root.is_file() or (root.is_dir() and any(root.iterdir())):
        if all(_recorded_parameters(root / ANNOTATIONS.format(split)) == parameters for split in SPLITS):
            return
        raise ValueError(f"{root} holds something other than the synthetic set {parameters}: "
                         "remove it, or name another folder")
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as scratch:
        complete = Path(scratch, root.name)
        for split, count in zip(SPLITS, (train, val)):
            _write_split(complete, split, count, parameters, progress)
        if root.exists():  # an empty folder, which not every system lets a rename replace
            root.rmdir()
        complete.rename(root)


def _recorded_parameters(path: Path) -> dict | None:
    """The parameters that an annotation file was made with, None if it is absent or not one of ours."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["info"]["parameters"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_split(root: Path, split: str, count: int, parameters: dict, progress: bool) -> None:
    """Draw and write the pictures of one split, then its annotation file."""
    (root / split).mkdir(parents=True)
    images: list[dict] = []
    annotations: list[dict] = []
    for index in tqdm(range(count), desc=split, disable=None if progress else True):
        rng = np.random.Generator(np.random.PCG64([parameters["seed"], SPLITS.index(split), index]))
        picture, objects = _draw_picture(rng, index, parameters["size"])
        name = f"{index + 1:012d}.jpg"
        Image.fromarray(picture).save(root / split / name, quality=92)
        height, width = picture.shape[:2]
        images.append({"id": index + 1, "file_name": name, "width": width, "height": height, "license": 1})
        annotations += [{"id": len(annotations) + k, "image_id": index + 1, **a} for k, a in enumerate(objects, 1)]
    path = root / ANNOTATIONS.format(split)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({
        "info": {"description": "Synthetic shapes", "version": str(FORMAT), "parameters": parameters},
        "licenses": [{"id": 1, "name": "CC0 1.0", "url": "https://creativecommons.org/publicdomain/zero/1.0/"}],
        "images": images,
        "annotations": annotations,
        "categories": [{"id": k, "name": name, "supercategory": "shape"} for k, name in enumerate(CLASSES, 1)],
    }), encoding="utf-8")


def _draw_picture(rng: np.random.Generator, index: int, size: int) -> tuple[np.ndarray, list[dict]]:
    """One picture, uint8 [height, width, 3], and its COCO annotations without ids."""
    height, width = rng.integers(3 * size // 4, size + 1, 2)
    canvas = _background(rng, height, width)
    owner = np.zeros((height, width), np.int8)  # 0, or 1 + the position in `placed` of the topmost object
    placed: list[tuple[str, bool]] = []  # shape and is_crowd of each object
    areas: list[int] = []  # and its pixels before others cover it
    crowds = [True] if index % PERIOD == CROWD else []
    singles = [] if index % PERIOD == EMPTY else [False] * rng.integers(1, MAX_OBJECTS + 1)
    for is_crowd in crowds + singles:
        shape = CLASSES[rng.integers(len(CLASSES))]
        for _ in range(TRIES):
            parts = _crowd(rng, shape, size) if is_crowd else _single(rng, shape, size)
            mask = _mask(parts)
            top = rng.integers(height - mask.shape[0] + 1)
            left = rng.integers(width - mask.shape[1] + 1)
            attempt = owner.copy()
            attempt[top:, left:][: mask.shape[0], : mask.shape[1]][mask] = len(placed) + 1
            if _acceptable(attempt, [*areas, int(mask.sum())]):
                owner = attempt
                placed.append((shape, is_crowd))
                areas.append(int(mask.sum()))
                for dx, dy, coverage in parts:
                    _paint(rng, canvas, left + dx, top + dy, coverage)
                break
    return canvas.astype(np.uint8), [_annotation(owner == k, *kind) for k, kind in enumerate(placed, 1)]


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Smooth colour noise, faint stripes on half of the pictures, and grain; int16 [height, width, 3] in 0..255."""
    coarse = rng.integers(20, 236, (*rng.integers(2, 7, 2), 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.int16)
    period, (step_y, step_x) = rng.integers(12, 60), rng.integers(-3, 4, 2)
    phase = (step_y * np.arange(height)[:, None] + step_x * np.arange(width)) % period
    stripes = rng.integers(2) * rng.integers(10, 50) * np.abs(2 * phase - period) // period
    grain = rng.integers(-9, 10, (height, width, 3), dtype=np.int16)
    return np.clip(smooth + stripes[..., None].astype(np.int16) + grain, 0, 255)


def _single(rng: np.random.Generator, shape: str, size: int) -> list[Part]:
    """One object: its size on a log scale, the larger ones more often, one side up to 1.3 times the other."""
    largest = min(MAX_SIDE, 5 * size // 8)
    side = MIN_SIDE * (largest / MIN_SIDE) ** (rng.random() ** 0.6)  # a quarter of them below 32 px at size 320
    stretch = 1.3 ** rng.uniform(-0.5, 0.5)
    width, height = (min(max(round(s), MIN_SIDE), largest) for s in (side * stretch, side / stretch))
    return [(0, 0, _render(shape, width, height, rng.uniform(0, 2 * np.pi)))]


def _crowd(rng: np.random.Generator, shape: str, size: int) -> list[Part]:
    """Many tiny overlapping shapes of one class, the denser the nearer to the middle of a region."""
    tiny = int(rng.integers(5, 6 + size // 40))
    region = rng.integers(max(16, size // 4), size // 2 + 1, 2)
    parts = []
    for _ in range(3 * region.prod() // (2 * tiny**2)):
        left, top = rng.integers(region - tiny + 1, size=(2, 2)).sum(0) // 2
        parts.append((left, top, _render(shape, tiny, tiny, rng.uniform(0, 2 * np.pi))))
    return parts


def _render(shape: str, width: int, height: int, angle: float) -> np.ndarray:
    """Coverage, uint8 [height, width] in 0..OPAQUE, of a shape turned by `angle` (radians) and fitted to that box."""
    x, y = (UNIT * (2 * np.arange(n) + 1 - n) // n for n in (GRID * width, GRID * height))
    if shape in OUTLINES:
        inside = _inside_polygon(np.array(OUTLINES[shape]) * np.exp(1j * angle), x, y)
    else:
        hole = UNIT * 11 // 20 if shape == "ring" else 0
        radius2 = y[:, None] ** 2 + x**2
        inside = (radius2 <= UNIT**2) & (radius2 >= hole**2)
    rows = inside.reshape(height, GRID, -1).sum(1, dtype=np.uint8)
    return rows.reshape(height, width, GRID).sum(2, dtype=np.uint8)


def _inside_polygon(corners: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Even-odd test, bool [len(y), len(x)], of the polygon stretched to fill the UNIT square."""
    xs, ys = (np.rint(UNIT * (2 * (c - c.min()) / np.ptp(c) - 1)).astype(int) for c in (corners.real, corners.imag))
    inside = np.zeros((len(y), len(x)), bool)
    for x0, y0, x1, y1 in zip(xs, ys, np.roll(xs, 1), np.roll(ys, 1)):
        rows = (y0 <= y) != (y1 <= y)
        crossing = x0 + (y[rows] - y0) * (x1 - x0) // (y1 - y0)
        inside[rows] ^= x < crossing[:, None]
    return inside


def _mask(parts: list[Part]) -> np.ndarray:
    """The object's mask, bool, from (0, 0) to its far corner: pixels of which some part covers a quarter or more."""
    corners = [(top + coverage.shape[0], left + coverage.shape[1]) for left, top, coverage in parts]
    mask = np.zeros(np.max(corners, axis=0), bool)
    for (left, top, coverage), (bottom, right) in zip(parts, corners):
        mask[top:bottom, left:right] |= coverage >= OPAQUE // 4
    return mask


def _acceptable(owner: np.ndarray, areas: list[int]) -> bool:
    """Whether the newest object leaves all of them visible and large enough, and overlaps no other box by much."""
    visible = np.bincount(owner.ravel(), minlength=len(areas) + 1)[1:]
    if (visible < MIN_VISIBLE * np.array(areas)).any():
        return False
    boxes = np.array([_tight_box(owner == k) for k in range(1, len(areas) + 1)])
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    shared = (np.minimum(high[:-1], high[-1]) - np.maximum(low[:-1], low[-1])).clip(0).prod(1)
    sizes = boxes[:, 2:].prod(1)
    return bool(boxes[:, 2:].min() >= MIN_SIDE and (shared <= MAX_IOU * (sizes[:-1] + sizes[-1] - shared)).all())


def _tight_box(mask: np.ndarray) -> list[int]:
    """[left, top, width, height] of the smallest box around the true pixels, of which there must be one."""
    spans = [np.flatnonzero(mask.any(axis)) for axis in (0, 1)]
    return [int(span[0]) for span in spans] + [int(span[-1] - span[0] + 1) for span in spans]


def _paint(rng: np.random.Generator, canvas: np.ndarray, left: int, top: int, coverage: np.ndarray) -> None:
    """Blend a shape into the canvas, in a colour that stands out there, with a shade across it and grain."""
    height, width = coverage.shape
    patch = canvas[top : top + height, left : left + width]  # a view: adding to it draws
    colours = rng.integers(0, 256, (4, 3), dtype=np.int16)
    colour = colours[np.abs(colours - patch.mean((0, 1))).sum(1).argmax()]
    shade_y, shade_x = rng.integers(-40, 41, 2)
    shade = shade_y * np.arange(height)[:, None] // height + shade_x * np.arange(width) // width
    grain = rng.integers(-9, 10, (height, width, 3), dtype=np.int16)
    paint = np.clip(colour + shade[..., None].astype(np.int16) + grain, 0, 255)
    patch += (paint - patch) * coverage[..., None] // OPAQUE


def _annotation(mask: np.ndarray, shape: str, is_crowd: bool) -> dict:
    """The COCO entry, without ids, of an object whose visible pixels are `mask`; the segmentation is plain RLE."""
    flat = mask.ravel(order="F")
    starts = np.flatnonzero(np.diff(flat, prepend=False))
    return {
        "category_id": CLASSES.index(shape) + 1,
        "bbox": [float(v) for v in _tight_box(mask)],
        "area": float(flat.sum()),
        "iscrowd": int(is_crowd),
        "segmentation": {"counts": np.diff(starts, prepend=0, append=flat.size).tolist(), "size": list(mask.shape)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a small synthetic detection set in COCO format.")
    parser.add_argument("root", metavar="DIR", help="folder to make")
    for name, default, meaning in (
        ("train", 600, "training pictures"), ("val", 100, "validation pictures"), ("seed", 0, "picks another set"),
        ("size", 320, "longest side in pixels"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{meaning} (default: {default})")
    args = parser.parse_args()
    try:
        generate(**vars(args), progress=True)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
