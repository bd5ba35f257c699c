"""COCO folders, whole and damaged: what is read, what is left out, and what is refused by name."""
import logging
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.coco import check_num_classes, class_names, collate, read_annotations
from datasets.images import read_image
from tests.datasets.coco_sets import (
    CROWD,
    NONE,
    assert_same,
    edited,
    every,
    file_of,
    only_image,
    opened,
    picture,
    refusal,
    untouched,
)
from util.options import DataOptions


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def rescale(path):
    with Image.open(path) as image:
        larger = image.resize((image.width + 1, image.height))
    larger.save(path)


DAMAGES = {"gone": lambda path: path.unlink(), "truncated": truncate, "empty": lambda path: path.write_bytes(b""),
           "text": lambda path: path.write_text("<html>"), "of another size": rescale}


# what an item is

@pytest.mark.parametrize("split", ["train", "val"])
def test_items_hold_what_the_docs_say(coco_root, split):
    dataset = opened(coco_root, split)
    assert len(dataset) == 8
    for index in range(8):
        image, target = dataset[index]
        count = len(target["boxes"])
        assert image.dtype == torch.uint8 and image.shape == (3, *target["size"])
        assert target["boxes"].shape == (count, 4) and type(target["boxes"]) is torch.Tensor
        assert target["boxes"].dtype == torch.float32 and target["labels"].dtype == torch.int64
        assert target["labels"].shape == target["area"].shape == target["iscrowd"].shape == (count,)
        assert ((target["boxes"] >= 0) & (target["boxes"] <= 1)).all()
        assert target["image_id"] == index + 1 and target["skipped"] == 0
        info = dataset.coco.imgs[index + 1]
        assert target["orig_size"].tolist() == [info["height"], info["width"]]


def test_boxes_and_labels_are_those_of_the_file(coco_root):
    dataset = untouched(coco_root)
    for index in range(8):
        _, target = dataset[index]
        wanted = [a for a in dataset.coco.imgToAnns[index + 1] if not a["iscrowd"]]
        assert target["labels"].tolist() == [a["category_id"] for a in wanted]
        assert target["area"].tolist() == [a["area"] for a in wanted]
        assert target["boxes"].tolist() == [[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in wanted)]


def test_crowds_are_left_out_and_images_without_objects_stay(coco_root):
    dataset = untouched(coco_root)
    crowds = [a for a in dataset.coco.imgToAnns[CROWD + 1] if a["iscrowd"]]
    _, target = dataset[CROWD]
    assert crowds and len(target["boxes"]) == len(dataset.coco.imgToAnns[CROWD + 1]) - len(crowds) > 0
    assert not target["iscrowd"].any()
    _, target = opened(coco_root)[NONE]
    assert target["boxes"].shape == (0, 4) and target["labels"].shape == (0,)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_images_of_any_mode_become_rgb(root, mode):
    only_image(root, 40, 30)
    with edited(root, "val") as content:
        content["images"][0]["file_name"] = "picture.tiff"
    Image.new("RGB", (40, 30), (200, 30, 60)).convert(mode).save(root / "val2017" / "picture.tiff")
    assert opened(root, "val")[0][0].shape[0] == 3


def test_file_names_may_hold_folders(root):
    (root / "train2017" / "part").mkdir()
    shutil.move(picture(root, 0), root / "train2017" / "part" / "a.jpg")
    with edited(root) as content:
        content["images"][0]["file_name"] = "part/a.jpg"
    dataset = opened(root)
    assert len(dataset) == 8 and dataset[0][1]["image_id"] == 1


def test_file_names_become_those_of_the_files(root):
    (root / "train2017/part").mkdir()
    shutil.move(picture(root, 0), root / "train2017/part/a.jpg")
    with edited(root) as content:
        content["images"][0]["file_name"] = "part\\A.jpg"
    dataset = opened(root)
    assert len(dataset) == 8 and dataset.coco.imgs[1]["file_name"] == "part/a.jpg"


@pytest.mark.parametrize("split", ["train", "val"])
def test_training_and_evaluation_see_what_a_detection_sees(root, split):
    only_image(root, 40, 30)
    values = np.arange(1200).reshape(30, 40).astype(np.uint16) * 3 + 2000
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(values).save(root / f"{split}2017/deep.png", exif=exif)
    with edited(root, split) as content:
        content["images"][0]["file_name"] = "deep.png"
    image, _ = untouched(root, split)[0]
    assert image.tobytes() == read_image(root / f"{split}2017/deep.png").tobytes()
    assert image.getpixel((0, 0)) == (255, 255, 255) and image.getpixel((39, 29)) == (0, 0, 0)


def test_a_test_split_has_images_but_no_annotations(root):
    shutil.move(root / "val2017", root / "test2017")
    with edited(root, "val") as content:
        del content["annotations"]
    shutil.move(file_of(root, "val"), root / "annotations" / "image_info_test-dev2017.json")
    dataset = opened(root, "test")
    assert len(dataset) == 8 and all(len(target["boxes"]) == 0 for _, target in (dataset[i] for i in range(8)))


# boxes


@pytest.mark.parametrize("split, words", [("train", "to learn from"), ("val", "to measure AP with")])
def test_a_set_without_boxes_is_told(root, split, words, caplog):
    with edited(root, split) as content:
        every(lambda a: a.update(iscrowd=1))(content)
    opened(root, split)
    assert f"no box {words}: its {len(content['annotations'])} annotations are crowd regions" in caplog.text
    caplog.clear()
    with edited(root, split) as content:
        content["annotations"] = []
    opened(root, split)
    assert f"no box {words}" in caplog.text and "crowd" not in caplog.text


def test_pictures_are_read_upright(root, caplog):
    exif = Image.Exif()
    exif[0x0112] = 6
    for split, size in (("train", (30, 40)), ("val", (40, 30))):
        only_image(root, *size, [[0, 0, 10, 20]])
        image = Image.new("RGB", (40, 30))
        image.paste((255, 255, 255), (0, 20, 20, 30) if split == "train" else (0, 0, 10, 20))
        image.save(picture(root, 0, split), exif=exif, quality=100)
        with caplog.at_level(logging.WARNING):
            shown, target = untouched(root, split)[0]
        # The box is around the white part of what is seen, upright in the one and as it is stored in the other.
        assert shown.size == size and target["orig_size"].tolist() == [size[1], size[0]]
        assert np.asarray(shown.crop((0, 0, 10, 20))).min() > 200 and np.asarray(shown).mean() < 60
        assert ("have an EXIF orientation" in caplog.text) == (split == "val")


# damaged images

@pytest.mark.parametrize("damage", DAMAGES)
def test_training_passes_over_an_unusable_image(root, damage, caplog):
    DAMAGES[damage](picture(root, 2))
    with caplog.at_level(logging.WARNING):
        dataset = opened(root)
        items = [dataset[i][1] for i in range(len(dataset))]
    ids, skips = [t["image_id"] for t in items], [t["skipped"] for t in items]
    if damage == "gone":  # known before the first step, so no place is taken by another image
        assert (ids, skips) == ([1, 2, 4, 5, 6, 7, 8], [0] * 7)
        assert "1 images" in caplog.text
    else:
        assert (ids, skips) == ([1, 2, 4, 4, 5, 6, 7, 8], [0, 0, 1, 0, 0, 0, 0, 0])
    assert picture(root, 2).name in caplog.text
    _, sound = untouched(root)[ids.index(4)]
    assert len(items[ids.index(4)]["labels"]) == len(sound["labels"])


def test_after_the_last_image_comes_the_first(root):
    for index in (6, 7):
        truncate(picture(root, index))
    target = opened(root)[6][1]
    assert target["image_id"] == 1 and target["skipped"] == 2


def test_training_without_any_usable_image_is_an_error(root):
    for index in range(8):
        truncate(picture(root, index))
    dataset = opened(root)
    assert "train2017" in refusal(lambda: dataset[0])
    for index in range(8):
        picture(root, index).unlink()
    assert "instances_train2017.json" in refusal(opened, root)


@pytest.mark.parametrize("split, strict", [("train", True), ("val", False)])
@pytest.mark.parametrize("damage", DAMAGES)
def test_strict_training_and_evaluation_stop_at_an_unusable_image(root, damage, split, strict):
    DAMAGES[damage](picture(root, 2, split))

    def read_all():
        dataset = opened(root, split, strict=strict)
        for index in range(len(dataset)):
            dataset[index]

    assert picture(root, 2, split).name in refusal(read_all)


def test_both_sizes_of_an_image_that_differs_are_told(root):
    only_image(root, 40, 30)
    Image.new("RGB", (30, 40)).save(picture(root, 0, "val"))
    text = refusal(lambda: opened(root, "val")[0])
    assert "30x40" in text and "40x30" in text


# damaged annotations


def test_classes_must_have_room_for_every_category(coco_root):
    names = class_names(read_annotations(coco_root, "train"))
    assert names == dict(enumerate(("disc", "ring", "square", "triangle", "star", "cross"), 1))
    check_num_classes(7, names, "x.json")
    check_num_classes(91, names, "x.json")
    text = refusal(check_num_classes, 6, names, "x.json")
    assert "x.json" in text and "num_classes=6" in text and "7" in text


# sizes at the ends

@pytest.mark.parametrize("width, height", [(1, 1), (5000, 100), (100, 5000), (3000, 1), (1, 3000)])
@pytest.mark.parametrize("split", ["train", "val"])
def test_extreme_shapes_give_images_of_bounded_size(root, split, width, height):
    only_image(root, width, height, [[0, 0, width, height]])
    dataset = opened(root, split, DataOptions())
    for sample in range(6 if split == "train" else 1):
        image, target = dataset[sample]
        assert min(image.shape) >= 1
        # The shorter side is rounded, and 1 px at least, which moves the longer one by up to half the ratio or to it.
        ratio = max(width, height) / min(width, height)
        assert image[0].numel() <= 800 * 1333 and max(image.shape) <= max(1333 + ratio / 2, ratio)
        assert image.dtype == torch.uint8
        torch.testing.assert_close(target["boxes"], torch.tensor([[0.5, 0.5, 1, 1]]))


# randomness

def test_a_sample_follows_from_seed_and_number(coco_root):
    one, other = opened(coco_root, seed=5), opened(coco_root, seed=5)
    for repetition in (3, 0, 3):
        torch.manual_seed(repetition)
        numbers = [8 * repetition + i for i in range(8)]
        first = [one[i] for i in numbers]
        for i, sample in zip(reversed(numbers), reversed(first)):
            assert_same(other[i], sample)


@pytest.mark.parametrize("change", ["repetition", "seed"])
def test_another_repetition_or_seed_gives_other_samples_of_the_same_images(coco_root, change):
    one, other = opened(coco_root), opened(coco_root, seed=int(change == "seed"))
    offset = 8 * int(change == "repetition")
    pairs = [(one[i], other[offset + i]) for i in range(8)]
    assert all(a[1]["image_id"] == b[1]["image_id"] for a, b in pairs)
    assert sum(a[0].shape != b[0].shape or not torch.equal(a[0], b[0]) for a, b in pairs) >= 4


def test_the_images_of_a_pass_are_not_augmented_alike(coco_root):
    dataset = opened(coco_root)
    assert len({tuple(dataset[i][1]["size"].tolist()) for i in range(8)}) > 2


def test_sampling_does_not_seed_cuda(coco_root, monkeypatch):
    """torch.manual_seed seeds every GPU too, from which the denoising noise is drawn."""
    seeds = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    opened(coco_root)[0]
    assert not seeds


# batches

def test_a_batch_is_padded_and_masked(coco_root):
    dataset = opened(coco_root, "val")
    samples = [dataset[i] for i in (0, 1, NONE)]
    batch, targets = collate(samples)
    assert batch.tensors.shape == (3, 3, *(max(s[0].shape[k] for s in samples) for k in (1, 2)))
    for (image, target), padded, mask, collated in zip(samples, batch.tensors, batch.mask, targets, strict=True):
        height, width = target["size"]
        assert torch.equal(padded[:, :height, :width], image)
        assert not mask[:height, :width].any() and mask.sum() == mask.numel() - height * width
        assert not padded[:, mask].any()
        assert collated is target
