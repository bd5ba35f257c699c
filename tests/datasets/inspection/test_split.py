"""Each problem injected into a sound set is found, counted and named."""
import shutil

import pytest

from datasets.inspection.split import inspect_split
from tests.datasets.inspection.damages import DAMAGES, file_of, picture
from util.errors import UserError


def test_a_sound_set_has_no_problems(root, coco_root):
    for folder in (root, coco_root):
        for split in ("train", "val"):
            inspection = inspect_split(folder, split)
            assert not inspection.problems and not inspection.stops()


@pytest.mark.parametrize("name", DAMAGES)
def test_each_problem_is_found_counted_and_named(root, name):
    damage, kind, text = DAMAGES[name]
    damage(root)
    found = inspect_split(root, "train").by_kind()
    # Without its entry, the boxes and the file of an image are on their own.
    assert set(found) - ({"unlisted", "unknown_image"} if name == "no file name" else set()) == {kind}
    assert len(found[kind]) == 1 and text in found[kind][0].text


@pytest.mark.parametrize("split, stops", [("train", False), ("val", True)])
def test_training_passes_over_an_unreadable_train_image_alone(root, split, stops):
    picture(root, split, 3).unlink()
    assert inspect_split(root, split).stops() == stops


def test_a_split_without_any_readable_image_stops_a_training(root):
    for number in range(1, 5):
        picture(root, "train", number).unlink()
    assert inspect_split(root, "train").stops()


def test_nothing_to_inspect(root):
    for damage, words in [(lambda: shutil.rmtree(root / "train2017"), "no image folder"),
                          (lambda: file_of(root, "train").write_text("{"), "not valid JSON"),
                          (lambda: file_of(root, "train").unlink(), "no train set")]:
        damage()
        with pytest.raises(UserError, match=words):
            inspect_split(root, "train")
