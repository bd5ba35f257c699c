"""Config keys of a detector from the names and shapes of its tensors."""
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from models.backbones.convnext import CONVNEXTS
from models.backbones.swin import SWINS
from sampling_form import sampling_form
from util.checkpoint import our_name
from util.errors import UserError
from util.foreign_names import in_our_names, origin

RESNETS = {(2, False): "resnet18", (6, False): "resnet34", (6, True): "resnet50", (23, True): "resnet101"}
ONE_TO_MANY = 1500  # of H-DETR's queries, in all released checkpoints


def keys_from_state(state: dict[str, Tensor], saved: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Config keys of the model whose published or own state dict this is, or one of detrex or transformers, as far as
    names, shapes and equal heads tell them. saved: the config that the checkpoint holds, if it does; only it tells the
    queries of a one-to-many branch from those that detect.

    Raises UserError if it belongs to none of this project's detectors.
    """
    source = origin(state)
    state = {our_name(key): value for key, value in in_our_names(state).items()}
    unknown = f"the checkpoint is of no detector that is known here; names in it are {sorted(state)[:5]}"
    try:
        if {"label_enc.weight", "transformer.enc_output.weight"} <= set(state):
            found = _dino(state)
        elif {"transformer.reference_points.weight", "transformer.pos_trans.weight"} & set(state):
            found = _deformable_detr(state)
        elif "class_embed.weight" in state and any(".multihead_attn." in key for key in state):
            found = _stacked(state)
        else:
            raise UserError(unknown)
        if source == "detrex" and found["modelname"] == "dino":  # its positions are those of Deformable DETR
            found |= {"pe_temperatureH": 10000, "pe_temperatureW": 10000, "pe_centres": True}
        found |= _one_to_many(found, state, saved or {})
        if "backbone.1.row_embed.weight" in state:
            found["position_embedding"] = "learned"
        return found | _backbone(state)
    except KeyError as error:
        raise UserError(f"{unknown}, and {error} is missing") from error


def _one_to_many(found: dict[str, Any], state: dict[str, Tensor], saved: Mapping[str, Any]) -> dict[str, Any]:
    if any(key.startswith("one_to_many.") for key in state):
        return {"one2many": "shared"}
    branch, guess = saved.get("num_queries_one2many"), found.get("num_queries_one2many", 0)
    queries = found.get("num_queries", 0) + guess
    if type(branch) is not int or branch == guess or not 0 <= branch < queries:
        return {}
    return {"num_queries": queries - branch, "num_queries_one2many": branch}


def _dino(state: dict[str, Tensor]) -> dict[str, Any]:
    queries = state.get("transformer.tgt_embed.weight")
    found = {"modelname": "dino", "embed_init_tgt": queries is not None} | _deformable_transformer(state)
    if queries is not None:
        found["num_queries"] = len(queries)
    found |= {f"dec_pred_{kind}_share": False for kind in ("bbox_embed", "class_embed") if not _is_shared(state, kind)}
    return found | {"dn_labelbook_size": len(state["label_enc.weight"]) - 1}


def _is_shared(state: dict[str, Tensor], kind: str) -> bool:
    """Whether all decoder layers have one head. Tensors without numbers are taken for shared ones, as published."""
    heads = [[value for key, value in sorted(state.items()) if key.startswith(f"{kind}.{i}.")]
             for i in range(_count(state, f"{kind}."))]
    return all(value.is_meta or torch.equal(value, first) for head in heads for value, first in zip(head, heads[0]))


def _deformable_detr(state: dict[str, Tensor]) -> dict[str, Any]:
    two_stage, embed = "transformer.pos_trans.weight" in state, state.get("query_embed.weight")
    found = {"modelname": "deformable_detr", "two_stage": two_stage, "mixed_selection": two_stage and embed is not None,
             "with_box_refine": "transformer.decoder.bbox_embed.0.layers.0.weight" in state}
    if embed is not None:
        one_to_many = ONE_TO_MANY if len(embed) > ONE_TO_MANY else 0
        found |= {"num_queries": len(embed) - one_to_many, "num_queries_one2many": one_to_many}
    return found | _deformable_transformer(state)


def _deformable_transformer(state: dict[str, Tensor]) -> dict[str, Any]:
    levels, dim = state["transformer.level_embed"].shape
    encoder, decoder = "transformer.encoder.layers.", "transformer.decoder.layers."
    form = sampling_form(state, f"{decoder}0.cross_attn.", levels)
    found = {"num_classes": len(state["class_embed.0.weight"]), "hidden_dim": dim, "num_feature_levels": levels,
             "dim_feedforward": len(state[f"{encoder}0.linear1.weight"]), "enc_layers": _count(state, encoder),
             "dec_layers": _count(state, decoder), "dec_n_points": form.points}
    if form.sure:
        found["nheads"] = form.heads
    width = len(state[f"{decoder}0.linear1.weight"])
    if width != found["dim_feedforward"]:
        found["dim_feedforward_dec"] = width
    return found | _deformable_encoder(state, encoder, levels, form.points)


def _deformable_encoder(state: dict[str, Tensor], prefix: str, levels: int,
                        points: int | None = None) -> dict[str, Any]:
    """`points`: those of the decoder, for checkpoints that leave a choice."""
    attention = f"{prefix}0.self_attn."
    form = sampling_form(state, attention, levels, points)
    # A layer with the small feed-forward ends each block.
    blocks = sum(f"{prefix}{i}.linear12.weight" in state for i in range(_count(state, prefix)))
    return {"num_expansion": blocks or None, "enc_n_points": form.points, "same_loc": form.same_loc,
            "key_aware": f"{attention}attention_weights.weight" not in state,
            "proj_key": f"{attention}key_proj.weight" in state}


def _stacked(state: dict[str, Tensor]) -> dict[str, Any]:
    stages = _count(state, "stages.")
    prefixes = [f"stages.{i}." for i in range(stages)] or ["transformer."]
    queries = state["query_embed.0.weight" if stages else "query_embed.weight"]
    depth = {"dec_layers": [_count(state, f"{prefix}decoder.layers.") for prefix in prefixes]}
    found = {"modelname": "sdetr" if stages else "detr", "num_classes": len(state["class_embed.weight"]) - 1,
             "hidden_dim": queries.shape[1], "num_queries": len(queries),
             "dim_feedforward": len(state[f"{prefixes[0]}decoder.layers.0.linear1.weight"])}
    if any(f"{prefix}encoder.norm.weight" in state for prefix in prefixes):
        found["pre_norm"] = True
    if "level_embed" in state:
        levels = len(state["level_embed"])
        found |= {"modelname": "lite_sdetr", "num_feature_levels": levels,
                  "enc_layers": _count(state, "encoder.layers.")}
        found |= _deformable_encoder(state, "encoder.layers.", levels)
    else:
        depth["enc_layers"] = [_count(state, f"{prefix}encoder.layers.") for prefix in prefixes]
    return found | {key: counts if stages else counts[0] for key, counts in depth.items()}


def _backbone(state: dict[str, Tensor]) -> dict[str, Any]:
    """The backbone's name, and which stages the projections read; {} if its names do not tell (timm's)."""
    stem = next((value for key, value in state.items() if key.endswith("patch_embed.proj.weight")), None)
    if "backbone.0.body.layer1.0.conv1.weight" in state:
        bottleneck = "backbone.0.body.layer1.0.conv3.weight" in state
        name = RESNETS.get((_count(state, "backbone.0.body.layer3."), bottleneck))
        channels = [64 * 2**i * (4 if bottleneck else 1) for i in range(4)]
    elif stem is not None:
        table = next(value for key, value in state.items() if key.endswith("relative_position_bias_table"))
        window = (round(len(table)**0.5) + 1) // 2
        name = next((name for name, shape in SWINS.items() if (shape[0], shape[3]) == (len(stem), window)), None)
        channels = [len(stem) * 2**i for i in range(4)]
    elif "backbone.0.downsample_layers.0.0.weight" in state:
        channels = [len(state[f"backbone.0.norm{i}.weight"]) for i in range(4)]
        blocks = _count(state, "backbone.0.stages.2.")
        name = next((name for name, (dims, depths, _) in CONVNEXTS.items()
                     if (list(dims), depths[2]) == (channels, blocks)), None)
    else:
        return {}
    read = [state[key].shape[1] for key in sorted(state) if re.fullmatch(r"input_proj\.(\d\.)?(0\.)?weight", key)
            and state[key].shape[2:] == (1, 1)]
    found = {"return_interm_indices": sorted(channels.index(c) for c in read if c in channels)}
    return found if name is None else found | {"backbone": name}


def _count(state: dict[str, Tensor], prefix: str) -> int:
    """Number of different entries after a prefix."""
    return len({key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)})
