"""Boxes drawn on images: detections over ground truth, and targets."""
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.ops import box_convert

from reports.fonts import shown_names
from reports.labels import Box, Label, write_labels

# Bright, so that black text is legible on them. Black and white are reserved for the ground truth.
PALETTE = ("#ff3b6b", "#00b4ff", "#ffb000", "#2ee66b", "#b06bff", "#ff7a1a", "#00d5c8", "#f7e733", "#ff7ae0", "#8fb8ff")
MIN_LONG_SIDE = 480  # px, below which labels would hide the picture
NAME_LENGTH = 40


def draw_detections(image: Image.Image, ground_truth: dict, detections: dict, class_names: dict[int, str],
                    score_threshold: float = 0.3) -> Image.Image:
    """Draws ground truth (dashed, crowds dotted and hatched) and predictions (solid) on a copy of the image.

    ground_truth: "labels" [n], "boxes" [n, 4] xyxy in pixels of `image`, "iscrowd" [n].
    detections: "scores" [k], "labels" [k], "boxes" [k, 4] xyxy; those that score below the threshold are left out.
    Boxes are cut at the border of the image. A class without a name is called "class <id>"; names look as shown_names
    says.
    The copy is RGB and enlarged to MIN_LONG_SIDE where it is smaller.
    """
    canvas, draw, size, unit = _canvas(image)
    class_names = shown_names(class_names, NAME_LENGTH)
    truths = list(zip(ground_truth["labels"].tolist(), _pixels(ground_truth["boxes"].tolist(), image, canvas),
                      ground_truth["iscrowd"].tolist()))
    predictions = list(zip(detections["scores"].tolist(), detections["labels"].tolist(),
                           _pixels(detections["boxes"].tolist(), image, canvas)))
    predictions = sorted(prediction for prediction in predictions if prediction[0] >= score_threshold)
    for _, label, box in predictions:
        draw_prediction_box(draw, box, PALETTE[label % len(PALETTE)], unit)
    for _, box, crowd in truths:  # over the wider predictions, so that both show where they coincide
        draw_truth_box(draw, box, crowd, unit)

    # The prediction with the highest score takes the best place, and stays on top of the others if none is free.
    labels = [_class_label(label, class_names, box, f" {score:.2f}") for score, label, box in reversed(predictions)]
    labels += [Label(class_names.get(label, f"class {label}"), " (crowd)" if crowd else "", box, above=False,
                     colour="white", background="#000000a0") for label, box, crowd in truths]
    write_labels(draw, labels, size, canvas.size)
    return canvas


def draw_closely(image: Image.Image, ground_truth: dict, detection: dict, class_names: dict[int, str]) -> Image.Image:
    """The surroundings of a single detection: a square twice as large as its box, cut at the image's border. Arguments
    and drawing as in draw_detections."""
    size = torch.tensor(image.size)
    box = detection["boxes"][0].nan_to_num(0).clamp(-size.max(), 2 * size.max())
    box = torch.cat(box.view(2, 2).aminmax(dim=0))
    half, centre = (box[2:] - box[:2]).max().clamp(min=8), (box[:2] + box[2:]) / 2
    start = torch.minimum((centre - half).floor().clamp(min=0), size - 1)
    end = torch.minimum(torch.maximum((centre + half).ceil(), start + 1), size)
    boxes = ground_truth["boxes"]
    near = (boxes[:, :2] < end).all(1) & (boxes[:, 2:] > start).all(1)
    origin = torch.cat([start, start])
    shown_truth = {name: values[near] for name, values in ground_truth.items()} | {"boxes": boxes[near] - origin}
    window = image.crop((*start.int().tolist(), *end.int().tolist()))
    return draw_detections(window, shown_truth, detection | {"boxes": box[None] - origin}, class_names,
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
    """Draws labels [n] and boxes [n, 4] xyxy px in one colour per class, on a copy as draw_detections makes it."""
    canvas, draw, size, unit = _canvas(image)
    class_names = shown_names(class_names, NAME_LENGTH)
    targets = list(zip(labels.tolist(), _pixels(boxes.tolist(), image, canvas)))
    for label, box in targets:
        draw_prediction_box(draw, box, PALETTE[label % len(PALETTE)], unit)
    write_labels(draw, [_class_label(label, class_names, box) for label, box in targets], size, canvas.size)
    return canvas


def _class_label(label: int, class_names: dict[int, str], box: Box, suffix: str = "") -> Label:
    return Label(class_names.get(label, f"class {label}"), suffix, box, above=True, colour="black",
                 background=PALETTE[label % len(PALETTE)])


def _canvas(image: Image.Image) -> tuple[Image.Image, ImageDraw.ImageDraw, float, int]:
    """An RGB copy of MIN_LONG_SIDE or more, with what draws on it, a text size and a line width that suit its size."""
    factor = max(1, MIN_LONG_SIDE / max(image.size))
    canvas = image.convert("RGB").resize([max(1, round(side * factor)) for side in image.size])
    draw = ImageDraw.Draw(canvas, "RGBA")  # on an RGB canvas this mode blends translucent colours
    return canvas, draw, max(canvas.size) / 38, round(max(canvas.size) / 320)


def _pixels(boxes: list[list[float]], image: Image.Image, canvas: Image.Image) -> list[Box]:
    """Boxes of the image in whole pixels of the canvas, cut at its border."""
    def pixel(value: float, axis: int) -> int:
        return min(max(round(value * canvas.size[axis] / image.size[axis]), 0), canvas.size[axis] - 1)

    return [(pixel(left, 0), pixel(top, 1), pixel(right, 0), pixel(bottom, 1)) for left, top, right, bottom in boxes]


def draw_prediction_box(draw: ImageDraw.ImageDraw, box: Box, colour: str, unit: int) -> None:
    draw.rectangle(box, outline=colour, width=2 * unit)


def draw_truth_box(draw: ImageDraw.ImageDraw, box: Box, crowd: bool, unit: int) -> None:
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
