"""Files of OpenVINO: an .xml with its .bin."""
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deploy.graph import DetectionGraph, as_onnx, trace
from deploy.int8 import quantize
from inference.artifact import KEY, Artifact
from models.ops import native_available, openvino_nodes
from util.files import writing
from util.optional import require

SUFFIX = ".xml"
# No bfloat16: OpenVINO would compute sampling locations in it too, where it is half a pixel wrong.
DTYPES = ("float32", "float16", "int8")
FROM_FLOAT32 = ("float16", "int8")  # made of a graph in float32
SAMPLERS = ("native", "gather", "grid_sample")
OPSET = 18  # that OpenVINO reads entirely


def outputs(path: Path) -> list[Path]:
    return [path, path.with_suffix(".bin")]


def write(graph: DetectionGraph, artifact: Artifact, path: Path,
          calibration: Iterable[tuple[Tensor, Tensor]] | None = None) -> list[Path]:
    """See deploy. float16: weights are stored in it and computed with in float32. int8: convolutions and linear layers.
    sampler native: one node of the compiled operators, which whoever reads the file needs too.
    """
    require("openvino", "onnx", "onnxscript", *(["nncf"] if artifact.dtype == "int8" else []))
    core = openvino_nodes.shared_core()
    if artifact.sampler == "native":
        openvino_nodes.add_nodes(core, "a file with --sampler native (another: --sampler gather)")
    onnx_file = as_onnx(trace(graph, artifact), OPSET, nodes_of_operators()).SerializeToString()
    model = core.read_model(onnx_file, b"")
    if artifact.dtype == "int8":
        model = quantize(model, calibration or ())
    model.set_rt_info(artifact.to_json(), KEY)
    save(model, path, float16=artifact.dtype == "float16")
    return outputs(path)


def nodes_of_operators() -> dict[Any, Any]:
    """How the compiled operators, where they are built, become nodes of the domain openvino_nodes.DOMAIN in ONNX."""
    import onnxscript
    from onnx.defs import OpSchema
    from onnxscript import opset18

    op: Any = opset18  # its types know no tensors of run time
    domain = onnxscript.values.Opset(openvino_nodes.DOMAIN, 1)

    def node(name: str, inputs: list[str]) -> Any:
        kinds = {"spatial_shapes": "tensor(int64)"}
        formal = [OpSchema.FormalParameter(i, kinds.get(i, "tensor(float)"),
                  param_option=OpSchema.FormalParameterOption.Single) for i in inputs]
        schema = OpSchema(name, openvino_nodes.DOMAIN, 1, inputs=formal,
                          outputs=[OpSchema.FormalParameter("output", "tensor(float)")])
        return onnxscript.values.Op(domain, name, schema)

    def flat(shapes: Any) -> Any:
        sides = [op.Constant(value_ints=[s]) if isinstance(s, int) else op.Reshape(s, op.Constant(value_ints=[1]))
                 for s in shapes]
        return op.Concat(*sides, axis=0)

    tied = node("KeyAwareDeformAttn", ["query", "value", "spatial_shapes", "sampling_locations"])
    keyed = node("KeyAwareDeformAttn", ["query", "value", "key", "spatial_shapes", "sampling_locations"])
    plain = node("MSDeformAttn", ["value", "attention_weights", "spatial_shapes", "sampling_locations"])

    def key_aware_deform_attn(query, key, value, spatial_shapes, sampling_locations):
        shapes = flat(spatial_shapes)
        output = (tied(query, value, shapes, sampling_locations) if key is None
                  else keyed(query, value, key, shapes, sampling_locations))
        return output, op.Constant(value_float=0.0)

    def ms_deform_attn(value, spatial_shapes, sampling_locations, attention_weights):
        return plain(value, attention_weights, flat(spatial_shapes), sampling_locations)

    if not native_available("cpu"):
        return {}
    ops = torch.ops.deform_attn
    return {ops.key_aware_deform_attn.default: key_aware_deform_attn, ops.ms_deform_attn.default: ms_deform_attn}


def save(model: Any, path: Path, float16: bool) -> None:
    """Writes both files, complete or not at all: an .xml beside the .bin of another would give wrong numbers, so while
    they are replaced there is none."""
    import openvino

    with writing(path), tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}.") as folder:
        temporary = Path(folder) / path.name
        openvino.save_model(model, temporary, compress_to_fp16=float16)
        path.unlink(missing_ok=True)
        for suffix in (".bin", ".xml"):
            os.replace(temporary.with_suffix(suffix), path.with_suffix(suffix))
