"""Config values that follow from the data."""
import json
import shutil

import pytest

from datasets.adapt import SIZES, adapt_options, fitting_sizes
from datasets.data import DetectionData
from util.config import load_config
from util.errors import UserError
from util.options import DataOptions, parse_options


@pytest.fixture
def auto(tiny_config):
    published = {name: getattr(DataOptions(), name) for name in SIZES}
    return parse_options(tiny_config | published | {"num_classes": "auto", "dn_labelbook_size": None,
                                                    "image_size": 640})


def images(*sides):
    return [(side, 2 * side) for side in sides]


def test_sizes_for_800_px_are_those_of_detr():
    published = {name: getattr(DataOptions(), name) for name in SIZES}
    assert fitting_sizes(800, []) == fitting_sizes(800, images(2000)) == published


@pytest.mark.parametrize("image_size, sides, largest", [
    (640, [480], 480), (640, [2000], 640), (320, [480, 481], 320), (640, [9, 100, 900], 100), (8, [1], 1)])
def test_images_are_not_enlarged_and_not_larger_than_asked(image_size, sides, largest):
    sizes = fitting_sizes(image_size, images(*sides))
    assert max(sizes["data_aug_scales"]) == largest and min(sizes["data_aug_scales"]) == max(1, round(0.6 * largest))
    assert sizes["data_aug_max_size"] == round(1333 / 800 * largest)
    assert all(size >= 1 for size in sizes["data_aug_scales2_crop"] + sizes["data_aug_scales2_resize"])


def test_classes_and_sizes_come_from_the_training_images(auto, coco_root):
    adapted = adapt_options(auto, DetectionData(coco_root), "train").data
    images = json.loads((coco_root / "annotations/instances_train2017.json").read_text())["images"]
    sides = sorted(min(image["width"], image["height"]) for image in images)
    assert adapted.class_count == 7 and adapted.image_size is None
    assert auto.data.num_classes == "auto"
    assert sides[3] - 1 <= max(adapted.data_aug_scales) <= sides[4] + 1


def test_a_checkpoint_knows_them_better_than_the_data(auto, coco_root):
    sizes = fitting_sizes(100, [])
    checkpoint = {"class_names": {1: "Disc", 9: "b"}, "config": sizes}
    adapted = adapt_options(auto, DetectionData(coco_root), "val", checkpoint).data
    assert adapted.class_count == 10 and adapted.data_aug_scales == sizes["data_aug_scales"]


def test_a_checkpoint_of_other_names_is_refused_with_the_ids(auto, coco_root):
    with pytest.raises(UserError, match="val set of .*set and the checkpoint .* id 1 is 'disc' and 'ring'; id 2 is"):
        adapt_options(auto, DetectionData(coco_root), "val", {"class_names": {1: "ring", 2: "disc", 6: "hexagon"}})


def test_a_released_checkpoint_of_cocos_size_on_other_classes_is_told(auto, coco_root, caplog):
    adapt_options(auto.replaced(num_classes=91), DetectionData(coco_root), "val", {"model": {}})
    assert "id 1 is 'disc' and 'person'" in caplog.text
    caplog.clear()
    adapt_options(auto.replaced(num_classes=90), DetectionData(coco_root), "val", {"model": {}})
    adapt_options(auto.replaced(num_classes=91), DetectionData(coco_root), "train")
    assert not caplog.records


@pytest.mark.parametrize("number", [0, -3, 10**18, 7.0, "7"])
def test_a_damaged_number_of_classes_is_named(auto, coco_root, number):
    with pytest.raises(UserError, match="num_classes="):
        adapt_options(auto, DetectionData(coco_root), "val", {"config": {"num_classes": number}})


def test_without_data_the_size_is_the_one_asked_for(auto):
    adapted = adapt_options(auto, None, "val", {"config": {"num_classes": 5}}).data
    assert adapted.class_count == 5 and max(adapted.data_aug_scales) == 640


def test_classes_need_data_or_a_checkpoint(auto):
    with pytest.raises(UserError, match="--data"):
        adapt_options(auto, None, "val")


def test_too_few_classes_name_the_set(tiny_config, coco_root, tmp_path):
    shutil.copytree(coco_root, tmp_path / "data")
    with pytest.raises(UserError, match=f"val set of {tmp_path}"):
        adapt_options(parse_options(tiny_config | {"num_classes": 3}), DetectionData(tmp_path / "data"), "val")


@pytest.mark.parametrize("checkpoint", [{"class_names": {1: "a", 3: "b"}}, {"config": {"num_classes": 4}}])
def test_data_with_other_classes_than_the_checkpoint_is_refused(auto, coco_root, checkpoint):
    for options in (auto, auto.replaced(num_classes=4)):
        with pytest.raises(UserError, match=f"ids below 4, but the val set of {coco_root} has the id 6: .*--pretrain"):
            adapt_options(options, DetectionData(coco_root), "val", checkpoint)


def test_sizes_that_image_size_would_replace_are_an_error(auto, coco_root):
    chosen = {"data_aug_scales": [480, 512], "data_aug_max_size": 800}
    with pytest.raises(UserError, match="image_size=640 would replace data_aug_scales, data_aug_max_size: .*=None"):
        adapt_options(auto.replaced(**chosen), DetectionData(coco_root), "train")
    adapted = adapt_options(auto.replaced(**chosen, image_size=None), DetectionData(coco_root), "train").data
    assert adapted.data_aug_scales == [480, 512] and adapted.data_aug_max_size == 800


@pytest.mark.parametrize("name", ["efficientnet_lite0", "efficientnet_lite0_640", "r50", "swint"])
def test_the_configs_for_fine_tuning_adapt(name, coco_root):
    options = parse_options(load_config(f"config/finetune/{name}.py"))
    adapted = adapt_options(options, DetectionData(coco_root), "train").data
    assert adapted.class_count == 7 and max(adapted.data_aug_scales) < 100
