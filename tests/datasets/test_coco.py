"""COCO folders, whole and damaged: what is read, what is left out, and what is refused by name."""
import contextlib
import json
import logging
import random
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.coco import CocoDetection, check_num_classes, class_names, collate, read_annotations
from datasets.coco_eval import coco_results, summarize
from datasets.images import read_image
from datasets.loaders import train_loader
from datasets.transforms import train_transforms, val_transforms
from util.errors import UserError
from util.options import DataOptions

SMALL = DataOptions(data_aug_scales=[64, 96], data_aug_max_size=128, data_aug_scales2_resize=[64, 80],
                    data_aug_scales2_crop=[48, 64])
NONE, CROWD = 3, 7  # index of the image without objects, and of the one with a crowd


@pytest.fixture
def root(coco_root, tmp_path):
    """A copy of the set that a test may damage."""
    return shutil.copytree(coco_root, tmp_path / "set")


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


def untouched(root, split="train"):
    """The set without transforms: PIL images, and boxes as xyxy px."""
    return CocoDetection(root, split, lambda image, target: (image, target))


def picture(root, index, split="train"):
    return root / f"{split}2017" / f"{index + 1:012d}.jpg"


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def rescale(path):
    with Image.open(path) as image:
        larger = image.resize((image.width + 1, image.height))
    larger.save(path)


DAMAGES = {"gone": lambda path: path.unlink(), "truncated": truncate, "empty": lambda path: path.write_bytes(b""),
           "text": lambda path: path.write_text("<html>"), "of another size": rescale}


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


def same(one, other):
    tensor, target = one
    assert torch.equal(tensor, other[0])
    assert target.keys() == other[1].keys()
    for key, value in target.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(other[1][key])), key


# what an item is

@pytest.mark.parametrize("split", ["train", "val"])
def test_items_hold_what_the_docs_say(coco_root, split):
    dataset = opened(coco_root, split)
    assert len(dataset) == 8
    for index in range(8):
        image, target = dataset[index]
        count = len(target["boxes"])
        assert image.dtype == torch.float32 and image.shape == (3, *target["size"])
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


def test_areas_and_crowd_flags_have_defaults(root):
    with edited(root) as content:
        content["annotations"] = [{k: v for k, v in a.items() if k not in ("area", "iscrowd", "segmentation")}
                                  for a in content["annotations"]]
        del content["info"], content["licenses"]
    dataset = untouched(root)
    everything = dataset.coco.imgToAnns[CROWD + 1]
    _, target = dataset[CROWD]
    assert target["area"].tolist() == [a["bbox"][2] * a["bbox"][3] for a in everything]


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

def test_unusable_boxes_are_dropped_and_counted(root, caplog):
    bad = [[200, 10, 20, 20], [-50, 10, 20, 20], [10, -20, 5, 20], [10, 10, 0, 20], [10, 10, 20, -3],
           [float("nan"), 10, 20, 20], [10, 10, float("inf"), 20], [10, 10, 20, float("nan")]]
    good = [[10, 10, 20, 20], [-5, 40, 20, 20], [90, 70, 1000, 1000]]
    only_image(root, 100, 80, bad[:4] + good + bad[4:])
    with caplog.at_level(logging.WARNING):
        _, target = untouched(root)[0]
    assert target["boxes"].tolist() == [[10, 10, 30, 30], [0, 40, 15, 60], [90, 70, 100, 80]]
    assert len(target["labels"]) == len(target["area"]) == len(target["iscrowd"]) == 3
    assert "train2017: dropped 8 boxes" in caplog.text


def test_dropped_boxes_do_not_count_in_the_evaluation(root):
    only_image(root, 100, 80, [[10, 10, 20, 20], [30, 10, 0, 20], [200, 10, 20, 20]])
    dataset = opened(root, "val")
    found = {"scores": torch.tensor([0.9]), "labels": dataset[0][1]["labels"],
             "boxes": torch.tensor([[10.0, 10, 30, 30]])}
    summary = summarize(dataset.coco, coco_results([dataset.ids[0]], [found], dataset.coco.cats))
    assert summary.stats[0] == pytest.approx(1.0)


def test_nothing_is_logged_for_a_sound_set(coco_root, caplog):
    with caplog.at_level(logging.WARNING):
        opened(coco_root), opened(coco_root, "val")
    assert not caplog.records


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


def other_ids(new):
    def change(content):
        for image in content["images"]:
            image["id"] = new(image["id"])
        for annotation in content["annotations"]:
            annotation["image_id"] = new(annotation["image_id"])
    return change


OTHERWISE_WRITTEN = {
    **{f"area {value!r}": every(lambda a, value=value: a.update(area=value))
       for value in (None, 0, -1, 1.0, 1e12, float("nan"), float("inf"), "0", "nan")},
    "no area": every(lambda a: a.pop("area")), "area as text": every(lambda a: a.update(area=str(a["area"]))),
    "iscrowd as text": every(lambda a: a.update(iscrowd=str(a["iscrowd"]))),
    "iscrowd as bool": every(lambda a: a.update(iscrowd=bool(a["iscrowd"]))),
    "iscrowd null": every(lambda a: a.update(iscrowd=a["iscrowd"] or None)),
    "no iscrowd": every(lambda a: a["iscrowd"] or a.pop("iscrowd")),
    "boxes as text": every(lambda a: a.update(bbox=[str(x) for x in a["bbox"]])),
    "class ids as text": every(lambda a: a.update(category_id=str(a["category_id"]))),
    "class ids as floats": every(lambda a: a.update(category_id=float(a["category_id"]))),
    "image ids as text": every(lambda a: a.update(image_id=str(a["image_id"]))),
    "no annotation ids": every(lambda a: a.pop("id")),
    "segmentation null": every(lambda a: a.update(segmentation=None)),
    "image ids as floats": other_ids(float), "hashes of 64 bits": other_ids(lambda i: 2**64 - 2 * i),
    "hashes and small numbers": other_ids(lambda i: i if i % 2 else 2**63 + i),
    "hashes below 0 and above": other_ids(lambda i: (-1) ** i * (2**63 + i)),
    "texts": other_ids(lambda i: f"img_{i}"), "texts and numbers": other_ids(lambda i: i if i % 2 else f"img_{i}"),
    "numbers with fractions": other_ids(lambda i: i + 0.5),
    "a polygon for a box": every(lambda a: a.update(bbox=None, segmentation=[[
        a["bbox"][0], a["bbox"][1], a["bbox"][0] + a["bbox"][2], a["bbox"][1],
        a["bbox"][0] + a["bbox"][2] / 2, a["bbox"][1] + a["bbox"][3]]])),
}


@pytest.mark.parametrize("name", OTHERWISE_WRITTEN)
def test_what_is_written_otherwise_is_worth_the_same(root, name):
    with edited(root, "val") as content:
        every(lambda a: a.update(area=a["bbox"][2] * a["bbox"][3]))(content)
    wanted = [worth(root, shift) for shift in (0, 3)]
    assert wanted[0][0] == pytest.approx(1) and wanted[1][0] < 0.9
    with edited(root, "val") as content:
        OTHERWISE_WRITTEN[name](content)
    assert [worth(root, shift) for shift in (0, 3)] == [pytest.approx(numbers) for numbers in wanted]


@pytest.mark.parametrize("left", [lambda x, w: [-w / 2, w], lambda x, w: [-2, w + 2], lambda x, w: [x, 1000]])
def test_boxes_over_the_border_are_cut_for_the_evaluation_as_for_the_training(root, left, caplog):
    def move(annotation):
        x, y, width, height = annotation["bbox"]
        x, width = left(x, width)
        annotation["bbox"] = [x, y, width, height]

    with edited(root, "val") as content:
        every(move)(content)
    with caplog.at_level(logging.INFO):
        coco = read_annotations(root, "val")
    assert f"val2017: {len(content['annotations'])} boxes extend beyond their image" in caplog.text
    for annotation in coco.dataset["annotations"]:
        x, y, width, height = annotation["bbox"]
        image = coco.imgs[annotation["image_id"]]
        assert x >= 0 and 0 < x + width <= image["width"] and annotation["area"] <= width * height
    assert worth(root)[0] == pytest.approx(1)


def test_a_mask_keeps_its_area(root):
    only_image(root, 100, 80, [[10, 10, 20, 20], [-10, 10, 20, 20], [50, 10, 20, 20]])
    with edited(root) as content:
        for annotation, area in zip(content["annotations"], (150, 350, 150)):
            annotation["area"] = area
    assert [a["area"] for a in read_annotations(root, "train").dataset["annotations"]] == [150, 200, 150]


def test_what_was_derived_is_counted_in_one_line(root, caplog):
    with edited(root) as content:
        every(lambda a: a.update(area=None, iscrowd=a["iscrowd"] or None))(content)
    with caplog.at_level(logging.INFO):
        read_annotations(root, "train")
    (record,) = caplog.records
    count = len(content["annotations"])
    assert f"train2017: derived {count} areas" in record.message and f"; {count - 1} crowd flags" in record.message \
        or f"train2017: derived {count - 1} crowd flags" in record.message and f"; {count} areas" in record.message


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


def test_boxes_of_another_format_are_told(root, caplog):
    with edited(root) as content:
        every(lambda a: a.update(bbox=[x / 200 for x in a["bbox"]]))(content)
    opened(root)
    assert "look like parts of the image" in caplog.text


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


@pytest.mark.parametrize("name", ["../outside.jpg", "..\\outside.jpg", "part/../../outside.jpg", "/etc/hostname"])
def test_file_names_lead_to_no_other_folder(root, name):
    shutil.copy(picture(root, 0), root / "outside.jpg")
    with edited(root) as content:
        content["images"][0]["file_name"] = name
    assert "leads outside" in refusal(opened, root)


VALUES = [None, True, -1, 0, 1.5, 1e308, float("nan"), float("inf"), 10**400, "", "a\0", "\ud800", [], [[]], {}, "1"]


def test_no_value_in_an_annotation_file_is_a_crash(root):
    """Each place of a small file takes each of VALUES, or is left out; only a UserError may come of it."""
    with edited(root) as content:
        content["images"], content["categories"] = content["images"][:1], content["categories"][:1]
        content["annotations"] = [a | {"category_id": 1} for a in content["annotations"] if a["image_id"] == 1][:1]
    places = [(name, 0, key) for name in ("images", "categories", "annotations") for key in content[name][0]]
    places += [("annotations", 0, "bbox", 2), ("images", 0), ("categories", 0), ("annotations", 0), ("images",),
               ("categories",), ("annotations",)]
    outcomes = {"read": 0, "refused": 0}
    for *path, last in places:
        for value in [*VALUES, "left out"]:
            changed = json.loads(json.dumps(content))
            entry = changed
            for key in path:
                entry = entry[key]
            if value == "left out":
                del entry[last]
            else:
                entry[last] = value
            file_of(root, "train").write_text(json.dumps(changed))
            try:
                dataset = untouched(root)
                dataset[0]
                summarize(dataset.coco, {i: [] for i in dataset.ids})
                outcomes["read"] += 1
            except UserError as error:
                assert str(error).isprintable()
                outcomes["refused"] += 1
    assert min(outcomes.values()) > 50


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

def test_missing_folders_and_files_are_named(root):
    assert "nowhere" in refusal(opened, root / "nowhere")
    assert "image_info_test-dev2017.json" in refusal(opened, root, "test")
    shutil.rmtree(root / "val2017")
    assert "val2017" in refusal(opened, root, "val")


@pytest.mark.parametrize("text, words", [
    ("{", "not valid JSON"), ("", "not valid JSON"), ("[]", "a list"), ("3", "int"), ("{}", "'images'"),
    ('{"images": [], "categories": []}', "'images'"),
    ('{"images": [{"id": 1, "file_name": "a.jpg", "height": 1, "width": 1}]}', "'categories'"),
    ('{"images": {"id": 1}, "categories": [{"id": 1, "name": "a"}]}', "'images'"),
    ('{"images": ["a.jpg"], "categories": [{"id": 1, "name": "a"}]}', "'images'"),
    ('{"images": [{"id": 1, "file_name": "a.jpg", "height": 1, "width": 1}], "categories": [{"id": 1, "name": "a"}], '
     '"annotations": null}', "'annotations'"),
])
def test_files_that_are_not_coco_are_refused(root, text, words):
    file_of(root, "train").write_text(text)
    message = refusal(opened, root)
    assert "instances_train2017.json" in message and words in message


def test_a_file_that_is_not_text_is_refused(root):
    file_of(root, "train").write_bytes(b"\x89PNG\xff\xfe\x00")
    assert "instances_train2017.json" in refusal(opened, root)


@pytest.mark.parametrize("entries, key", [
    ("images", "id"), ("images", "file_name"), ("images", "height"), ("images", "width"), ("categories", "id"),
    ("categories", "name"), ("annotations", "image_id"), ("annotations", "category_id"),
    ("annotations", "bbox")])
def test_an_entry_that_lacks_a_key_is_refused(root, entries, key):
    with edited(root) as content:
        del content[entries][1][key]
    text = refusal(opened, root)
    assert repr(entries) in text and repr(key) in text and "instances_train2017.json" in text


@pytest.mark.parametrize("change", [
    {"category_id": 99}, {"image_id": 99}, {"bbox": [1, 2, 3]}, {"bbox": "1 2 3 4"}, {"bbox": [1, 2, 3, None]},
    {"bbox": None}, {"iscrowd": "x"}, {"iscrowd": 2}, {"area": "x"}, {"image_id": True}, {"category_id": "disc"}])
def test_an_annotation_with_foreign_values_is_refused(root, change):
    with edited(root) as content:
        content["annotations"][2] |= change
        content["annotations"][2]["id"] = 4242
    text = refusal(opened, root)
    (key, value), = change.items()
    assert "4242" in text and key in text and repr(value) in text


@pytest.mark.parametrize("number", [-1, "one", 1.5, None, True])
def test_category_ids_are_whole_numbers_from_0(root, number):
    with edited(root) as content:
        content["categories"][0]["id"] = number
        content["annotations"] = []
    assert "category ids" in refusal(opened, root)


def test_category_ids_are_unique_and_names_are_text(root):
    with edited(root) as content:
        content["categories"].append(content["categories"][0] | {"name": "another"})
    assert "'categories' has the id 1 more than once" in refusal(opened, root)
    with edited(root) as content:
        content["categories"].pop()
        content["categories"][0]["name"] = 7
    assert "the category 1 has the name 7" in refusal(opened, root)


def test_a_byte_order_mark_is_no_matter(root):
    before = len(opened(root))
    file_of(root, "train").write_bytes(b"\xef\xbb\xbf" + file_of(root, "train").read_bytes())
    assert len(opened(root)) == before


def test_an_image_id_given_twice_is_refused(root):
    with edited(root) as content:
        content["images"][1]["id"] = 1
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 2]
    text = refusal(opened, root)
    assert "instances_train2017.json" in text and "id 1" in text


def test_an_annotation_id_given_twice_is_no_matter(root):
    """pycocotools would read one of the two twice and the other never."""
    with edited(root) as content:
        content["annotations"][1]["id"] = content["annotations"][0]["id"]
        count = len(content["annotations"])
    assert len(read_annotations(root, "train").anns) == count


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
        assert image.isfinite().all()
        torch.testing.assert_close(target["boxes"], torch.tensor([[0.5, 0.5, 1, 1]]))


# randomness

def test_a_sample_follows_from_seed_and_number(coco_root):
    one, other = opened(coco_root, seed=5), opened(coco_root, seed=5)
    for repetition in (3, 0, 3):
        torch.manual_seed(repetition)
        numbers = [8 * repetition + i for i in range(8)]
        first = [one[i] for i in numbers]
        for i, sample in zip(reversed(numbers), reversed(first)):
            same(other[i], sample)


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


def test_epoch_by_epoch_the_same_samples_whatever_the_workers(coco_root):
    def epochs(workers):
        loader = train_loader(opened(coco_root, seed=3), 2, workers, seed=3)
        batches = []
        for epoch in range(2):
            loader.batch_sampler.set_epoch(epoch)
            batches += list(loader)
        return batches

    alone = epochs(0)
    assert len(alone) == 8
    for workers in (1, 2):
        for (batch, targets), (wanted, wanted_targets) in zip(epochs(workers), alone, strict=True):
            assert torch.equal(batch.mask, wanted.mask)
            for image, target, *other in zip(batch.tensors, targets, wanted.tensors, wanted_targets, strict=True):
                same((image, target), other)


@pytest.mark.parametrize("workers", [0, 2])
def test_sampling_leaves_the_global_random_states_alone(coco_root, workers):
    loader = train_loader(opened(coco_root), 2, workers, seed=0)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert len(list(loader)) == 4
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]


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
