import json

import pytest

from datasets.transforms import ResizeShorter
from inference.artifact import Artifact
from util.errors import UserError
from util.model_card import ModelCard

CARD = ModelCard({"modelname": "dino", "num_classes": 3}, {1: "cat", 2: "dog"}, {1: 0.4}, {"AP": 0.5}, "pets", "abc")


def artifact(**changes):
    return Artifact(**{"card": CARD, "size": None, "batch": 1, "uint8": False, "dtype": "float32",
                       "sampler": "grid_sample", "shorter_side": 480, "longest_side": 800} | changes)


@pytest.mark.parametrize("changes", [{}, {"size": (320, 640), "batch": None, "uint8": True, "dtype": "int8",
                                          "sampler": "native", "nms_iou_threshold": 0.7}])
def test_an_artifact_comes_back_from_its_json(changes):
    assert Artifact.from_json(artifact(**changes).to_json(), "a.onnx") == artifact(**changes)


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (2000, 300), (7, 7)])
def test_images_are_resized_as_in_evaluation_or_to_the_fixed_size(size):
    assert artifact().input_size(*size) == ResizeShorter([480], 800).result(*size, 480)
    assert artifact(size=(320, 640)).input_size(*size) == (320, 640)


def test_a_file_without_metadata_is_refused():
    with pytest.raises(UserError, match="a.onnx carries no metadata under 'lite_detr'"):
        Artifact.from_json(None, "a.onnx")


def test_weights_are_no_exported_file():
    with pytest.raises(UserError, match="a.onnx is an exported file of version None, this program reads 1"):
        Artifact.from_json(json.dumps(CARD.to_dict()), "a.onnx")


def changed(**changes):
    content = json.loads(artifact().to_json())
    return json.dumps(content | {"artifact": content["artifact"] | changes})


@pytest.mark.parametrize("changes, message", [
    ({"version": 2}, "of version 2, this program reads 1: export it again"),
    ({"size": [0, 5]}, r"size must be null or \[height, width\] in px, not \[0, 5\]"),
    ({"size": 5}, "size must be"), ({"size": [5]}, "size must be"), ({"size": [5, True]}, "size must be"),
    ({"batch": -1}, "batch must be"), ({"batch": 1.5}, "batch must be"), ({"uint8": 1}, "uint8 must be true or false"),
    ({"dtype": "float8"}, "dtype must be one of"), ({"dtype": []}, "dtype must be one of"),
    ({"sampler": "bicubic"}, "sampler must be one of"), ({"sampler": {}}, "sampler must be one of"),
    ({"shorter_side": 1 << 40}, "shorter_side must be"), ({"longest_side": None}, "longest_side must be"),
    ({"nms_iou_threshold": "0.5"}, "nms_iou_threshold must be a number"),
])
def test_what_does_not_fit_is_named(changes, message):
    with pytest.raises(UserError, match=f"a.onnx.*{message}"):
        Artifact.from_json(changed(**changes), "a.onnx")


@pytest.mark.parametrize("changes, message", [
    ({"nms_iou_threshold": 1.5}, "nms_iou_threshold must be a number from -1 to 1, not 1.5"),
    ({"longest_side": 100_000}, "longest_side must be a number of px up to 65536, not 100000"),
    ({"size": (0, 5)}, "size must be"), ({"batch": 1 << 20}, "batch must be null or a number of images up to 65536")])
def test_what_could_not_be_read_is_not_written(changes, message):
    with pytest.raises(UserError, match=f"a file that is exported so could not be read: {message}"):
        artifact(**changes)


def test_metadata_that_lie_about_classes_are_refused():
    content = json.loads(artifact().to_json()) | {"class_names": {"1": "cat", "7": "dog"}}
    with pytest.raises(UserError, match="a.onnx: .*category id 7.*only ids below 3"):
        Artifact.from_json(json.dumps(content), "a.onnx")


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '{"format": 2}', "[" * 100_000])
def test_what_is_no_card_is_refused(text):
    with pytest.raises(UserError, match="a.onnx"):
        Artifact.from_json(text, "a.onnx")


@pytest.mark.parametrize("changes, shape, uint8", [
    ({}, [1, 3, None, None], False), ({"batch": None, "uint8": True}, [None, 3, None, None], True),
    ({"batch": 2, "size": (32, 48)}, [2, 3, 32, 48], False)])
def test_a_graph_takes_the_images_that_its_metadata_say(changes, shape, uint8):
    how = artifact(**changes)
    how.check_images(shape, uint8, "a.onnx")
    for other in ([5, *shape[1:]], [*shape[:2], 9, 9], shape[:3]):
        with pytest.raises(UserError, match="a.onnx: its metadata are damaged: they say that images are"):
            how.check_images(other, uint8, "a.onnx")
    with pytest.raises(UserError, match="they say that images are .*(float32|uint8).*takes (?!\\1)"):
        how.check_images(shape, not uint8, "a.onnx")


def test_a_missing_field_is_named():
    content = json.loads(artifact().to_json())
    del content["artifact"]["batch"]
    with pytest.raises(UserError, match="batch must be null or a number of images up to 65536, not None"):
        Artifact.from_json(json.dumps(content), "a.onnx")
