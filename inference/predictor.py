"""A trained detector for images, folders, videos and cameras.

    predictor = Predictor("weights/bccd_lite_dino.safetensors", "weights/bccd_lite_dino.py", device="cuda")
    for found in predictor("street.jpg"):
        print(found.name, found.score, found.box)
"""
import os
from pathlib import Path
from typing import Any

from PIL import Image

from datasets.images import read_image
from inference.backends import Backend
from inference.results import Detections
from util.class_names import ClassNames
from util.errors import UserError
from util.model_card import ModelCard

EXPORTED = (".onnx", ".xml", ".pt2")


def open_backend(source: str | os.PathLike, config: str | os.PathLike | None = None, options: list[str] | None = None,
                 device: str = "cpu", amp: bool = False, compile: bool = False) -> Backend:
    """What runs the weights or the exported file `source`."""
    suffix = Path(source).suffix.lower()
    if suffix not in EXPORTED:
        from inference.backends import torch_model

        return torch_model.open_backend(source, device, config=config, options=options, amp=amp, compile=compile)
    if config is not None or options or amp or compile:
        raise UserError(f"{source} is an exported file: config, options, precision and compilation were decided when "
                        "it was written")
    if not Path(source).is_file():
        raise UserError(f"no file {source}")
    if suffix == ".onnx":
        from inference.backends import onnx

        return onnx.open_backend(Path(source), device)
    if suffix == ".xml":
        from inference.backends import openvino

        return openvino.open_backend(Path(source), device)
    from inference.backends import pt2

    return pt2.open_backend(Path(source), device)


class Predictor:
    """card: what is known of the detector. class_names: of its category ids."""

    def __init__(self, source: str | os.PathLike, config: str | os.PathLike | None = None, *,
                 options: list[str] | None = None, device: str = "cpu", amp: bool = False, compile: bool = False):
        self.backend = open_backend(source, config, options, device, amp, compile)
        self.card: ModelCard = self.backend.card
        self.class_names: ClassNames = self.card.class_names

    def __call__(self, source: Any, score: float = 0.3) -> Detections:
        from torchvision.transforms.v2 import functional as F

        image = source if isinstance(source, Image.Image) else read_image(source)
        prepared = F.pil_to_tensor(F.resize(image, self.backend.input_size(*image.size)))
        (found,) = self.backend.detect([prepared], [image.size])
        keep = found["scores"] >= score
        return Detections(found["boxes"][keep], found["scores"][keep], found["labels"][keep], self.class_names,
                          image.size, "" if isinstance(source, Image.Image) else str(source), image=image)
