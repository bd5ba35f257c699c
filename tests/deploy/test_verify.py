import copy
import dataclasses
import json
import shutil

import pytest
import torch

from deploy.verify import ANSWERS, Comparison, Difference, calibration, compare, open_data, verify
from inference.backends.torch_model import open_backend
from models import build_model
from tests.inference.test_artifact import CARD, artifact
from util.errors import UserError

CLASSLESS = dataclasses.replace(CARD, class_names={}, thresholds={})


def found(*rows):
    """Detections (label, score, x) of 10 x 10 px at (x, 0)."""
    labels, scores, x = (torch.tensor(column) for column in zip(*rows)) if rows else (torch.zeros(0),) * 3
    zero = torch.zeros(len(rows))
    return {"labels": labels, "scores": scores, "boxes": torch.stack([x, zero, x + 10, zero + 10], 1).float()}


TOLERANCE = {"AP": 0.001, "score": 0.01, "box": 0.005}


def compared(a, b, side=100):
    return compare(a, b, side)


def test_the_largest_differences_of_matched_detections_are_found():
    result = compared(found((1, 0.9, 0), (2, 0.8, 50)), found((1, 0.89, 0), (2, 0.8, 52)))
    assert (result.score, result.box) == pytest.approx((0.01, 0.02))
    assert (result.compared, result.only_one) == (2, 0)
    assert result.exceeded(TOLERANCE) == ["box"]


def test_the_order_of_equal_scores_means_nothing():
    rows = [(1, 0.5, 0), (1, 0.5, 30), (2, 0.5, 60)]
    result = compared(found(*rows), found(*rows[::-1]))
    assert result == Difference(compared=3) and result.exceeded(TOLERANCE) == []


@pytest.mark.parametrize("other", [[], [(2, 0.9, 0)], [(1, 0.9, 90)]])
def test_a_detection_that_only_one_has_is_counted(other):
    result = compared(found((1, 0.9, 0)), found(*other))
    assert result.only_one == 1 + len(other) and result.compared == 0
    assert result.exceeded(TOLERANCE) == ["detections"]


def test_uncertain_detections_do_not_count():
    result = compared(found((1, 0.05, 0)), found((1, 0.09, 40)))
    assert result == Difference() and result.exceeded(TOLERANCE) == []


def test_what_is_no_number_is_over_the_tolerance():
    result = compared(found((1, 0.9, float("nan")), (2, 0.8, 0)), found((1, 0.9, 0), (2, 0.8, 0)))
    assert result.only_one == 2 and result.exceeded(TOLERANCE) == ["detections"]
    assert Difference(score=float("nan")).exceeded(TOLERANCE) == ["score"]


def test_the_differences_of_several_images():
    assert Difference(0.1, 0.2, 3, 1).added(Difference(0.3, 0.1, 4)) == Difference(0.3, 0.2, 7, 1)


def test_half_precision_is_judged_by_its_ap():
    alone = compared(found((1, 0.9, 0)), found())
    half = Comparison(1, {"AP": 0.005}, {"file": 0.5, "pytorch": 0.5}, difference=alone)
    assert half.exceeded == []
    half.AP["file"] = 0.49
    assert half.exceeded == ["AP"]
    assert "over the tolerance (AP 0.005): AP" in str(dataclasses.replace(half, ms={"file": 1, "pytorch": 2}))


@pytest.fixture
def backend(tiny_config, tmp_path):
    torch.save({"model": build_model(tiny_config)[0].state_dict()}, tmp_path / "weights.pth")
    return open_backend(tmp_path / "weights.pth", config=tiny_config)


def test_a_detector_agrees_with_itself_on_the_first_images(backend, coco_root):
    result = verify(backend, backend, "float32", open_data(coco_root, backend.card), 3)
    assert result.images == 3 and result.exceeded == []
    assert result.AP["file"] == result.AP["pytorch"] and min(result.ms.values()) > 0
    assert json.loads(json.dumps(result.to_dict()))["exceeded"] == []


def surer(backend, chosen=lambda images: True):
    """A copy of the detector, which is sure of all that it finds, and surer in the images that are chosen."""
    def change(model, inputs, outputs):
        step = 4 + 0.5 * chosen(inputs[0].tensors)
        return {**outputs, "pred_logits": outputs["pred_logits"] + step}

    other = dataclasses.replace(backend, model=copy.deepcopy(backend.model))
    other.model.register_forward_hook(change)
    return other


def test_where_rounding_decides_the_nearest_answer_of_pytorch_counts(backend, coco_root):
    """PyTorch has two answers here, as where two proposals have equal scores: which one it gives, follows from the last
    digit of the pixels. The file gives the other one."""
    sums = []

    def brighter(images):
        sums.append(images.double().sum())
        return float(sums[-1] > sums[0])

    data = open_data(coco_root, backend.card)
    result = verify(surer(backend), surer(backend, brighter), "float32", data, 1)
    assert result.ties == 1 and result.exceeded == ["AP"] * (result.AP["file"] != result.AP["pytorch"])
    assert result.difference.compared > 0 and result.difference.score < 1e-4
    assert "images in which rounding decides what PyTorch finds: 1;" in str(result)


def test_what_no_rounding_explains_is_over_the_tolerance_and_asked_once(backend, coco_root):
    calls = []
    pytorch = surer(backend, lambda images: calls.append(1) or 0)
    result = verify(surer(backend), pytorch, "float32", open_data(coco_root, backend.card), 3)
    assert result.ties == 0 and "score" in result.exceeded and result.difference.score > 0.01
    assert len(calls) == 3 + ANSWERS


class Batches:
    """Counts the images of each call of a backend."""

    def __init__(self, backend):
        self.backend, self.counts, self.input_size = backend, [], backend.input_size

    def detect(self, images, sizes):
        self.counts.append(len(images))
        return self.backend.detect(images, sizes)


def test_a_file_of_a_fixed_batch_gets_whole_batches(backend, coco_root):
    file = Batches(backend)
    result = verify(file, backend, "float32", open_data(coco_root, backend.card), 5, batch=2)
    assert file.counts == [2, 2, 1] and result.images == 5 and result.exceeded == []


def changed_copy(coco_root, target, change):
    """The val set, with other annotations."""
    shutil.copytree(coco_root / "val2017", target / "val2017")
    (target / "annotations").mkdir()
    content = json.loads((coco_root / "annotations/instances_val2017.json").read_text(encoding="utf-8")) | change
    (target / "annotations/instances_val2017.json").write_text(json.dumps(content), encoding="utf-8")
    return target


def test_a_set_without_images_is_an_error(backend, coco_root, tmp_path):
    data = changed_copy(coco_root, tmp_path / "set", {"images": [], "annotations": []})
    with pytest.raises(UserError, match="instances_val2017.json: no 'images', or an empty list of them"):
        open_data(data, backend.card)
    for image in (changed_copy(coco_root, tmp_path / "other", {}) / "val2017").iterdir():
        image.unlink()
    with pytest.raises(UserError, match="names 8 images that .*val2017 lacks"):
        open_data(tmp_path / "other", backend.card)


def test_without_annotations_there_is_no_ap_to_judge_by(backend, coco_root, tmp_path):
    data = open_data(changed_copy(coco_root, tmp_path / "set", {"annotations": []}), backend.card)
    result = verify(backend, backend, "float32", data, 2)
    assert result.AP == {"file": -1, "pytorch": -1} and result.exceeded == []
    assert str(result).startswith("2 images: no AP, because no object is annotated; ")
    for dtype in ("float16", "bfloat16", "int8"):
        with pytest.raises(UserError, match=f"no object is annotated in the 2 images .* {dtype} is judged by its AP"):
            verify(backend, backend, dtype, data, 2)


def test_data_of_other_classes_are_refused(backend, coco_root):
    card = dataclasses.replace(backend.card, class_names={i: f"thing {i}" for i in range(7)})
    with pytest.raises(UserError, match="the val set of .* and the detector give category ids other class names"):
        open_data(coco_root, card)


@pytest.mark.parametrize("uint8, batch, dtype", [(True, 2, torch.uint8), (False, None, torch.float32)])
def test_calibration_gives_inputs_of_the_graph(coco_root, uint8, batch, dtype):
    how = artifact(card=CLASSLESS, uint8=uint8, batch=batch, size=(32, 48))
    images, sizes = next(calibration(coco_root, how))
    assert images.dtype == dtype and images.shape == (batch or 1, 3, 32, 48) and images.float().std() > 0
    assert sizes.shape == (batch or 1, 2) and sizes.dtype == torch.int64


def test_calibration_takes_val_where_there_is_nothing_else(coco_root, tmp_path):
    for name in ("val2017", "annotations"):
        shutil.copytree(coco_root / name, tmp_path / name)
    assert len(list(calibration(tmp_path, artifact(card=CLASSLESS, size=(8, 8))))) == 8
