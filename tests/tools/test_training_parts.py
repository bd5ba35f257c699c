from datasets.coco import CocoDetection
from datasets.transforms import train_transforms
from tools.training_parts import PICTURES, write_pictures
from util.options import DataOptions


def test_pictures_are_a_training_set(tmp_path):
    write_pictures(tmp_path)
    dataset = CocoDetection(tmp_path, "train", train_transforms(DataOptions()), strict=True)
    assert len(dataset) == PICTURES and all(len(dataset.boxes(i)["boxes"]) == 7 for i in range(PICTURES))
    assert dataset[0][0].shape[0] == 3
