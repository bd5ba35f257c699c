"""A trained detector for single images.

    predictor = Predictor.from_files("config/LiteDINO/r50_h3l1_2p1x3.py", "checkpoint.pth", device="cuda")
    found = predictor(read_image("street.jpg"))    # scores, labels, and boxes in pixels of the image
"""
import os
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import tv_tensors

from datasets.adapt import adapt_options
from datasets.images import read_image as read_image  # for the programs that use a Predictor
from datasets.transforms import val_transforms
from models import build_detector
from models.postprocess import PostProcess
from util.checkpoint import load_weights, read_checkpoint
from util.class_names import COCO_CLASSES
from util.config import load_config, parse_pairs
from util.devices import usable_device
from util.options import DataOptions, parse_options
from util.precision import place


@dataclass
class Predictor:
    """Calls a detector on one PIL image at a time; prepares and post-processes as an evaluation does.

    model: in evaluation mode, on `device`. class_names: of the category ids whose names are known. data: the options
    that say how images are resized.
    """

    model: nn.Module
    postprocess: PostProcess
    class_names: dict[int, str]
    data: DataOptions
    device: torch.device

    @classmethod
    def from_files(cls, config_file: str | os.PathLike, checkpoint: str | os.PathLike, options: list[str] | None = None,
                   device: str | torch.device = "cpu") -> "Predictor":
        """The detector of a config file with the weights of a checkpoint, a file or an https address.

        options: "KEY=VALUE" each, override config keys. Class names come from the checkpoint; if it has none and the
        model has COCO's number of classes, they are COCO's. With use_ema the averaged weights are loaded. Raises
        UserError for files that are missing, unreadable or do not fit each other.
        """
        target = usable_device(device)
        content = read_checkpoint(checkpoint)
        parsed = parse_options(load_config(config_file, parse_pairs(options or [])))
        parsed = adapt_options(parsed, None, "val", content)
        model, _, postprocessors = build_detector(parsed.replaced(pretrained_backbone=False))
        load_weights(model, content, ema=parsed.training.use_ema)
        place(model, target)
        names = content.get("class_names", COCO_CLASSES if parsed.data.num_classes == len(COCO_CLASSES) else {})
        return cls(model.eval(), postprocessors["bbox"], names, parsed.data, target)

    def prepared(self, image: Image.Image) -> Tensor:
        """The model's input [3, H, W] for an RGB image, on the device: resized and normalised as in an evaluation."""
        boxes = tv_tensors.BoundingBoxes(torch.zeros(0, 4), format="XYXY", canvas_size=image.size[::-1])
        return val_transforms(self.data)(image, {"boxes": boxes, "area": torch.zeros(0)})[0].to(self.device)

    @torch.no_grad()
    def __call__(self, image: Image.Image) -> dict[str, Tensor]:
        """Detections in an RGB image, on the CPU: "scores" [n] in [0, 1], descending, "labels" [n] category ids,
        "boxes" [n, 4] xyxy in pixels of the image."""
        size = torch.tensor([[image.height, image.width]], device=self.device)
        (found,) = self.postprocess(self.model([self.prepared(image)]), size)
        order = found["scores"].argsort(descending=True)
        return {name: value[order].cpu() for name, value in found.items()}
