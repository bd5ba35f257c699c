"""ResNet from torchvision with frozen batch norm, as in DETR."""
import torchvision
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter

from models.backbones.weights import fetch_weights, load_backbone
from models.layers.frozen_batch_norm import FrozenBatchNorm2d
from models.layers.recompute import recomputed
from util.errors import UserError
from util.options import BackboneOptions


class ResNet(nn.Module):
    """The stages `return_interm_indices` (0 to 3, strides 4 to 32) of a torchvision ResNet. The stem and stage 0
    are never trained. With dilation the last stage keeps stride 16 (DC5).
    """

    def __init__(self, name: str, return_indices: list[int], dilation: bool = False, use_checkpoint: bool = False):
        super().__init__()
        if dilation and name in ("resnet18", "resnet34"):
            raise UserError(f"dilation=True: {name} has no dilated form; use resnet50 or resnet101")
        strides = {"replace_stride_with_dilation": [False, False, True]} if dilation else {}
        resnet = getattr(torchvision.models, name)(norm_layer=FrozenBatchNorm2d, **strides)
        expansion = resnet.layer1[0].expansion
        self.num_channels = [64 * 2**i * expansion for i in return_indices]
        self.body = IntermediateLayerGetter(resnet, {f"layer{i + 1}": str(i) for i in return_indices})
        self.use_checkpoint = use_checkpoint
        for part, parameter in self.body.named_parameters():
            parameter.requires_grad_(part.startswith(("layer2", "layer3", "layer4")))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images [B, 3, H, W] to one map per chosen stage."""
        maps = []
        for name, stage in self.body.items():
            x = recomputed(stage, x, enabled=self.use_checkpoint and name.startswith("layer"))
            if name in self.body.return_layers:
                maps.append(x)
        return maps


def build_resnet(options: BackboneOptions) -> ResNet:
    model = ResNet(options.backbone, options.return_interm_indices, options.dilation, options.use_checkpoint)
    if options.pretrained_backbone:
        url = torchvision.models.get_model_weights(options.backbone)["IMAGENET1K_V1"].url
        weights = fetch_weights(options.backbone, url, options.backbone_dir)
        # Not the classifier, nor stages after the last one used.
        used = {key: value for key, value in weights.items() if key.split(".")[0] in model.body}
        load_backbone(model.body, used, options.backbone_dir or url)
    return model
