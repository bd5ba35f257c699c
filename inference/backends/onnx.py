"""An exported detector in ONNX Runtime."""
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inference.artifact import INPUTS, KEY, OUTPUTS, Artifact
from inference.backends.exported import ExportedBackend
from util.errors import UserError
from util.optional import require


class OnnxBackend(ExportedBackend):
    """session: an onnxruntime.InferenceSession."""

    def __init__(self, artifact: Artifact, session: Any):
        super().__init__(artifact)
        self.session = session

    def run(self, images: Tensor, orig_target_sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inputs = dict(zip(INPUTS, (images.numpy(), orig_target_sizes.numpy())))
        labels, boxes, scores = map(torch.from_numpy, self.session.run(OUTPUTS, inputs))
        return labels, boxes, scores


def runs_on_cuda() -> bool:
    """Whether the installed ONNX Runtime, if there is one, can use a GPU, and there is one."""
    if find_spec("onnxruntime") is None or not torch.cuda.is_available():
        return False
    import onnxruntime

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def open_backend(path: Path, device: str = "cpu") -> OnnxBackend:
    """device: "cpu" or "cuda". Raises UserError for a file that tools/export.py did not write or that ONNX Runtime does
    not run, and for a device that it does not have."""
    require("onnxruntime")
    import onnxruntime

    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}.get(str(device))
    if provider not in onnxruntime.get_available_providers():
        raise UserError(f"{path}: ONNX Runtime does not run on {device} here: use --device cpu, or for a GPU pip "
                        "install onnxruntime-gpu")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # what matters is raised
    try:
        session = onnxruntime.InferenceSession(path.read_bytes(), options, [provider])
    except Exception as error:  # of many kinds, by what is wrong with the file
        raise UserError(f"{path}: ONNX Runtime does not run it: {str(error).strip()[:300]}") from error
    if provider not in session.get_providers():
        raise UserError(f"{path}: ONNX Runtime cannot use {device} here, it would run on the CPU: see its messages "
                        "about CUDA's libraries, or use --device cpu")
    artifact = Artifact.from_json(session.get_modelmeta().custom_metadata_map.get(KEY), str(path))
    names = {value.name for value in (*session.get_inputs(), *session.get_outputs())}
    artifact.check_names(names, str(path))
    images = next(value for value in session.get_inputs() if value.name == INPUTS[0])
    artifact.check_images([n if isinstance(n, int) else None for n in images.shape], images.type == "tensor(uint8)",
                          str(path))
    return OnnxBackend(artifact, session)
