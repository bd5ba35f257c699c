"""What all exported files hold: images in, detections out, as one graph.

B batch, n detections of an image.
"""
import contextlib
import io
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from datasets.transforms import MEAN, STD
from deploy.padding import simplify_padding
from inference.artifact import INPUTS as INPUTS
from inference.artifact import OUTPUTS as OUTPUTS
from inference.artifact import SAMPLERS, Artifact
from models.detector import Detector
from models.inference import for_inference
from models.ops import implementation, native
from models.postprocess import PostProcess
from util.errors import UserError
from util.nested_tensor import NestedTensor


class DetectionGraph(nn.Module):
    """A detector with what is before and after it, in RT-DETR's convention, for images without padding."""

    image_mean: Tensor
    image_std: Tensor

    def __init__(self, model: Detector, postprocess: PostProcess, dtype: torch.dtype = torch.float32):
        """model: on the CPU in float32; it is not changed."""
        super().__init__()
        self.model = for_inference(model, dtype)
        simplify_padding(self.model.backbone)
        self.postprocess = replace(postprocess, nms_iou_threshold=-1)
        self.dtype = dtype
        self.register_buffer("image_mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("image_std", torch.tensor(STD)[:, None, None], persistent=False)

    def forward(self, images: Tensor, orig_target_sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """images [B, 3, H, W] RGB, uint8 or float in [0, 1]; orig_target_sizes [B, 2] the (width, height) of each image
        in whose pixels the boxes shall be.

        Returns labels [B, n] category ids, boxes [B, n, 4] xyxy, scores [B, n] in [0, 1].
        """
        if images.dtype == torch.uint8:
            images = images.float() / 255
        normalised = ((images - self.image_mean) / self.image_std).to(self.dtype)
        outputs = self.model(NestedTensor(normalised, None))
        found = self.postprocess.top_detections(outputs, orig_target_sizes.flip(1))
        return found["labels"], found["boxes"], found["scores"]


def example_inputs(artifact: Artifact) -> tuple[Tensor, Tensor]:
    """Inputs that the artifact takes."""
    height, width = artifact.size or (artifact.shorter_side, artifact.shorter_side + 32)
    batch = artifact.batch or 2
    images = torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0))
    if artifact.uint8:
        images = (images * 255).to(torch.uint8)
    return images, torch.tensor([[width, height]]).repeat(batch, 1)


def trace(graph: DetectionGraph, artifact: Artifact) -> ExportedProgram:
    """The graph as torch.export sees it: for any image size and batch, but for those that the artifact fixes. Raises
    UserError for a detector that cannot be traced so, or without the compiled operators where they are to be in it."""
    if artifact.sampler == "native" and not native.available("cpu"):
        raise UserError(native.missing("cpu"))
    batch = Dim.DYNAMIC if artifact.batch is None else Dim.STATIC
    side = Dim.DYNAMIC if artifact.size is None else Dim.STATIC
    shapes = {"images": {0: batch, 1: Dim.STATIC, 2: side, 3: side}, "orig_target_sizes": {0: batch, 1: Dim.STATIC}}
    with torch.no_grad(), implementation(SAMPLERS[artifact.sampler]):
        try:
            return torch.export.export(graph, example_inputs(artifact), dynamic_shapes=shapes, strict=False)
        except RuntimeError as error:
            if artifact.batch is not None and artifact.size is not None:
                raise
            raise UserError("this detector has no graph for any image size and any batch: name them, --size H W and "
                            f"--batch N ({str(error).strip().splitlines()[0][:200]})") from error


def as_onnx(program: ExportedProgram, opset: int, translations: dict[Any, Any] | None = None) -> Any:
    """A traced graph as an onnx.ModelProto. translations: of operators that ONNX does not have, see torch.onnx."""
    with contextlib.redirect_stdout(io.StringIO()):  # the exporter reports its progress
        written = torch.onnx.export(program, dynamo=True, opset_version=opset, input_names=list(INPUTS),
                                    output_names=list(OUTPUTS), custom_translation_table=translations, verbose=False)
    assert written is not None
    return written.model_proto
