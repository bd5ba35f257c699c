"""A sound set to damage."""
import json

import numpy as np
import pytest
from PIL import Image

from tests.datasets.inspection.damages import SIZE, file_of, save


@pytest.fixture
def root(tmp_path):
    """Two splits of four noise images; each has one sound box of class 1, the first one of class 2 too."""
    root = tmp_path / "set"
    noise = np.random.default_rng(0)
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (root / f"{split}2017").mkdir()
        images = [{"id": i, "file_name": f"{split}{i}.png", "width": SIZE[0], "height": SIZE[1]} for i in range(1, 5)]
        boxes = [{"id": 10 * i, "image_id": i, "category_id": 1, "bbox": [10, 20, 30, 40]} for i in range(1, 5)]
        boxes.append({"id": 11, "image_id": 1, "category_id": 2, "bbox": [0, 0, 50, 50], "area": 2000, "iscrowd": 0})
        for image in images:
            save(root, split, image["id"], Image.fromarray(noise.integers(0, 256, (80, 100, 3), np.uint8)))
        content = {"images": images, "annotations": boxes, "licenses": [],
                   "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]}
        file_of(root, split).write_text(json.dumps(content))
    return root
