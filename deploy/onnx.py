"""ONNX files, which ONNX Runtime, TensorRT and others run."""
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from deploy.graph import DetectionGraph, as_onnx, trace
from inference.artifact import KEY, Artifact
from util.errors import UserError
from util.files import atomic_write
from util.optional import require

SUFFIX = ".onnx"
DTYPES = ("float32", "float16")  # ONNX Runtime has no bfloat16 on CPUs
FROM_FLOAT32 = ()
SAMPLERS = ("grid_sample", "gather")
OPSET = 20  # LayerNormalization is one node from 17 on, GridSample takes all its modes from 20 on
LARGEST = 2**31  # bytes of one protobuf message


def outputs(path: Path) -> list[Path]:
    return [path]


def write(graph: DetectionGraph, artifact: Artifact, path: Path,
          calibration: Iterable[tuple[Tensor, Tensor]] | None = None) -> list[Path]:
    """See deploy. Raises UserError for a detector whose file would exceed 2 GB."""
    require("onnx", "onnxscript")
    import onnx

    proto = as_onnx(trace(graph, artifact), OPSET)
    size = proto.ByteSize()
    if size >= LARGEST:
        raise UserError(f"{path} would have {size / 1e9:.1f} GB, and an ONNX file has at most 2 GB: choose --format "
                        "openvino or pt2, or --dtype float16")
    onnx.helper.set_model_props(proto, {KEY: artifact.to_json()})
    with atomic_write(path) as temporary:
        temporary.write_bytes(proto.SerializeToString())
    return [path]
