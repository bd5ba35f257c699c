"""Boxes drawn on images: detections over ground truth, targets, grids of pictures."""
import os
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor
from torchvision.ops import box_convert

from util.files import atomic_write
from util.integers import ceil_div

# Bright, so that black text is legible on them. Black and white are kept for the ground truth.
PALETTE = ("#ff3b6b", "#00b4ff", "#ffb000", "#2ee66b", "#b06bff", "#ff7a1a", "#00d5c8", "#f7e733", "#ff7ae0", "#8fb8ff")
MIN_LONG_SIDE = 480  # px, below which labels would hide the picture
MAX_CELL_SIDE = 640  # px, so that a grid of photographs stays a picture that viewers open
SPLIT_COLOURS = {"train": "#2563eb", "val": "#ea580c"}
MAX_BARS = 30  # classes that a picture has room for
METRICS = {"AP": "#2563eb", "AP50": "#059669", "AP75": "#c026d3"}  # the first entries of "test_coco_eval_bbox"

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels, all four drawn


def draw_detections(image: Image.Image, ground_truth: dict, detections: dict, class_names: dict[int, str],
                    score_threshold: float = 0.3) -> Image.Image:
    """Draws ground truth (dashed, crowds dotted and hatched) and predictions (solid) on a copy of the image.

    ground_truth: "labels" [n], "boxes" [n, 4] xyxy in pixels of `image`, "iscrowd" [n].
    detections: "scores" [k], "labels" [k], "boxes" [k, 4] xyxy; those that score below the threshold are left out.
    Boxes are cut at the border of the image. A class without a name is called "class <id>".
    The copy is RGB and enlarged to MIN_LONG_SIDE where it is smaller.
    """
    canvas, draw, font, unit = _canvas(image)
    truths = list(zip(ground_truth["labels"].tolist(), _pixels(ground_truth["boxes"].tolist(), image, canvas),
                      ground_truth["iscrowd"].tolist()))
    predictions = list(zip(detections["scores"].tolist(), detections["labels"].tolist(),
                           _pixels(detections["boxes"].tolist(), image, canvas)))
    predictions = sorted(prediction for prediction in predictions if prediction[0] >= score_threshold)
    for _, label, box in predictions:
        _draw_prediction(draw, box, PALETTE[label % len(PALETTE)], unit)
    for _, box, crowd in truths:  # over the wider predictions, so that both show where they coincide
        _draw_truth(draw, box, crowd, unit)

    # The best prediction takes the best place, and stays on top of the others where none is free.
    labels = [(class_names.get(label, f"class {label}"), f" {score:.2f}", box, True,
               ("black", PALETTE[label % len(PALETTE)])) for score, label, box in reversed(predictions)]
    labels += [(class_names.get(label, f"class {label}"), " (crowd)" if crowd else "", box, False,
                ("white", "#000000a0")) for label, box, crowd in truths]
    _write_labels(draw, labels, font, canvas.size)
    return canvas


def draw_closely(image: Image.Image, ground_truth: dict, detection: dict, class_names: dict[int, str]) -> Image.Image:
    """The surroundings of a single detection, drawn as draw_detections does, whose arguments these are: a square twice
    as large as its box, or what the image has of it."""
    size = torch.tensor(image.size)
    box = detection["boxes"][0].nan_to_num(0).clamp(-size.max(), 2 * size.max())
    box = torch.cat(box.view(2, 2).aminmax(dim=0))
    half, centre = (box[2:] - box[:2]).max().clamp(min=8), (box[:2] + box[2:]) / 2
    start = torch.minimum((centre - half).floor().clamp(min=0), size - 1)
    end = torch.minimum(torch.maximum((centre + half).ceil(), start + 1), size)
    boxes = ground_truth["boxes"]
    near = (boxes[:, :2] < end).all(1) & (boxes[:, 2:] > start).all(1)
    ground_truth = {name: values[near] for name, values in ground_truth.items()}
    detection = detection | {"boxes": box[None]}
    shifted = [part | {"boxes": part["boxes"] - torch.cat([start, start])} for part in (ground_truth, detection)]
    return draw_detections(image.crop((*start.int().tolist(), *end.int().tolist())), *shifted, class_names,
                           score_threshold=0)


def truth_tensors(rows: list[dict]) -> dict[str, Tensor]:
    """COCO annotations of one image, as draw_detections reads them."""
    return {"labels": torch.tensor([row["category_id"] for row in rows], dtype=torch.int64), "boxes": _corners(rows),
            "iscrowd": torch.tensor([row["iscrowd"] for row in rows], dtype=torch.int64)}


def detection_tensors(rows: list[dict]) -> dict[str, Tensor]:
    """COCO results of one image, as draw_detections reads them."""
    return {"scores": torch.tensor([row["score"] for row in rows]), "boxes": _corners(rows),
            "labels": torch.tensor([row["category_id"] for row in rows], dtype=torch.int64)}


def _corners(rows: list[dict]) -> Tensor:
    return box_convert(torch.tensor([row["bbox"] for row in rows], dtype=torch.float32).reshape(-1, 4), "xywh", "xyxy")


def draw_targets(image: Image.Image, labels: Tensor, boxes: Tensor, class_names: dict[int, str]) -> Image.Image:
    """Draws labels [n] and boxes [n, 4] xyxy px in one colour a class, on a copy as draw_detections makes it."""
    canvas, draw, font, unit = _canvas(image)
    targets = list(zip(labels.tolist(), _pixels(boxes.tolist(), image, canvas)))
    for label, box in targets:
        _draw_prediction(draw, box, PALETTE[label % len(PALETTE)], unit)
    _write_labels(draw, [(class_names.get(label, f"class {label}"), "", box, True,
                          ("black", PALETTE[label % len(PALETTE)])) for label, box in targets], font, canvas.size)
    return canvas


def save_grid(pictures: list[Image.Image], path: str | os.PathLike, columns: int = 4,
              title: str | None = None, legend: bool = True) -> None:
    """Writes a PNG with the pictures row by row in equal cells, under the title and a legend of the box styles.

    Raises ValueError where there are no pictures.
    """
    if not pictures:
        raise ValueError(f"no pictures to save in {path}")
    columns = min(columns, len(pictures))
    cell = tuple(min(MAX_CELL_SIDE, max(picture.size[axis] for picture in pictures)) for axis in (0, 1))
    text_size = max(14, columns * cell[0] // 80)  # legible when a wide grid is shrunk to the screen
    gap = text_size // 2
    header = _header(title, text_size, legend)
    width = max(columns * (cell[0] + gap) - gap, header.width)
    rows = ceil_div(len(pictures), columns)
    page = Image.new("RGB", (width + 2 * gap, header.height + rows * (cell[1] + gap) + 2 * gap), "white")
    page.paste(header, (gap, gap))
    for i, picture in enumerate(pictures):
        row, column = divmod(i, columns)
        tile = ImageOps.pad(picture.convert("RGB"), cell, color="#eeeeee")
        page.paste(tile, (gap + column * (cell[0] + gap), header.height + 2 * gap + row * (cell[1] + gap)))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        page.save(temporary, "PNG")


def _canvas(image: Image.Image) -> tuple[Image.Image, ImageDraw.ImageDraw, ImageFont.FreeTypeFont, int]:
    """An RGB copy of MIN_LONG_SIDE or more, with what draws on it, a font and a line width that suit its size."""
    factor = max(1, MIN_LONG_SIDE / max(image.size))
    canvas = image.convert("RGB").resize([max(1, round(side * factor)) for side in image.size])
    draw = ImageDraw.Draw(canvas, "RGBA")  # on an RGB canvas this mode blends translucent colours
    return canvas, draw, ImageFont.load_default(max(canvas.size) / 38), round(max(canvas.size) / 320)


def _write_labels(draw: ImageDraw.ImageDraw, labels: list[tuple[str, str, Box, bool, tuple[str, str]]],
                  font: ImageFont.FreeTypeFont, canvas_size: tuple[int, int]) -> None:
    """labels: name, suffix, box, whether above it, and the colours of text and background; the first on top."""
    placed: list[tuple[str, Box, tuple[str, str]]] = []
    for name, suffix, box, above, colours in labels:
        text = _shortened(name, suffix, font, canvas_size[0])
        placed.append((text, _place(text, font, box, above, canvas_size, [place for _, place, _ in placed]), colours))
    for text, place, (colour, background) in reversed(placed):
        draw.rectangle(place, fill=background)
        draw.text(((place[0] + place[2]) / 2, (place[1] + place[3]) / 2), text, fill=colour, font=font, anchor="mm")


def _pixels(boxes: list[list[float]], image: Image.Image, canvas: Image.Image) -> list[Box]:
    """Boxes of the image in whole pixels of the canvas, cut at its border."""
    scale = [canvas.size[axis] / image.size[axis] for axis in (0, 1)]
    return [tuple(min(max(round(value * scale[i % 2]), 0), canvas.size[i % 2] - 1) for i, value in enumerate(box))
            for box in boxes]


def _draw_prediction(draw: ImageDraw.ImageDraw, box: Box, colour: str, unit: int) -> None:
    draw.rectangle(box, outline=colour, width=2 * unit)


def _draw_truth(draw: ImageDraw.ImageDraw, box: Box, crowd: bool, unit: int) -> None:
    """White dashes on black show on any background; a crowd has dots instead, and is hatched."""
    left, top, right, bottom = box
    if crowd:
        for x in range(left - bottom + top, right, 12 * unit):  # where a diagonal meets the line through the bottom
            start, end = max(x, left), min(x + bottom - top, right)
            draw.line((start, bottom - start + x, end, bottom - end + x), fill="#ffffff80", width=unit)
    draw.rectangle(box, outline="black", width=unit)
    dash = unit if crowd else 4 * unit
    for x in range(left, right, 2 * dash):
        for y in (top, bottom - unit + 1):
            draw.rectangle((x, y, min(x + dash - 1, right), y + unit - 1), fill="white")
    for y in range(top, bottom, 2 * dash):
        for x in (left, right - unit + 1):
            draw.rectangle((x, y, x + unit - 1, min(y + dash - 1, bottom)), fill="white")


def _shortened(name: str, suffix: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Name and suffix, with as much of the name as fits into the width."""
    text = name + suffix
    while name and font.getlength(text) + font.size / 2 > width:
        name = name[:-1]
        text = f"{name}…{suffix}"
    return text


def _place(text: str, font: ImageFont.FreeTypeFont, box: Box, above: bool, canvas_size: tuple[int, int],
           taken: list[Box]) -> Box:
    """Where to write the text: at a corner of the box, in the picture, off the taken places where that is possible."""
    width, height = round(font.getlength(text) + font.size / 2), sum(font.getmetrics())
    left, top, right, bottom = box
    rows = [top - height, top, bottom + 1, bottom - height + 1]  # outside and inside of the upper and the lower side
    places = []
    for row in rows if above else rows[2:] + rows[:2]:
        y = max(0, min(row, canvas_size[1] - height))
        for column in (left, right - width + 1):
            x = max(0, min(column, canvas_size[0] - width))
            places.append((x, y, x + width - 1, y + height - 1))
    return next((place for place in places if not any(_overlap(place, other) for other in taken)), places[0])


def _overlap(a: Box, b: Box) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


def _header(title: str | None, size: int, legend: bool) -> Image.Image:
    """The title, where there is one, over a line that shows each box style next to its meaning."""
    font, title_font, unit = ImageFont.load_default(size), ImageFont.load_default(1.25 * size), size // 10
    styles = {"ground truth": lambda box: _draw_truth(draw, box, False, unit),
              "crowd": lambda box: _draw_truth(draw, box, True, unit),
              "prediction, one colour per class": lambda box: _draw_prediction(draw, box, PALETTE[0], unit)}
    styles = styles if legend else {}
    width = max(sum(font.getlength(meaning) + 4 * size for meaning in styles) - size, title_font.getlength(title or ""))
    header = Image.new("RGB", (round(width) + 1, 2 * size * (bool(title) + legend)), "white")
    draw = ImageDraw.Draw(header, "RGBA")
    middle = header.height - size
    draw.text((0, size), title or "", fill="#222222", font=title_font, anchor="lm")
    x = 0
    for meaning, draw_style in styles.items():
        box = (x, middle - size // 2, x + 2 * size, middle + size // 2)
        draw.rectangle(box, fill="#999999")
        draw_style(box)
        draw.text((x + 2.5 * size, middle), meaning, fill="#222222", font=font, anchor="lm")
        x += round(font.getlength(meaning)) + 4 * size
    return header
