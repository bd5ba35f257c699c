"""A detector of this project in PyTorch, from its weights."""
import os
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from datasets.adapt import adapt_options
from datasets.transforms import ResizeShorter, eval_limits, normalized
from inference.backends import Backend, in_order, same_size_groups
from models import build_detector
from models.compiled import CompiledDetector
from models.detector import Detector
from models.inference import for_inference
from models.postprocess import PostProcess
from util.checkpoint import load_weights, read_checkpoint
from util.class_names import COCO_CLASSES
from util.config import Config, load_config, parse_pairs
from util.devices import usable_device
from util.errors import UserError
from util.model_card import ModelCard
from util.nested_tensor import NestedTensor
from util.options import Options, parse_options
from util.precision import amp_dtype, fastest_dtype

DTYPES = ("float32", "float16", "bfloat16")


@dataclass
class TorchBackend(Backend):
    """model: in evaluation mode, on `device`; see models.inference for what it need not compute. postprocess: of its
    outputs. options: what it was built from. compiled: the model, compiled, which then finds the objects.
    """

    model: Detector
    postprocess: PostProcess
    card: ModelCard
    options: Options
    device: torch.device
    compiled: CompiledDetector | None = None

    def input_size(self, width: int, height: int) -> tuple[int, int]:
        size, max_size = eval_limits(self.options.data)
        return ResizeShorter([size], max_size).result(width, height, size)

    def model_input(self, images: list[Tensor]) -> NestedTensor:
        """Images uint8 [3, h, w] of one size as the model reads them: on its device, normalised as in an evaluation."""
        batch = torch.stack(images).to(self.device, non_blocking=True)  # contiguous: faster below than channels last
        return NestedTensor(normalized(batch), None)

    @torch.inference_mode()
    def detect(self, images: list[Tensor], sizes: list[tuple[int, int]]) -> list[dict[str, Tensor]]:
        """Images of different sizes run one after the other: padding to a common size moves the boxes, because
        convolutions and GroupNorm see the padding."""
        found: list[dict[str, Tensor]] = [{}] * len(images)
        raw = replace(self.postprocess, nms_iou_threshold=-1)
        for group in same_size_groups(images):
            samples = self.model_input([images[i] for i in group])
            outputs = self.compiled(samples.tensors) if self.compiled else self.model(samples)
            target_sizes = torch.tensor([sizes[i][::-1] for i in group], device=self.device)
            results = raw(outputs, target_sizes)
            rows = torch.stack([torch.cat([r["scores"][:, None], r["labels"][:, None], r["boxes"]], 1)
                                for r in results]).cpu()  # one transfer
            for i, row in zip(group, rows):
                found[i] = in_order(row[:, 0], row[:, 1].long(), row[:, 2:], self.postprocess.nms_iou_threshold)
        return found


def open_backend(weights: str | os.PathLike, device: str | torch.device = "cpu", *,
                 config: str | os.PathLike | dict[str, Any] | None = None, options: list[str] | None = None,
                 amp: bool = False, dtype: str | None = None, compile: bool = False) -> TorchBackend:
    """The detector of whatever util.checkpoint.read_checkpoint reads: a weights file, an address, a name.

    config: a config file, or its content; without one, what the weights carry. options: "KEY=VALUE" each, override its
    keys: num_queries and dec_layers may be fewer than the weights have. With use_ema the averaged weights are loaded.
    Class names come from the weights; if those have none and the model has COCO's number of classes, they are COCO's.
    amp, dtype: see Predictor. compile: see CompiledDetector. Raises UserError for files that are missing,
    unreadable or do not fit each other.
    """
    target = usable_device(device)
    content = read_checkpoint(weights)
    changes = parse_pairs(options or [])
    if isinstance(config, dict):
        keys = {**config, **changes}
    elif config is not None:
        keys = load_config(config, changes)
    elif "config" in content:
        keys = {**content["config"], **changes}
    else:
        raise UserError(f"{weights} carries no config: name the file that it was trained with (-c CONFIG)")
    parsed = adapt_options(parse_options(Config(keys)), None, "val", content)
    model, _, postprocessors = build_detector(parsed.replaced(pretrained_backbone=False))
    load_weights(model, content, ema=parsed.training.use_ema, shortened=True)
    model = for_inference(model, _precision(dtype, parsed, amp, target), target)
    card = _card(parsed, content)
    fault = card.fault()
    if fault:
        raise UserError(f"{weights}: what it says of its classes does not fit: {fault}")
    return TorchBackend(model, postprocessors["bbox"], card, parsed, target,
                        CompiledDetector(model) if compile else None)


def _precision(dtype: str | None, options: Options, amp: bool, device: torch.device) -> torch.dtype | None:
    """Of the weights. None: float32."""
    if dtype is None:
        return amp_dtype(options.training, amp, device)
    if dtype == "auto":
        return fastest_dtype(device)
    if dtype not in DTYPES:
        raise UserError(f"dtype={dtype!r} must be one of auto, {', '.join(DTYPES)}")
    return None if dtype == "float32" else getattr(torch, dtype)


def _card(options: Options, content: dict[str, Any]) -> ModelCard:
    """The one of the weights, or what they say without, for a model that was built with these options."""
    if "card" in content:
        return replace(content["card"], config=options.to_dict())
    coco = COCO_CLASSES if options.data.num_classes == len(COCO_CLASSES) else {}
    return ModelCard(options.to_dict(), content.get("class_names", coco))
