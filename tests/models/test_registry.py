"""A new encoder, decoder or backbone is one builder and one line in the dict of its folder."""
import pytest
import torch
from torch import nn

from models import MODELS
from models.backbones import BACKBONES
from models.criterion import weighted_sum
from models.decoders import DECODERS
from models.encoders import ENCODERS
from models.registry import choose
from models.structures import DecoderOutput
from util.errors import UserError


class ToyEncoder(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.linear = nn.Linear(dim, dim)

    def forward(self, features):
        return features.with_tokens(features.tokens + self.linear(features.tokens + features.pos))


class ToyDecoder(nn.Module):
    """Queries read the mean of the tokens."""

    def __init__(self, dim, num_layers):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(dim, dim) for _ in range(num_layers))

    def forward(self, queries, memory):
        content, hidden = queries.content, []
        for layer in self.layers:
            content = content + layer(content + memory.tokens.mean(1, keepdim=True))
            hidden.append(content)
        reference = None if queries.box_logits is None else [queries.box_logits.sigmoid()] * len(hidden)
        return DecoderOutput(hidden, reference)


class ToyBackbone(nn.Module):
    def __init__(self, return_indices):
        super().__init__()
        self.strides = [4 * 2**i for i in return_indices]
        self.num_channels = [8 for _ in return_indices]
        self.convs = nn.ModuleList(nn.Conv2d(3, 8, stride, stride) for stride in self.strides)

    def forward(self, images):
        return [conv(images) for conv in self.convs]


@pytest.fixture
def toys(monkeypatch):
    monkeypatch.setitem(ENCODERS, "toy", lambda options: ToyEncoder(options.transformer.hidden_dim))
    monkeypatch.setitem(DECODERS, "toy", lambda options, heads: ToyDecoder(options.transformer.hidden_dim,
                                                                           options.decoder.dec_layers))
    monkeypatch.setitem(BACKBONES, "toy", lambda options: ToyBackbone(options.return_interm_indices))
    return {"encoder": "toy", "decoder": "toy", "backbone": "toy"}


@pytest.mark.parametrize("name", ["dino", "deformable_detr", "detr_r50", "sdetr_r50", "lite_sdetr_r50"])
def test_a_detector_of_new_parts_trains(toys, build, build_deformable, build_sdetr, make_targets, name):
    if name == "dino":
        model, criterion, post = build(**toys, use_dn=False)
    elif name == "deformable_detr":
        model, criterion, post = build_deformable(**toys)
    else:
        model, criterion, post = build_sdetr(name, **toys)
    kinds = [type(module) for module in model.modules()]
    assert {ToyEncoder, ToyDecoder, ToyBackbone} <= set(kinds)
    images, targets = [torch.randn(3, 64, 96), torch.randn(3, 96, 64)], make_targets(2, 1)
    weighted_sum(criterion(model.train()(images, targets), targets), criterion.weight_dict).backward()
    assert all(p.grad is not None for module in model.modules() if isinstance(module, (ToyEncoder, ToyDecoder))
               for p in module.parameters())
    with torch.no_grad():
        detections = post["bbox"](model.eval()(images), torch.tensor([[64, 96], [96, 64]]))
    assert [len(d["scores"]) > 0 for d in detections] == [True, True]


def test_a_prefix_is_for_all_names_with_it(monkeypatch):
    monkeypatch.setitem(BACKBONES, "zoo:NAME", build := object())
    assert choose(BACKBONES, "backbone", "zoo:lion") is choose(BACKBONES, "backbone", "zoo:tiger") is build


@pytest.mark.parametrize("registry, key, name, message", [
    (ENCODERS, "encoder", "deformabel", "encoder='deformabel' is unknown. Did you mean 'deformable'.*, global"),
    (DECODERS, "decoder", "dinno", "decoder='dinno' is unknown. Did you mean 'dino'.*Known: deformable, dino, global"),
    (BACKBONES, "backbone", "resnet5", "Did you mean 'resnet50'.*swin_T_224_1k.*timm:NAME"),
    (BACKBONES, "backbone", "tim:resnet50", "backbone='tim:resnet50' is unknown"),
    (MODELS, "modelname", "sdeter", "Did you mean 'sdetr'"),
])
def test_unknown_names(registry, key, name, message):
    with pytest.raises(UserError, match=message):
        choose(registry, key, name)


@pytest.mark.parametrize("options, message", [
    ({"encoder": "deformable"}, "num_expansion=1 is for encoder='interleaved'"),
    ({"encoder": "interleaved", "num_expansion": None}, "encoder='interleaved' needs num_expansion"),
    ({"encoder": "toi"}, "encoder='toi' is unknown"), ({"decoder": "toi"}, "decoder='toi' is unknown"),
])
def test_names_that_do_not_fit(build, options, message):
    with pytest.raises(UserError, match=message):
        build(**options)


@pytest.mark.parametrize("decoder", ["dino", "deformable"])
def test_decoders_of_boxes_are_not_for_detr(build_sdetr, decoder):
    with pytest.raises(UserError, match=f"decoder='{decoder}' works on boxes"):
        build_sdetr("detr_r50", decoder=decoder)


def test_a_decoder_that_needs_other_queries(build):
    with pytest.raises(UserError, match="needs queries with pos"):
        build(decoder="global")[0]([torch.randn(3, 64, 64)])


@pytest.mark.parametrize("encoder", ["deformable", "global"])
def test_stages_take_other_encoders(build_sdetr, encoder):
    """A stage's encoder is built for the levels and the depth of that stage."""
    model = build_sdetr("sdetr_r50", encoder=encoder, stage_levels=[[1], [0, 1]], enc_layers=[1, 2],
                        enc_nheads=[2, 4])[0].eval()
    assert [len(stage.encoder.layers) for stage in model.stages] == [1, 2]
    assert [stage.encoder.layers[0].self_attn.num_heads for stage in model.stages] == [2, 4]
    with torch.no_grad():
        assert model([torch.randn(3, 64, 96)])["pred_boxes"].isfinite().all()
