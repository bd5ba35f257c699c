import pytest
import torch

from models.backbones import build_backbone
from models.layers.position_encoding import PositionEmbeddingLearned, PositionEmbeddingSine
from util.errors import UserError
from util.nested_tensor import NestedTensor
from util.options import BackboneOptions, PositionOptions


def make(position="sine", hidden_dim=16, train=True, **options):
    options = {"backbone": "resnet18", "pretrained_backbone": False, "return_interm_indices": [2, 3]} | options
    return build_backbone(BackboneOptions(**options), PositionOptions(position, pe_temperatureH=10, pe_temperatureW=30),
                          hidden_dim, train)


def test_maps_with_masks_and_positions():
    backbone = make(return_interm_indices=[1, 2, 3])
    samples = NestedTensor.from_list([torch.randn(3, 64, 96), torch.randn(3, 32, 64)])
    maps, positions = backbone(samples)
    assert [tuple(m.tensors.shape) for m in maps] == [(2, 128, 8, 12), (2, 256, 4, 6), (2, 512, 2, 3)]
    assert backbone.num_channels == [128, 256, 512]
    for level, stride in enumerate((8, 16, 32)):
        valid = ~maps[level].mask
        assert valid[0].all()
        assert valid[1].nonzero().tolist() == [[y, x] for y in range(32 // stride) for x in range(64 // stride)]
        assert positions[level].shape == (2, 16, *maps[level].mask.shape[1:])
        assert torch.equal(positions[level], backbone.position(maps[level]))


def test_published_names():
    assert {name.split(".")[0] + "." + name.split(".")[1] for name in make().state_dict()} == {"0.body"}


@pytest.mark.parametrize("position, kind", [("sine", PositionEmbeddingSine), ("v2", PositionEmbeddingSine),
                                            ("learned", PositionEmbeddingLearned), ("v3", PositionEmbeddingLearned)])
def test_position_encodings(position, kind):
    encoding = make(position).position
    assert isinstance(encoding, kind)
    if kind is PositionEmbeddingSine:
        assert (encoding.num_feats, encoding.temperature_h, encoding.temperature_w) == (8, 10, 30)
    else:
        assert encoding.row_embed.weight.shape == (50, 8)


@pytest.mark.parametrize("options, message", [
    ({"backbone": "resnet5"}, "backbone='resnet5' is unknown. Did you mean 'resnet50'"),
    ({"backbone": "swin_t"}, "backbone='swin_t' is unknown.*swin_T_224_1k"),
    ({"return_interm_indices": []}, "must be ascending and from 0 to 3"),
    ({"return_interm_indices": [2, 1]}, r"return_interm_indices=\[2, 1\] must be ascending"),
    ({"return_interm_indices": [1, 1]}, "must be ascending"),
    ({"return_interm_indices": [3, 4]}, "from 0 to 3"),
    ({"return_interm_indices": [-1, 0]}, "from 0 to 3"),
    ({"hidden_dim": 18}, "hidden_dim=18 must be a multiple of 4"),
    ({"backbone": "resnet18", "dilation": True}, "dilation=True: resnet18 has no dilated form"),
])
def test_unusable_options(options, message):
    with pytest.raises(UserError, match=message):
        make(**options)


def trained(backbone):
    return {name for name, parameter in backbone[0].named_parameters() if parameter.requires_grad}


def test_freezing_by_keyword():
    everything = trained(make())
    assert trained(make(backbone_freeze_keywords=[])) == trained(make(backbone_freeze_keywords=None)) == everything
    assert trained(make(backbone_freeze_keywords=["layer4", "layer2.0"])) == {
        name for name in everything if "layer4" not in name and "layer2.0" not in name} != everything
    assert trained(make(backbone_freeze_keywords=["body"])) == set()


def test_not_trained():
    assert trained(make(train=False)) == set()
