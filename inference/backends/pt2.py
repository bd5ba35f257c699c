"""An exported detector in PyTorch's own format."""
from pathlib import Path

import torch
from torch import Tensor, nn

from inference.artifact import KEY, Artifact
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
        labels, boxes, scores = self.module(images.to(self.device), orig_target_sizes.to(self.device))
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
    return Pt2Backend(artifact, program.module(), target)
