"""Pictures for people: detections over ground truth, the curves of a training log, and the boxes of a data set."""
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor
from torchvision.ops import box_convert

from util.errors import UserError

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
    rows = -(-len(pictures) // columns)
    page = Image.new("RGB", (width + 2 * gap, header.height + rows * (cell[1] + gap) + 2 * gap), "white")
    page.paste(header, (gap, gap))
    for i, picture in enumerate(pictures):
        row, column = divmod(i, columns)
        tile = ImageOps.pad(picture.convert("RGB"), cell, color="#eeeeee")
        page.paste(tile, (gap + column * (cell[0] + gap), header.height + 2 * gap + row * (cell[1] + gap)))
    with _atomic(path) as temporary:
        page.save(temporary, "PNG")


def read_log(path: str | os.PathLike) -> list[dict]:
    """The records of a log.txt (one json object per line) in the order of their "epoch".

    Of two lines for one epoch the later counts, for a resumed run. A broken last line is skipped, for a killed one.
    Raises FileNotFoundError for a missing file, UserError (a ValueError) with file and line for any other bad line.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no training log at {path}")
    lines = Path(path).read_text(encoding="utf-8", errors="replace").rstrip().split("\n")
    records = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise UserError(f"{path}, line {number}: not json ({error})") from None
        if not isinstance(record, dict) or "epoch" not in record:
            raise UserError(f'{path}, line {number}: not a json object with an "epoch"')
        records[record["epoch"]] = record
    return [records[epoch] for epoch in sorted(records)]


def plot_log(log: list[dict] | str | os.PathLike, path: str | os.PathLike) -> None:
    """Writes a PNG of loss, learning rate and AP in percent by epoch. `log` is what `read_log` returns, or its path.

    A record that lacks a key has no point in that curve. Raises UserError for a log without records.
    """
    records = log if isinstance(log, list) else read_log(log)
    if not records:
        raise UserError(f"{path} is not written: the log has no finished epoch")
    figure = Figure(figsize=(11, 4.6), dpi=130, layout="constrained")
    panels = figure.subplot_mosaic([["loss", "AP"], ["rate", "AP"]], height_ratios=[3, 1])
    for axes in panels.values():
        axes.set_xlim(records[0]["epoch"] - 0.5, records[-1]["epoch"] + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        plain_axes(axes)
    _plot_curve(panels["loss"], _series(records, "train_loss"), "train", "#2563eb")
    _plot_curve(panels["loss"], _series(records, "test_loss"), "test", "#ea580c")
    panels["loss"].set(title="Loss", ylabel="loss")
    panels["loss"].tick_params(labelbottom=False)  # the panel below has the same epochs
    if panels["loss"].lines:
        panels["loss"].legend(frameon=False)
    _plot_curve(panels["rate"], _series(records, "train_lr"), "learning rate", "#525252")
    panels["rate"].set(xlabel="epoch", ylabel="learning rate", ylim=(0, None))
    panels["rate"].ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    _plot_average_precision(panels["AP"], _series(records, "test_coco_eval_bbox"))
    save_figure(figure, path)


def plain_axes(axes: Axes) -> None:
    """The look of all plots: a light grid, no frame."""
    axes.grid(color="#e3e3e3", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)


def save_figure(figure: Figure, path: str | os.PathLike) -> None:
    """Writes a PNG, whole or not at all."""
    with _atomic(path) as temporary:
        figure.savefig(temporary, format="png")


def plot_boxes(by_class: dict[str, dict[str, int]], lengths: dict[str, np.ndarray], by_image: dict[str, Sequence[int]],
               size: int, path: str | os.PathLike) -> None:
    """Writes a PNG of three histograms, each argument by split: boxes by class (the most frequent MAX_BARS), lengths
    (the root of a box's area, px, in images resized to `size`), and boxes an image.
    """
    boxes = {name: [counts.get(name, 0) for counts in by_class.values()] for counts in by_class.values()
             for name in counts}
    names = sorted((name for name in boxes if any(boxes[name])), key=boxes.get, reverse=True)
    shown = names[:MAX_BARS]
    figure = Figure(figsize=(14, max(4.2, 0.22 * len(shown) + 1.2)), dpi=110, layout="constrained")
    bars, sizes, images = figure.subplots(1, 3)
    for axes in (bars, sizes, images):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e3e3e3", linewidth=0.8)
        axes.set_axisbelow(True)
    thickness = 0.8 / len(by_class)
    for i, (split, counts) in enumerate(by_class.items()):
        bars.barh(np.arange(len(shown)) + (i - (len(by_class) - 1) / 2) * thickness,
                  [counts.get(name, 0) for name in shown], thickness, color=SPLIT_COLOURS[split], label=split)
    more = f" (the first {MAX_BARS} of {len(names)})" if len(names) > MAX_BARS else ""
    bars.set(title=f"Boxes by class{more}", xlabel="boxes (logarithmic)", yticks=range(len(shown)), xscale="log")
    bars.set_xlim(left=0.5)
    bars.xaxis.set_major_formatter("{x:g}")
    bars.minorticks_off()
    bars.set_yticklabels([name if len(name) <= 20 else name[:19] + "…" for name in shown])
    bars.set_ylim(len(shown) - 0.5, -0.5)
    bars.grid(axis="y", visible=False)
    bars.legend(frameon=False, loc="lower right")
    _plot_shares(sizes, lengths, np.geomspace(1, 2048, 45))
    sizes.set(title=f"Size of boxes in images of {size} px", xlabel="√area, px", ylabel="share of the boxes, %",
              xscale="log")
    sizes.set_xticks([1, 4, 16, 64, 256, 1024], labels=[1, 4, 16, 64, 256, 1024])
    sizes.minorticks_off()
    largest = max((max(counts) for counts in by_image.values() if len(counts)), default=0)
    _plot_shares(images, by_image, np.arange(-0.5, largest + 1.5, max(1, largest // 30)))
    images.set(title="Boxes an image", xlabel="boxes", ylabel="share of the images, %")
    images.xaxis.set_major_locator(MaxNLocator(integer=True))
    with _atomic(path) as temporary:
        figure.savefig(temporary, format="png")


def _plot_shares(axes: Axes, values: dict[str, Sequence[float]], edges: np.ndarray) -> None:
    """Histograms in percent, filled and over each other; what lies beyond the edges counts at them."""
    for split, numbers in values.items():
        if len(numbers):
            heights, _ = np.histogram(np.clip(numbers, edges[0], edges[-1]), edges)
            axes.stairs(100 * heights / len(numbers), edges, fill=True, color=SPLIT_COLOURS[split], alpha=0.25)
            axes.stairs(100 * heights / len(numbers), edges, color=SPLIT_COLOURS[split], linewidth=1.4)


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


def _series(records: list[dict], key: str) -> tuple[list[int], list]:
    """The epochs that have the key, and its values there."""
    present = [record for record in records if key in record]
    return [record["epoch"] for record in present], [record[key] for record in present]


def _plot_curve(axes: Axes, series: tuple[list[int], list[float]], name: str, colour: str) -> None:
    """A line with some forty markers at most: they show a lone point and do not hide a long curve."""
    epochs, values = series
    if epochs:
        axes.plot(epochs, values, color=colour, label=name, linewidth=1.6, marker="o", markersize=3.5,
                  markevery=max(1, len(epochs) // 40))


def _plot_average_precision(axes: Axes, series: tuple[list[int], list[list[float]]]) -> None:
    """METRICS in percent, with their last values to the right. COCO's -1 (nothing to find) counts as no value."""
    epochs = [epoch for epoch, metrics in zip(*series) if metrics[0] >= 0]
    curves = {name: [100 * metrics[i] for metrics in series[1] if metrics[0] >= 0] for i, name in enumerate(METRICS)}
    axes.set(title="Average precision", xlabel="epoch", ylabel="AP [%]")
    if not epochs:
        axes.text(0.5, 0.5, "no average precision in this log", transform=axes.transAxes, ha="center", color="#737373")
        axes.set_yticks([])
        return
    for name, values in curves.items():
        _plot_curve(axes, (epochs, values), name, METRICS[name])
    axes.legend(frameon=False)
    top = 1.08 * max(1, *map(max, curves.values()))
    axes.set_ylim(0, top)
    height = 0
    for name, values in sorted(curves.items(), key=lambda curve: curve[1][-1]):
        height = max(height, values[-1])
        axes.text(1.01, height, f"{values[-1]:.1f}", color=METRICS[name], transform=axes.get_yaxis_transform(),
                  va="center")
        height += 0.045 * top  # the next number stays clear of this one


@contextmanager
def _atomic(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path beside `path`, in a folder that exists, that replaces it once it is completely written."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
