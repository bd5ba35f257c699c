"""Padding that a graph for any image size can hold."""
import torch.nn.functional as F
from torch import Tensor, nn

from models.backbones import Backbone


class SameConv(nn.Conv2d):
    """TensorFlow's "same" padding for stride 2: it begins one pixel further left and above where the side is odd. A
    graph for any image size must not decide on that, as timm's Conv2dSame does: the padding here is always the same,
    and where the image begins in it follows from the size."""

    def forward(self, x: Tensor) -> Tensor:
        (rows, columns), (height, width) = self.kernel_size, x.shape[-2:]
        padded = F.pad(x, ((columns - 1) // 2, (columns + 1) // 2, (rows - 1) // 2, (rows + 1) // 2))
        window = padded.narrow(2, 1 - height % 2, height + rows - 1).narrow(3, 1 - width % 2, width + columns - 1)
        return F.conv2d(window, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def simplify_padding(backbone: Backbone) -> None:
    """Makes SameConv of the convolutions that it can stand for, in place."""
    for module in backbone.modules():
        if (type(module).__name__ == "Conv2dSame" and isinstance(module, nn.Conv2d) and module.stride == (2, 2)
                and module.dilation == (1, 1) and all(side >= 3 and side % 2 for side in module.kernel_size)):
            module.__class__ = SameConv  # with all its weights and hooks
