import pytest

from models.parts import make_input_proj
from util.errors import UserError


@pytest.mark.parametrize("in_channels, num_levels, kernels, strides", [
    ([8, 16], 2, [1, 1], [1, 1]), ([8, 16], 4, [1, 1, 3, 3], [1, 1, 2, 2]), ([16], 3, [1, 3, 3], [1, 2, 2]),
])
def test_input_projections(in_channels, num_levels, kernels, strides):
    convs = [conv for conv, _ in make_input_proj(in_channels, num_levels, dim=12)]
    assert [conv.kernel_size[0] for conv in convs] == kernels
    assert [conv.stride[0] for conv in convs] == strides
    # The first further level reads the backbone's last map, the next ones the level before them.
    first = len(in_channels)
    assert [conv.in_channels for conv in convs] == in_channels + ([16] + [12] * 3)[: num_levels - first]


def test_fewer_levels_than_maps():
    with pytest.raises(UserError, match="num_feature_levels=1 is fewer than the 2 maps"):
        make_input_proj([8, 16], 1, dim=12)
