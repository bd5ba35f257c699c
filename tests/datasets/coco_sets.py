"""Copies of a small COCO set, and what is changed in them."""
import contextlib
import json

import pytest
import torch
from PIL import Image

from datasets.coco import CocoDetection
from datasets.coco_eval import coco_results, summarize
from datasets.transforms import train_transforms, val_transforms
from util.errors import UserError
from util.options import DataOptions

SMALL = DataOptions(data_aug_scales=[64, 96], data_aug_max_size=128, data_aug_scales2_resize=[64, 80],
                    data_aug_scales2_crop=[48, 64])
NONE, CROWD = 3, 7  # index of the image without objects, and of the one with a crowd


def file_of(root, split):
    return root / "annotations" / f"instances_{split}2017.json"


@contextlib.contextmanager
def edited(root, split="train"):
    """The content of an annotation file, written back at the end."""
    content = json.loads(file_of(root, split).read_text())
    yield content
    file_of(root, split).write_text(json.dumps(content))


def opened(root, split="train", options=SMALL, **kwargs):
    transforms = train_transforms if split == "train" else val_transforms
    return CocoDetection(root, split, transforms(options), **kwargs)


def assert_same(one, other):
    """That two items of a set are equal in all they hold."""
    tensor, target = one
    assert torch.equal(tensor, other[0])
    assert target.keys() == other[1].keys()
    for key, value in target.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(other[1][key])), key


def untouched(root, split="train"):
    """The set without transforms: PIL images, and boxes as xyxy px."""
    return CocoDetection(root, split, lambda image, target: (image, target))


def picture(root, index, split="train"):
    return root / f"{split}2017" / f"{index + 1:012d}.jpg"


def refusal(read, *args, **kwargs):
    with pytest.raises(UserError) as error:
        read(*args, **kwargs)
    return str(error.value)


def only_image(root, width, height, boxes=()):
    """Replaces both splits by one image of that size. boxes: xywh px."""
    for split in ("train", "val"):
        Image.new("RGB", (width, height), (200, 30, 60)).save(picture(root, 0, split))
        with edited(root, split) as content:
            content["images"] = [content["images"][0] | {"width": width, "height": height}]
            content["annotations"] = [{"id": i + 1, "image_id": 1, "category_id": 1, "bbox": box}
                                      for i, box in enumerate(boxes)]


def worth(root, shift=0.0):
    """COCO's twelve numbers of the boxes that a training is taught, moved to the right by `shift` px."""
    dataset = untouched(root, "val")
    found = {}
    for index, image_id in enumerate(dataset.ids):
        target = dataset.boxes(index)
        boxes = target["boxes"] + torch.tensor([shift, 0, shift, 0])
        number = int(dataset.path(index).stem)  # no scores are equal, so that the order of the images is no matter
        rows = {"scores": torch.linspace(0.99, 0.5, len(boxes)) - number / 1000, "labels": target["labels"],
                "boxes": boxes}
        found |= coco_results([image_id], [rows], dataset.coco.cats)
    return summarize(dataset.coco, found).stats


def every(change):
    """A change of all annotations of a file."""
    def change_all(content):
        for annotation in content["annotations"]:
            change(annotation)
    return change_all
