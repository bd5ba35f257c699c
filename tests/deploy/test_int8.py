"""int8 on a small model that is written down here: three linear layers, one of them of those that stay in float32."""
import collections

import numpy as np
import pytest
import torch

from deploy import int8
from models.ops import openvino_nodes
from util.errors import UserError

openvino = pytest.importorskip("openvino")
pytest.importorskip("nncf")


def layer(random, tokens, channels, name, transposed=True):
    """x W + b: the bias has the layer's name, as in exported files."""
    from openvino import opset13 as op

    width = tokens.output(0).get_partial_shape()[-1].get_length()
    weight = random.normal(size=(channels, width) if transposed else (width, channels)).astype(np.float32)
    bias = op.constant(random.normal(size=channels).astype(np.float32), name=f"layers.0.{name}.bias")
    return op.add(op.matmul(tokens, op.constant(weight), False, transposed), bias)


def small_model(tokens=-1):
    from openvino import opset13 as op

    images = op.parameter([1, tokens, 16], np.float32, name="images")
    sizes = op.parameter([1, 2], np.int64, name="orig_target_sizes")
    random = np.random.default_rng(0)
    hidden = op.relu(layer(random, images, 32, "linear1"))
    hidden = layer(random, hidden, 24, "linear2", transposed=False)
    output = layer(random, hidden, 8, "sampling_offsets")
    output = op.add(output, op.multiply(op.convert(op.reduce_sum(sizes, [0, 1]), "f32"), np.float32(0)))
    for parameter in (images, sizes):
        parameter.output(0).set_names({parameter.get_friendly_name()})
    return openvino.Model([op.result(output)], [images, sizes], "small")


def calibration(count=4, tokens=40):
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(1, tokens, 16, generator=generator), torch.zeros(1, 2, dtype=torch.int64))
            for _ in range(count)]


def run(model, inputs):
    core = openvino_nodes.shared_core()
    return core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([x.numpy() for x in inputs])[0]


def kinds(model):
    return collections.Counter(node.get_type_name() for node in model.get_ops())


@pytest.mark.parametrize("tokens", [-1, 40], ids=["any number of tokens", "40 tokens"])
def test_linear_layers_become_convolutions_of_the_same_values(tokens, monkeypatch):
    inputs = calibration(1)[0]
    with monkeypatch.context() as plain:
        plain.setattr(int8, "linear_as_convolution", lambda model: None)
        expected = int8.quantize(small_model(tokens), calibration())
    found = int8.quantize(small_model(tokens), calibration())
    assert (kinds(expected)["Convolution"], kinds(expected)["MatMul"]) == (0, 3)
    assert (kinds(found)["Convolution"], kinds(found)["MatMul"]) == (2, 1)
    np.testing.assert_allclose(run(found, inputs), run(expected, inputs), rtol=0, atol=1e-3)
    whole = run(small_model(tokens), inputs)
    assert 0 < np.abs(run(found, inputs) - whole).mean() < 0.05 * whole.std()  # of 7 bits


def test_layers_that_become_coordinates_stay_in_float32():
    model = int8.quantize(small_model(), calibration())
    (name,) = int8.float32_nodes(model)
    (kept,) = [node for node in model.get_ops() if node.get_friendly_name() == name]
    types = [value.get_node().get_type_name() for value in kept.input_values()]
    assert types[1] == "Constant" and "FakeQuantize" not in types


def test_without_images_there_are_no_ranges():
    with pytest.raises(UserError, match="name a folder with --verify DIR"):
        int8.quantize(small_model(), [])
