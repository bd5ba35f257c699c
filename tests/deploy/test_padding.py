import copy

import pytest
import torch
from torch import nn

from deploy.padding import SameConv, simplify_padding


@pytest.mark.parametrize("kernel", [3, 5, (3, 7)])
@pytest.mark.parametrize("size", [(8, 9), (7, 6), (1, 2)])
def test_padding_is_that_of_timm(kernel, size):
    conv2d_same = pytest.importorskip("timm.layers.conv2d_same")
    conv = conv2d_same.Conv2dSame(2, 3, kernel, stride=2)
    wrapped = nn.Sequential(conv)
    images = torch.rand(1, 2, *size)
    wanted = wrapped(images)
    simplify_padding(wrapped)
    assert isinstance(wrapped[0], SameConv)
    torch.testing.assert_close(wrapped(images), wanted)


def test_a_graph_for_any_size_is_right_whatever_the_sides_of_its_example():
    """Whether a side is odd decides where timm's padding begins, on every level anew."""
    conv2d_same = pytest.importorskip("timm.layers.conv2d_same")
    convs = nn.Sequential(*(conv2d_same.Conv2dSame(1, 1, kernel, stride=2) for kernel in (3, 5, 3)))
    expected = copy.deepcopy(convs)
    simplify_padding(convs)
    side = torch.export.Dim.DYNAMIC
    example = (torch.rand(1, 1, 20, 44),)
    program = torch.export.export(convs, example, dynamic_shapes=({2: side, 3: side},), strict=False)
    for size in ((20, 44), (21, 43), (22, 42), (24, 40), (61, 90)):
        images = torch.rand(1, 1, *size)
        torch.testing.assert_close(program.module()(images), expected(images))


def test_other_convolutions_stay():
    conv2d_same = pytest.importorskip("timm.layers.conv2d_same")
    convs = nn.Sequential(nn.Conv2d(2, 3, 3, stride=2), conv2d_same.Conv2dSame(3, 3, 2, stride=2),
                          conv2d_same.Conv2dSame(3, 3, 3, stride=3),
                          conv2d_same.Conv2dSame(3, 3, 3, stride=2, dilation=2))
    kinds = [type(conv) for conv in convs]
    simplify_padding(convs)
    assert [type(conv) for conv in convs] == kinds
