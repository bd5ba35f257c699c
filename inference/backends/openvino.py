"""An exported detector in OpenVINO, on a CPU."""
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inference.artifact import KEY, Artifact
from inference.backends import Backend, in_order, same_size_groups
from models.ops import openvino_nodes
from util.errors import UserError

# Of everything that is not int8. Without it, OpenVINO chooses half precision on some processors, in which sampling
# locations and box logits lose what they need. Weights in float16 are computed with in float32 too.
PRECISION = "f32"


@dataclass
class OpenVINOBackend(Backend):
    """compiled: an openvino.CompiledModel with the inputs and outputs of export/graph.py."""

    artifact: Artifact
    compiled: Any

    def __post_init__(self) -> None:
        self.card = self.artifact.card
        self._request = self.compiled.create_infer_request()

    def input_size(self, width: int, height: int) -> tuple[int, int]:
        return self.artifact.input_size(width, height)

    def detect(self, images: list[Tensor], sizes: list[tuple[int, int]]) -> list[dict[str, Tensor]]:
        """A file of a fixed batch gets the last image again where fewer are left."""
        found: list[dict[str, Tensor]] = [{}] * len(images)
        for group in same_size_groups(images):
            step = self.artifact.batch or len(group)
            for start in range(0, len(group), step):
                part = group[start:start + step]
                filled = part + part[-1:] * (step - len(part))
                labels, boxes, scores = self._run([images[i] for i in filled], [sizes[i] for i in filled])
                for row, i in enumerate(part):
                    found[i] = in_order(scores[row], labels[row], boxes[row], self.artifact.nms_iou_threshold)
        return found

    def _run(self, images: list[Tensor], sizes: list[tuple[int, int]]) -> list[Tensor]:
        batch = torch.stack(images)
        if not self.artifact.uint8:
            batch = batch.float() / 255
        inputs = {"images": batch.numpy(), "orig_target_sizes": np.array(sizes, np.int64)}
        outputs = self._request.infer(inputs, share_inputs=True)
        return [torch.from_numpy(outputs[name].copy()) for name in ("labels", "boxes", "scores")]


def open_backend(path: str | os.PathLike, device: str | torch.device = "cpu", *, threads: int | None = None
                 ) -> OpenVINOBackend:
    """The detector of an .xml file with its .bin, written by tools/export.py. threads: by default torch's number.

    Raises UserError for files that are missing, damaged or not an exported detector, for another device, and where the
    file needs compiled operators that are not built.
    """
    if torch.device(device).type != "cpu":
        raise UserError(f"{path} runs on a CPU, not on {device}: use --device cpu")
    core = new_core()
    artifact, model = read_model(core, Path(path))
    compiled = core.compile_model(model, "CPU", settings(threads or torch.get_num_threads()))
    return OpenVINOBackend(artifact, compiled)


def settings(threads: int) -> dict[str, Any]:
    return {"INFERENCE_PRECISION_HINT": PRECISION, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}


def new_core() -> Any:
    """An openvino.Core. Raises UserError where the package is missing."""
    try:
        import openvino
    except ImportError as error:
        raise UserError(f"this needs OpenVINO: pip install openvino ({error})") from error
    return openvino.Core()


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
        raise UserError(f"{path} is damaged, or no file of OpenVINO: {error}") from error
    info = model.get_rt_info(KEY).astype(str) if model.has_rt_info(KEY) else None
    artifact = Artifact.from_json(info, str(path))
    names = {name for port in (*model.inputs, *model.outputs) for name in port.names}
    missing = {"images", "orig_target_sizes", "labels", "boxes", "scores"} - names
    if missing:
        raise UserError(f"{path} has no {', '.join(sorted(missing))}: it was not written by tools/export.py")
    return artifact, model
