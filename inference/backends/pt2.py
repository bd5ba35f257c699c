"""An exported detector in PyTorch's own format."""
import inspect
from pathlib import Path

import torch
from torch import Tensor, nn

from inference.artifact import INPUTS, KEY, Artifact
from inference.backends.exported import ExportedBackend
from models.ops import native
from util.devices import usable_device
from util.errors import UserError


class Pt2Backend(ExportedBackend):
    """module: what torch.export.load read, on `device`."""

    def __init__(self, artifact: Artifact, module: nn.Module, device: torch.device):
        super().__init__(artifact)
        self.module, self.device = module, device

    @torch.inference_mode()
    def run(self, images: Tensor, orig_target_sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        try:
            labels, boxes, scores = self.module(images.to(self.device), orig_target_sizes.to(self.device))
        except RuntimeError as error:
            if "Expected input" not in str(error):
                raise
            height, width = images.shape[-2:]
            raise UserError(f"a .pt2 file takes no image as small or narrow as {width} x {height} px, to which one is "
                            f"resized: use the weights, or an .onnx file ({error})") from error
        return labels.cpu(), boxes.cpu(), scores.cpu()


def open_backend(path: Path, device: str = "cpu") -> Pt2Backend:
    """Raises UserError for a file that tools/export.py did not write or that this torch does not read."""
    target = usable_device(device)
    if target.type != "cpu":
        raise UserError(f"{path} is for a CPU: PyTorch keeps the device in the file. Use the weights on {device}")
    extra = {KEY: ""}
    try:
        program = torch.export.load(path, extra_files=extra)
    except Exception as error:  # of many kinds, by what is wrong with the file
        # A node of the file may be one of the compiled operators.
        advice = "" if native.available("cpu") else f" ({native.missing('cpu')})"
        raise UserError(f"{path}: PyTorch does not read it: {str(error).strip()[:300]}{advice}") from error
    artifact = Artifact.from_json(extra[KEY] or None, str(path))
    takes = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    if not takes.keys() >= set(INPUTS):
        raise UserError(f"{path} has no {' and no '.join(INPUTS)}: it was not written by tools/export.py")
    images = takes[INPUTS[0]]
    artifact.check_images([n if isinstance(n, int) else None for n in images.shape], images.dtype == torch.uint8,
                          str(path))
    # Among the guards are some that refuse a batch of one image in a file for any number, which computes it rightly.
    # Earlier versions of PyTorch have none.
    unguarded = {"check_guards": False} if "check_guards" in inspect.signature(program.module).parameters else {}
    return Pt2Backend(artifact, program.module(**unguarded), target)
