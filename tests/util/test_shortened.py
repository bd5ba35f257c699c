"""Weights for fewer queries and decoder layers: what remains is what the model with all of them has there."""
import logging

import pytest
import torch

from models import build_model
from tests.inference.detectors import CONFIGS, spread_scores
from util.checkpoint import fitting_weights, load_weights
from util.errors import UserError
from util.shortened import QUERY_TENSORS, shortened_state

IMAGES = [torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(2))]


def built(config, **options):
    torch.manual_seed(0)
    model = build_model({**config, **options})[0].eval()
    spread_scores(model)
    return model


@pytest.fixture(params=[*CONFIGS, "unshared", "mixed"])
def config(request, tiny_dino, tiny_sdetr):
    if request.param == "unshared":
        return tiny_dino(dec_pred_bbox_embed_share=False, dec_pred_class_embed_share=False, dec_layers=3)
    if request.param == "mixed":
        return {**CONFIGS["h_detr"](tiny_dino, tiny_sdetr), "mixed_selection": True}
    return CONFIGS[request.param](tiny_dino, tiny_sdetr)


@torch.no_grad()
def test_fewer_decoder_layers_give_what_the_layer_before_the_last_gave(config):
    """Its predictions are the auxiliary outputs of the whole model."""
    whole = built(config)
    layers = config["dec_layers"]
    fewer = [n - 1 for n in layers] if isinstance(layers, list) else layers - 1
    short = built(config, dec_layers=fewer)
    load_weights(short, {"model": whole.state_dict()}, shortened=True)
    if config["modelname"] in ("sdetr", "lite_sdetr"):  # the next stage begins at another state
        stage = whole.stages[0].decoder.layers
        kept = short.stages[0].decoder.layers
        assert len(kept) == len(stage) - 1
        assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), stage.parameters()))
        return
    outputs, found = whole(IMAGES), short(IMAGES)
    for key, value in found.items():
        if key.startswith("pred"):
            torch.testing.assert_close(value, outputs["aux_outputs"][-1][key])


@torch.no_grad()
def test_fewer_queries_are_the_first_ones(config, caplog):
    whole, short = built(config), built(config, num_queries=7)
    with caplog.at_level(logging.INFO):
        load_weights(short, {"model": whole.state_dict()}, shortened=True)
    for name, rows in short.state_dict().items():
        if not QUERY_TENSORS.search(name):
            continue
        assert torch.equal(rows, whole.state_dict()[name][:len(rows)]) and f"{name}: the first {len(rows)} of" in (
            caplog.text)
    whole.num_queries = 7
    found, wanted = short(IMAGES), whole(IMAGES)
    assert found["pred_logits"].shape[1] == 7
    torch.testing.assert_close(found["pred_boxes"], wanted["pred_boxes"])


def test_only_fewer_fit_and_only_where_this_is_wanted(tiny_dino):
    config = tiny_dino()
    state = {"model": built(config).state_dict()}
    for options in ({"num_queries": 21}, {"dec_layers": 3}, {"hidden_dim": 64}, {"enc_layers": 1, "num_expansion": 1}):
        with pytest.raises(UserError, match="does not fit the model"):
            load_weights(built(config, **options), state, shortened=True)
    for options in ({"num_queries": 19}, {"dec_layers": 1}):
        with pytest.raises(UserError, match="does not fit the model"):
            fitting_weights(built(config, **options), state["model"], "weights")


def test_what_a_model_lacks_for_another_reason_stays(tiny_dino):
    """Lists of heads are shortened with the layers only, and nothing else at all."""
    own = {"transformer.decoder.layers.0.x": torch.zeros(1), "class_embed.0.weight": torch.zeros(1)}
    state = own | {"class_embed.1.weight": torch.ones(1), "other.1.weight": torch.ones(1)}
    assert shortened_state(state, own).keys() == state.keys()


def test_heads_of_proposals_remain_the_last():
    layers = {f"transformer.decoder.layers.{i}.x": torch.tensor([float(i)]) for i in range(4)}
    heads = {f"class_embed.{i}.weight": torch.tensor([float(i)]) for i in range(5)}
    own = {name: value for name, value in (layers | heads).items() if name.split(".")[-2] in "012"}
    own.pop("transformer.decoder.layers.2.x")
    kept = shortened_state(layers | heads, own)
    assert {name: value.item() for name, value in kept.items()} == {
        "transformer.decoder.layers.0.x": 0, "transformer.decoder.layers.1.x": 1,
        "class_embed.0.weight": 0, "class_embed.1.weight": 1, "class_embed.2.weight": 4}
