"""int8 for OpenVINO, by NNCF: ranges are measured on images, nothing is trained."""
from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np
from torch import Tensor

from inference.artifact import INPUTS
from models.inference import IN_FLOAT32
from util.errors import UserError

# Layers that stay in float32: where queries sample, and what becomes coordinates and scores.
KEPT = {*IN_FLOAT32, "sampling_offsets", "attention_weights", "ref_point_head"}
CALIBRATION_IMAGES = 100  # at most


def quantize(model: Any, calibration: Iterable[tuple[Tensor, Tensor]]) -> Any:
    """An openvino.Model with int8 convolutions and linear layers, but for those of KEPT. calibration: inputs of the
    model. Raises UserError without any.
    """
    import nncf

    calls = [dict(zip(INPUTS, (x.numpy() for x in inputs))) for inputs in islice(calibration, CALIBRATION_IMAGES)]
    if not calls:
        raise UserError("--dtype int8 needs images to measure ranges on: name a folder with --verify DIR")
    # Processors without VNNI add two products in 16 bits: weights of 7 bits keep that sum from overflowing.
    advanced = nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE)
    quantized = nncf.quantize(
        model, nncf.Dataset(calls), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(calls),
        ignored_scope=nncf.IgnoredScope(names=float32_nodes(model), validate=False), advanced_parameters=advanced)
    linear_as_convolution(quantized)  # afterwards: NNCF smooths the inputs of matrix products only
    return quantized


def float32_nodes(model: Any) -> list[str]:
    """The names of the matrix products of the layers of KEPT: the bias that is added to one has the layer's name,
    its weights may have lost it."""
    kept = []
    for add in model.get_ops():
        if add.get_type_name() == "Add":
            sources = [value.get_node() for value in add.input_values()]
            layers = {part for node in sources for part in node.get_friendly_name().split(".")}
            kept += [node.get_friendly_name() for node in sources
                     if node.get_type_name() == "MatMul" and layers & KEPT]
    return kept


def linear_as_convolution(model: Any) -> None:
    """Replaces the quantized linear layers on [B, N, C] by convolutions of width 1 over N, with their bias and ReLU, in
    place. On processors without VNNI OpenVINO's int8 convolutions take half the time of its int8 matrix products, which
    are no faster than those in float32 (docs/benchmarks/deployment.md)."""
    from openvino import opset13 as op

    channels_first = np.array([0, 2, 1])
    for product in model.get_ops():
        kernel = _kernel(product) if product.get_type_name() == "MatMul" else None
        if kernel is None:
            continue
        tokens = op.transpose(product.input_value(0), channels_first)
        layer, result = product, op.convolution(tokens, kernel, [1], [0], [0], [1], name=product.get_friendly_name())
        add = _only_user(layer, "Add")
        for value in [] if add is None else add.input_values():
            bias = value.get_node()
            if bias.get_type_name() == "Constant" and bias.data.size == kernel.get_output_shape(0)[0]:
                layer, result = add, op.add(result, op.constant(bias.data.reshape(1, -1, 1)))
        relu = _only_user(layer, "Relu")
        if relu is not None:
            layer, result = relu, op.relu(result)
        result = op.transpose(result, channels_first)
        for user in layer.output(0).get_target_inputs():
            user.replace_source_output(result.output(0))
    model.validate_nodes_and_infer_types()


def _kernel(product: Any) -> Any:
    """The int8 weights of a linear layer on [B, N, C], times their scales, as those of a convolution [D, C, 1]; None
    for another product of matrices."""
    from openvino import opset13 as op

    tokens, weight = product.input_value(0), product.input_value(1).get_node()
    if weight.get_type_name() != "Multiply" or tokens.get_partial_shape().rank.get_length() != 3:
        return None
    integers, scales = (value.get_node() for value in weight.input_values())
    if integers.get_type_name() != "Convert" or scales.get_type_name() != "Constant":
        return None
    arrays = [integers.input_value(0).get_node().data, scales.data]
    if not product.get_attributes()["transpose_b"]:
        arrays = [x.T for x in arrays]
    kernel, factors = (op.constant(np.ascontiguousarray(x)[..., None]) for x in arrays)
    return op.multiply(op.convert(kernel, "f32"), factors)


def _only_user(node: Any, kind: str) -> Any:
    """The node of that type that alone reads the output of another, if there is one."""
    users = [user.get_node() for user in node.output(0).get_target_inputs()]
    return users[0] if len(users) == 1 and users[0].get_type_name() == kind else None
