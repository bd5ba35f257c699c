"""An exported detector in OpenVINO, on a CPU."""
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inference.artifact import INPUTS, KEY, OUTPUTS, Artifact
from inference.backends.exported import ExportedBackend
from models.ops import openvino_nodes
from util.errors import UserError

# Of all that is not int8, weights in float16 too. Left alone, OpenVINO takes half precision on some processors, which
# is too coarse for sampling locations and box logits.
PRECISION = "f32"


class OpenVINOBackend(ExportedBackend):
    """compiled: an openvino.CompiledModel."""

    def __init__(self, artifact: Artifact, compiled: Any):
        super().__init__(artifact)
        self.compiled, self._request = compiled, compiled.create_infer_request()

    def run(self, images: Tensor, orig_target_sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inputs = dict(zip(INPUTS, (images.numpy(), orig_target_sizes.numpy())))
        found = self._request.infer(inputs, share_inputs=True)
        labels, boxes, scores = (torch.from_numpy(found[name].copy()) for name in OUTPUTS)
        return labels, boxes, scores


def open_backend(path: Path, device: str = "cpu") -> OpenVINOBackend:
    """The detector of an .xml file with its .bin, on as many threads as torch has. Raises UserError for files that are
    missing, damaged or not written by tools/export.py, for a device that is no CPU, and where the file needs compiled
    operators that are not built.
    """
    if torch.device(device).type != "cpu":
        raise UserError(f"{path} runs on a CPU, not on {device}: use --device cpu")
    core = openvino_nodes.shared_core()
    artifact, model = read_model(core, path)
    return OpenVINOBackend(artifact, core.compile_model(model, "CPU", {
        "INFERENCE_PRECISION_HINT": PRECISION, "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads()}))


def read_model(core: Any, path: Path) -> tuple[Artifact, Any]:
    """What an .xml file says of itself, and its openvino.Model. Raises UserError, see open_backend."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    weights = path.with_suffix(".bin")
    if not weights.is_file():
        raise UserError(f"{path} needs its weights beside it: there is no {weights}")
    if f'version="{openvino_nodes.DOMAIN}"' in text:
        openvino_nodes.add_nodes(core, str(path))
    try:
        model = core.read_model(path)
    except RuntimeError as error:
        raise UserError(f"{path}: OpenVINO does not read it: {str(error).strip()[:300]}") from error
    info = model.get_rt_info(KEY).astype(str) if model.has_rt_info(KEY) else None
    artifact = Artifact.from_json(info, str(path))
    artifact.check_names({name for port in (*model.inputs, *model.outputs) for name in port.names}, str(path))
    images = model.input(INPUTS[0])
    artifact.check_images([n.get_length() if n.is_static else None for n in images.partial_shape],
                          images.element_type.get_type_name() == "u8", str(path))
    return artifact, model
