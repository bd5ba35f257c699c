"""A backend of OpenVINO on files that hold a known function instead of a detector."""
import numpy as np
import pytest
import torch

from inference.artifact import KEY, Artifact
from inference.backends.openvino import open_backend
from util.errors import UserError
from util.model_card import ModelCard

openvino = pytest.importorskip("openvino")


def artifact(**changes):
    card = ModelCard({"modelname": "dino", "num_classes": 5}, {1: "cell", 2: "platelet"})
    return Artifact(**{"card": card, "size": None, "batch": None, "uint8": False, "dtype": "float32",
                       "sampler": "gather", "shorter_side": 32, "longest_side": 64} | changes)


def write(path, about, outputs=("labels", "boxes", "scores"), uint8=False, batch=-1,
          size=(-1, -1), classes=(2, 1)):
    """Two detections an image: the scores are its mean brightness and a half of it, the first box is the image."""
    from openvino import opset13 as op

    images = op.parameter([batch, 3, *size], openvino.Type.u8 if uint8 else openvino.Type.f32, name="images")
    sizes = op.parameter([batch, 2], openvino.Type.i64, name="orig_target_sizes")
    mean = op.reduce_mean(op.convert(images, "f32"), [1, 2, 3])
    scores = op.concat([op.unsqueeze(op.multiply(mean, np.float32(factor)), [1]) for factor in (0.5, 1.0)], 1)
    side = op.convert(op.unsqueeze(sizes, [1]), "f32")
    one = op.concat([op.multiply(side, np.float32(0)), side], 2)
    boxes = op.concat([op.multiply(one, np.float32(0.9)), one], 1)
    labels = op.add(op.convert(op.multiply(scores, np.float32(0)), "i64"), np.array(classes))
    results = []
    for name, node in zip(outputs, (labels, boxes, scores)):
        node.output(0).set_names({name})
        results.append(op.result(node))
    for parameter in (images, sizes):
        parameter.output(0).set_names({parameter.get_friendly_name()})
    model = openvino.Model(results, [images, sizes])
    if about is not None:
        model.set_rt_info(about, KEY)
    openvino.save_model(model, path, compress_to_fp16=False)
    return path


@pytest.mark.parametrize("uint8", [False, True], ids=["float", "uint8"])
@pytest.mark.parametrize("batch", [None, 2])
def test_images_of_several_sizes(tmp_path, uint8, batch):
    """In their order, the detections of each in descending order; a fixed batch is filled up."""
    path = write(tmp_path / "m.xml", artifact(uint8=uint8, batch=batch).to_json(), uint8=uint8, batch=batch or -1)
    backend = open_backend(path)
    images = [torch.full((3, 4, 5 + i % 2), 20 * i, dtype=torch.uint8) for i in range(5)]
    found = backend.detect(images, [(10 + i, 20) for i in range(5)])
    for i, detections in enumerate(found):
        brightness = 20 * i / (1 if uint8 else 255)
        torch.testing.assert_close(detections["scores"], torch.tensor([1.0, 0.5]) * brightness)
        assert detections["labels"].tolist() == ([1, 2] if i else [2, 1])
        assert [0, 0, 10 + i, 20] in detections["boxes"].tolist()


@pytest.mark.parametrize("threshold, classes, left", [(0.7, (2, 1), 2), (0.7, (1, 1), 1), (0.9, (1, 1), 2),
                                                      (-1, (1, 1), 2)])
def test_nms_is_the_readers(tmp_path, threshold, classes, left):
    """The boxes overlap by 0.81; those of two classes do not compete."""
    path = write(tmp_path / "m.xml", artifact(nms_iou_threshold=threshold).to_json(), classes=classes)
    found, = open_backend(path).detect([torch.full((3, 4, 4), 100, dtype=torch.uint8)], [(10, 10)])
    assert len(found["scores"]) == left


@pytest.mark.parametrize("says, is_so", [({"uint8": True}, {}), ({}, {"uint8": True}), ({"batch": 1}, {}),
                                         ({}, {"batch": 2}), ({"size": (4, 4)}, {}), ({}, {"size": (4, 4)})])
def test_metadata_that_lie_about_images_are_refused(tmp_path, says, is_so):
    """OpenVINO would turn a brightness of 0.4 into 0 without a word."""
    path = write(tmp_path / "m.xml", artifact(**says).to_json(), **is_so)
    with pytest.raises(UserError, match="m.xml: its metadata are damaged: they say that images are"):
        open_backend(path)


def test_what_a_file_says_of_itself_is_known(tmp_path):
    backend = open_backend(write(tmp_path / "m.xml", artifact(size=(48, 64)).to_json(), size=(48, 64)))
    assert backend.card.class_names == {1: "cell", 2: "platelet"} and backend.input_size(100, 30) == (48, 64)


def test_half_precision_is_never_left_to_openvino(tmp_path):
    path = write(tmp_path / "m.xml", artifact(dtype="float16").to_json())
    compiled = open_backend(path).compiled
    assert str(compiled.get_property("INFERENCE_PRECISION_HINT")) == "<Type: 'float32'>"
    assert compiled.get_property("INFERENCE_NUM_THREADS") == torch.get_num_threads()


def damage(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("make, told", [
    (lambda folder: folder / "none.xml", "cannot read .*none.xml"),
    (lambda folder: damage(folder / "m.xml", "<net"), "there is no .*m.bin"),
    (lambda folder: damage(write(folder / "m.xml", None), "<net"), "m.xml: OpenVINO does not read it"),
    (lambda folder: write(folder / "m.xml", None), "m.xml carries no metadata"),
    (lambda folder: write(folder / "m.xml", '{"format": 99}'), "m.xml: its metadata are of format 99"),
    (lambda folder: write(folder / "m.xml", artifact().to_json(), ("labels", "boxes", "other")), "has no scores"),
], ids=["missing", "no weights", "damaged", "foreign", "another version", "other outputs"])
def test_a_file_that_is_none_is_named(tmp_path, make, told):
    with pytest.raises(UserError, match=told):
        open_backend(make(tmp_path))


def test_weights_of_another_length_are_an_error(tmp_path):
    path = write(tmp_path / "m.xml", artifact().to_json())
    path.with_suffix(".bin").write_bytes(b"")
    with pytest.raises(UserError, match="m.xml: OpenVINO does not read it"):
        open_backend(path)


def test_other_devices_are_refused(tmp_path):
    with pytest.raises(UserError, match="runs on a CPU, not on cuda"):
        open_backend(tmp_path / "m.xml", "cuda")


def test_compiled_operators_that_are_missing_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr("models.ops.openvino_nodes.LIBRARY", tmp_path / "none.so")
    path = damage(write(tmp_path / "m.xml", artifact().to_json()), '<layer type="KeyAwareDeformAttn" '
                  'version="lite_detr">')
    with pytest.raises(UserError, match="m.xml needs .*not built: make operators-openvino"):
        open_backend(path)
