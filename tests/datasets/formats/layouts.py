"""One small set, written in every layout that is read: 6 train and 4 val images of 64 x 128 px, in noise."""
import hashlib
import json
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.coco import CocoDetection
from datasets.data import DetectionData
from datasets.transforms import train_transforms, val_transforms
from util.options import DataOptions

NAMES = ["ant", "bee", "cat"]  # sorted, as Pascal VOC's classes are
SIZE = (64, 128)  # powers of two: parts of the image are exact
COUNTS = {"train": 6, "val": 4}
EVERY = ("coco", "roboflow", "yolo", "voc", "places")
SMALL = {"data_aug_scales": [64, 96], "data_aug_max_size": 128, "data_aug_scales2_resize": [64, 80],
         "data_aug_scales2_crop": [48, 64]}


def boxes_of(split, index):
    """[(class index, x, y, width, height)] px of an image; number 2 has none."""
    generator = np.random.default_rng([index, len(split)])
    count = 0 if index == 2 else 1 + index % 3
    return [(int(generator.integers(len(NAMES))), int(generator.integers(30)), int(generator.integers(60)),
             int(generator.integers(8, 30)), int(generator.integers(8, 60))) for _ in range(count)]


def stem(split, index):
    return f"{split}_{index}"


def save(split, index, folder):
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng([index, 7, len(split)]).integers(0, 256, (SIZE[1], SIZE[0], 3), np.uint8)
    Image.fromarray(noise).save(folder / f"{stem(split, index)}.png")


def coco_content(split, first_id=1):
    annotations = [{"id": 0, "image_id": index + 1, "category_id": label + first_id, "bbox": [x, y, w, h],
                    "area": w * h, "iscrowd": 0}
                   for index in range(COUNTS[split]) for label, x, y, w, h in boxes_of(split, index)]
    for number, annotation in enumerate(annotations, 1):
        annotation["id"] = number
    return {"images": [{"id": index + 1, "file_name": f"{stem(split, index)}.png", "width": SIZE[0], "height": SIZE[1]}
                       for index in range(COUNTS[split])], "annotations": annotations,
            "categories": [{"id": i, "name": name, "supercategory": "animals"}
                           for i, name in enumerate(NAMES, first_id)]}


def write_coco(root, folders=("train2017", "val2017"), files=("annotations/instances_train2017.json",
                                                              "annotations/instances_val2017.json"), change=None):
    for split, folder, file in zip(COUNTS, folders, files):
        for index in range(COUNTS[split]):
            save(split, index, root / folder)
        content = coco_content(split)
        if change:
            change(content)
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(json.dumps(content))
    return root


def write_roboflow(root):
    def with_project(content):
        content["categories"].insert(0, {"id": 0, "name": "animals", "supercategory": "none"})

    return write_coco(root, ("train", "valid"), ("train/_annotations.coco.json", "valid/_annotations.coco.json"),
                      with_project)


def yolo_lines(split, index):
    lines = [(label, (x + w / 2) / SIZE[0], (y + h / 2) / SIZE[1], w / SIZE[0], h / SIZE[1])
             for label, x, y, w, h in boxes_of(split, index)]
    return "".join(" ".join(map(repr, line)) + "\n" for line in lines)


def write_yolo(root, yaml="train: images/train\nval: images/val\nnames: [ant, bee, cat]\n"):
    for split, count in COUNTS.items():
        (root / "labels" / split).mkdir(parents=True)
        for index in range(count):
            save(split, index, root / "images" / split)
            (root / f"labels/{split}/{stem(split, index)}.txt").write_text(yolo_lines(split, index))
    (root / "data.yaml").write_text(yaml)
    return root


def voc_xml(split, index, size=SIZE, difficult=""):
    objects = "".join(
        f"  <object>\n    <name>{NAMES[label]}</name>\n{difficult}    <bndbox>\n      <xmin>{x + 1}</xmin>\n"
        f"      <ymin>{y + 1}</ymin>\n      <xmax>{x + w}</xmax>\n      <ymax>{y + h}</ymax>\n    </bndbox>\n"
        "  </object>\n" for label, x, y, w, h in boxes_of(split, index))
    sides = f"  <size>\n    <width>{size[0]}</width>\n    <height>{size[1]}</height>\n  </size>\n" if size else ""
    return f"<annotation>\n  <filename>{stem(split, index)}.png</filename>\n{sides}{objects}</annotation>\n"


def write_voc(root):
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for split, count in COUNTS.items():
        for index in range(count):
            save(split, index, root / "JPEGImages")
            (root / f"Annotations/{stem(split, index)}.xml").write_text(voc_xml(split, index))
        (root / f"ImageSets/Main/{split}.txt").write_text("".join(f"{stem(split, i)}\n" for i in range(count)))
    return root


def write_places(root):
    """COCO files and images where no layout has them; the options that name them."""
    write_coco(root, ("pictures/a", "b"), ("boxes.json", "other/val.json"))
    return {"train_images": [str(root / "pictures/a")], "train_annotations": [str(root / "boxes.json")],
            "val_images": [str(root / "b")], "val_annotations": [str(root / "other/val.json")]}


LAYOUTS = {"coco": write_coco, "roboflow": write_roboflow, "yolo": write_yolo, "voc": write_voc}


def write_layout(name, root: Path):
    """The path and the options of the set in that layout; "places" is the fifth."""
    if name == "places":
        return None, write_places(root)
    return LAYOUTS[name](root), {}


def opened(name, root, cache_folder=None, **options):
    """The set in that layout, as it is read."""
    path, places = write_layout(name, root)
    return DetectionData(path, DataOptions(**places | options), cache_folder)


def digests(data):
    """By split, a hash of everything that training and evaluation see, augmented and not."""
    found = {}
    for split, transforms in (("train", train_transforms), ("val", val_transforms)):
        digest, dataset = hashlib.sha256(), CocoDetection(data, split, transforms(DataOptions(**SMALL)), seed=3)
        for image, target in (dataset[i] for i in range(2 * len(dataset) if split == "train" else len(dataset))):
            digest.update(image.numpy().tobytes())
            for name in sorted(target):
                digest.update(name.encode() + np.asarray(target[name]).tobytes())
        digest.update(json.dumps([dataset.names, dataset.ids, dataset.coco.dataset]).encode())
        found[split] = digest.hexdigest()
    return found
