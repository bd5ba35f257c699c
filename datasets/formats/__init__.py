"""The layouts of data sets that are read, one file each, and what tells them apart.

A layout is a function of a path that returns its Layout, or None where something else lies. Its reader turns each split
into a Table (datasets/table.py); everything else reads tables.
"""
from collections.abc import Callable
from pathlib import Path

from datasets.formats.advice import advice
from datasets.formats.coco import coco_2017, roboflow
from datasets.formats.data_yaml import yolo
from datasets.formats.source import Layout
from datasets.formats.voc import voc
from util.errors import UserError

LAYOUTS: dict[str, Callable[[Path], Layout | None]] = {  # the first that fits
    "COCO 2017 (annotations/instances_train2017.json, train2017/)": coco_2017,
    "Roboflow's COCO export (train/_annotations.coco.json)": roboflow,
    "YOLO (data.yaml, images/, labels/)": yolo,
    "Pascal VOC (Annotations/, JPEGImages/, ImageSets/Main/)": voc,
}


def find_layout(path: str | Path) -> Layout:
    """Raises UserError if no known layout lies at the path."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"no folder {path}")
    for layout in LAYOUTS.values():
        if (path.is_dir() or layout is yolo) and (found := layout(path)) is not None:
            return found
    raise UserError(f"{path} holds no data set of a known layout, which are: {'; '.join(LAYOUTS)}. {advice(path)}")
