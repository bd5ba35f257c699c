"""Detectors to compare this project's with: those of the transformers package, built from their configurations."""
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models import build_detector
from models.detector import Detector
from models.inference import for_inference
from util.config import load_config
from util.errors import UserError
from util.nested_tensor import NestedTensor
from util.optional import require
from util.options import parse_options


@dataclass(frozen=True)
class Contender:
    """ap: on COCO's val set, as `source` states it for its own training and image size; None where nobody measured it.
    build: the detector with random weights, images [B, 3, H, W] to logits [B, Q, K] and boxes [B, Q, 4]."""

    name: str
    ap: float | None
    source: str
    build: Callable[[], nn.Module]
    multiple: int = 1  # of which the image's sides must be


class Own(nn.Module):
    """A detector of this project, as Predictor runs it."""

    def __init__(self, detector: Detector):
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.detector(NestedTensor(images, None))
        return outputs["pred_logits"], outputs["pred_boxes"]


class Peer(nn.Module):
    """A detector of transformers, which has the outputs of all of them under the same names."""

    def __init__(self, detector: nn.Module):
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        mask = torch.ones(len(images), *images.shape[-2:], dtype=torch.long, device=images.device)
        outputs = self.detector(pixel_values=images, pixel_mask=mask)
        return outputs.logits, outputs.pred_boxes


def own(file: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        config = load_config(file, {"pretrained_backbone": False, **options})
        return Own(for_inference(build_detector(parse_options(config))[0], device=torch.device("cpu")))

    return build


def peer(kind: str, **options: Any) -> Callable[[], nn.Module]:
    """transformers' <kind>ForObjectDetection, with 80 classes."""
    def build() -> nn.Module:
        require("transformers")
        import transformers

        config = getattr(transformers, f"{kind}Config")(num_labels=80, **options)
        return Peer(getattr(transformers, f"{kind}ForObjectDetection")(config))

    return build


LITE = "config/LiteDINO/r50_h3l1_2p1x3.py"
NO_DOWNLOAD = {"use_pretrained_backbone": False}
RF_DETR_BACKBONE = {"model_type": "rf_detr_dinov2", "hidden_size": 384, "num_attention_heads": 6, "patch_size": 16,
                    "num_windows": 2, "out_indices": [2, 5, 8, 11], "apply_layernorm": True,
                    "window_block_indexes": [0, 1, 3, 4, 6, 7, 9, 10]}
CONTENDERS = [
    Contender("Lite-DINO R50 H3L1-(2+1)x3, 300 queries", None, "not measured with 300 queries",
              own(LITE, num_queries=300)),
    Contender("Lite-DINO R50 H3L1-(2+1)x3, 900 queries", 50.4, "Lite DETR; 36 epochs", own(LITE)),
    Contender("Deformable DETR R50, two stages (here)", 46.2, "Deformable DETR; 50 epochs",
              own("config/DeformableDETR/r50_two_stage.py")),
    Contender("RT-DETR R50", 53.1, "RT-DETR; 72 epochs", peer("RTDetr")),
    Contender("D-FINE-L", 54.0, "D-FINE; 72 epochs", peer("DFine")),
    Contender("RF-DETR medium", 54.7, "RF-DETR; pretrained on Objects365", peer(
        "RfDetr", backbone_config=RF_DETR_BACKBONE, decoder_layers=4), multiple=32),
    Contender("Deformable DETR R50, two stages (transformers)", 46.2, "Deformable DETR; 50 epochs",
              peer("DeformableDetr", two_stage=True, with_box_refine=True, **NO_DOWNLOAD)),
    Contender("DETR R50", 42.0, "DETR; 500 epochs", peer("Detr", **NO_DOWNLOAD)),
]


def chosen(names: list[str]) -> list[Contender]:
    """The contenders whose names contain one of these texts; all without any. Raises UserError where none does."""
    for name in names:
        if not any(name.lower() in contender.name.lower() for contender in CONTENDERS):
            raise UserError(f"no detector here has {name!r} in its name: "
                            + "; ".join(contender.name for contender in CONTENDERS))
    return [contender for contender in CONTENDERS
            if not names or any(name.lower() in contender.name.lower() for name in names)]
