"""A set whose boxes are painted, each in a colour of its own, so that the pixels say where it has gone."""
import json

import numpy as np
import torch
from PIL import Image

from datasets.coco import CocoDetection, Reader

RED, GREEN, BLUE, YELLOW, MAGENTA, CYAN, WHITE = 1, 2, 4, 3, 5, 6, 7  # labels: a bit for each channel that is bright


def write(root, pictures, suffix="png", val=True):
    """Writes a COCO set. pictures: of each image (width, height) and {label: box xyxy px}, later ones on top."""
    splits = ("train", "val") if val else ("train",)
    (root / "annotations").mkdir(parents=True)
    for split in splits:
        (root / f"{split}2017").mkdir()
        images, boxes = [], []
        for number, ((width, height), painted) in enumerate(pictures, 1):
            pixels = np.zeros((height, width, 3), np.uint8)
            for label, (left, top, right, bottom) in painted.items():
                pixels[top:bottom, left:right] = [255 * bool(label & 1 << channel) for channel in range(3)]
                boxes.append({"id": len(boxes) + 1, "image_id": number, "category_id": label, "iscrowd": 0,
                              "bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top)})
            Image.fromarray(pixels).save(root / f"{split}2017/{number}.{suffix}", quality=100, subsampling=0)
            images.append({"id": number, "file_name": f"{number}.{suffix}", "width": width, "height": height})
        (root / f"annotations/instances_{split}2017.json").write_text(json.dumps(
            {"images": images, "annotations": boxes, "categories": [{"id": i, "name": f"c{i}"} for i in range(1, 8)]}),
            encoding="utf-8")
    return root


def reader(root):
    return Reader(CocoDetection(root, "train", None))


def pixels_of(image):
    """[H, W, 3]"""
    return image.permute(1, 2, 0).numpy() if isinstance(image, torch.Tensor) else np.asarray(image)


def extents(image, dark=100, bright=155):
    """Per label, the box xyxy px around its pixels. What is between dark and bright is of no colour."""
    pixels = pixels_of(image)
    labels = (pixels > bright) @ np.array([1, 2, 4]) * ((pixels > bright) | (pixels <= dark)).all(-1)
    found = {}
    for label in np.unique(labels[labels > 0]).tolist():
        rows, columns = np.nonzero(labels == label)
        found[label] = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    return found


def boxes_of(image, target):
    """Per label, the box xyxy px of the target."""
    boxes = target["boxes"].as_subclass(torch.Tensor)
    if "size" in target:
        height, width = pixels_of(image).shape[:2]
        boxes = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
        boxes = boxes * torch.tensor([width, height, width, height])
    labels = target["labels"].tolist()
    assert len(set(labels)) == len(labels)
    return dict(zip(labels, boxes.tolist()))
