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


@pytest.mark.parametrize("widths, expected", [
    ({"dim_feedforward": 24}, (24, 24)), ({"dim_feedforward": 24, "dim_feedforward_enc": 40}, (40, 24)),
    ({"dim_feedforward": 24, "dim_feedforward_enc": 40, "dim_feedforward_dec": 56}, (40, 56)),
], ids=str)
@pytest.mark.parametrize("family", ["Lite DINO", "DINO", "Deformable DETR", "DETR", "SDETR", "Lite SDETR"])
def test_widths_of_encoder_and_decoder(family, widths, expected, build, build_deformable, build_sdetr):
    """dim_feedforward_enc and dim_feedforward_dec of every detector; Lite DETR's config sets them."""
    make = {"Lite DINO": build, "DINO": lambda **keys: build(num_expansion=None, **keys),
            "Deformable DETR": build_deformable, "DETR": lambda **keys: build_sdetr("detr_r50", **keys),
            "SDETR": lambda **keys: build_sdetr("sdetr_r50", **keys),
            "Lite SDETR": lambda **keys: build_sdetr("lite_sdetr_r50", **keys)}[family]
    found = {name: layer.out_features for name, layer in make(**widths)[0].named_modules() if name.endswith("linear1")}
    for part, width in zip(("encoder", "decoder"), expected, strict=True):
        assert {out for name, out in found.items() if part in name} == {width}


def test_key_options_are_the_encoders(build):
    """As published: the decoder's levels have offsets of their own, and its keys are its values."""
    names = {name: tensor.shape for name, tensor in build(same_loc=True, proj_key=True)[0].state_dict().items()}
    offsets = {name: shape[0] for name, shape in names.items() if name.endswith("sampling_offsets.weight")}
    assert {rows for name, rows in offsets.items() if ".encoder." in name} == {2 * 2 * 2}  # heads, points, x and y
    assert {rows for name, rows in offsets.items() if ".decoder." in name} == {2 * 2 * 2 * 3}  # and levels
    with_key = {name.split(".")[1] for name in names if "key_proj" in name}
    assert with_key == {"encoder"}
