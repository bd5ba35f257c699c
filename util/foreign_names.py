"""State dicts of other programs under this project's names: detrex and transformers (DETR, Deformable DETR, DINO).

Pure renaming, but for three things: transformers keeps the projections of an attention apart that torch's has in one
matrix, detrex gives DINO's label embeddings no row for "no class", and numbers COCO's classes without gaps.
"""
import logging
import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from util.class_names import COCO_CLASSES, COCO_IDS

logger = logging.getLogger(__name__)
# Tensors with one row per class.
CLASS_TENSORS = re.compile(r"(class_embed(\.\d+)?\.(weight|bias)|label_enc\.weight)$")
Renaming = list[tuple[str, str | Callable[[re.Match], str]]]  # pattern and replacement, for re.sub, in this order
NEVER = -1000.0  # the logit of a class that does not occur

# detectron2's and transformers' ResNet in torchvision's names.
DETECTRON2_RESNET: Renaming = [
    (r"^backbone\.stem\.", "backbone.0.body."),
    (r"^backbone\.res(\d)\.", lambda found: f"backbone.0.body.layer{int(found[1]) - 1}."),
    (r"\.shortcut\.norm\.", ".downsample.1."), (r"\.shortcut\.", ".downsample.0."),
    (r"\.conv(\d)\.norm\.", r".bn\1."),
]
TRANSFORMERS_RESNET: Renaming = [
    (r"embedder\.embedder\.convolution\.", "conv1."), (r"embedder\.embedder\.normalization\.", "bn1."),
    (r"encoder\.stages\.(\d)\.layers\.", lambda found: f"layer{int(found[1]) + 1}."),
    (r"\.shortcut\.convolution\.", ".downsample.0."), (r"\.shortcut\.normalization\.", ".downsample.1."),
    (r"\.layer\.(\d)\.convolution\.", lambda found: f".conv{int(found[1]) + 1}."),
    (r"\.layer\.(\d)\.normalization\.", lambda found: f".bn{int(found[1]) + 1}."),
]
DETREX: Renaming = [
    (r"^backbone\.(?!0\.|1\.)", "backbone.0."), (r"^position_embedding\.", "backbone.1."),
    (r"^neck\.convs\.(\d)\.conv\.", r"input_proj.\1.0."), (r"^neck\.convs\.(\d)\.norm\.", r"input_proj.\1.1."),
    (r"^transformer\.level_embeds$", "transformer.level_embed"), (r"enc_outpout_norm", "enc_output_norm"),
    (r"^query_embedding\.", "query_embed."), (r"\.post_norm_layer\.", ".norm."),
    (r"\.ffns\.0\.layers\.0\.0\.", ".linear1."), (r"\.ffns\.0\.layers\.1\.", ".linear2."),
    (r"\.attentions\.0\.attn\.", ".self_attn."), (r"\.attentions\.1\.attn\.", ".multihead_attn."),
    (r"\.attentions\.0\.", ".self_attn."), (r"\.attentions\.1\.", ".cross_attn."),
]
TRANSFORMERS: Renaming = [
    (r"^model\.backbone\.(conv_encoder\.)?model\.", "backbone.0.body."),
    (r"^model\.backbone\.position_embedding\.row_embeddings\.", "backbone.1.row_embed."),
    (r"^model\.backbone\.position_embedding\.column_embeddings\.", "backbone.1.col_embed."),
    (r"^model\.input_projection\.", "input_proj."), (r"^model\.input_proj\.", "input_proj."),
    (r"^model\.query_position_embeddings\.", "query_embed."), (r"^class_labels_classifier\.", "class_embed."),
    (r"^bbox_predictor\.", "bbox_embed."), (r"^model\.", "transformer."),
    (r"\.decoder\.layernorm\.", ".decoder.norm."), (r"\.encoder\.layernorm\.", ".encoder.norm."),
    (r"\.(mlp\.)?fc([12])\.", r".linear\2."), (r"\.(self_attn|encoder_attn)\.o_proj\.", r".\1.out_proj."),
]
# Each origin's norms of a layer by what comes before them: this project's decoders number them in two orders.
_DETREX_NORMS = {"norms.0.": "self", "norms.1.": "cross", "norms.2.": "last"}
_TRANSFORMERS_NORMS = {"self_attn_layer_norm.": "self", "encoder_attn_layer_norm.": "cross",
                       "final_layer_norm.": "last"}


def origin(state: Mapping[str, Tensor]) -> str:
    """"detrex", "transformers", or "" for the published names and this project's own."""
    layers = r"\.(encoder|decoder)\.layers\.\d+\."
    if any(re.match(rf"transformer{layers}attentions\.0\.", key) for key in state):
        return "detrex"
    if any(re.match(rf"model{layers}self_attn_layer_norm\.", key) for key in state):
        return "transformers"
    return ""


def in_our_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a detector of detrex or transformers under this project's names; others as they are."""
    known = {"detrex": _from_detrex, "transformers": _from_transformers}.get(origin(state))
    return dict(state) if known is None else known(state)


def uses_contiguous_classes(state: Mapping[str, Tensor]) -> bool:
    """Whether these are detrex's names with as many classes as COCO has: 80, without the gaps between its ids."""
    heads = [value for key, value in state.items() if re.fullmatch(r"class_embed(\.0)?\.bias", key)]
    return origin(state) == "detrex" and len(heads) == 1 and len(heads[0]) in (len(COCO_IDS), len(COCO_IDS) + 1)


def _from_detrex(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    by_category = uses_contiguous_classes(state)
    deformable = any(".sampling_offsets." in key for key in state)
    levels = len({key.split(".")[2] for key in state if key.startswith("neck.convs.")})
    renamed = {}
    for key, value in state.items():
        if key.startswith("neck.extra_convs."):
            number, part, rest = key.removeprefix("neck.extra_convs.").split(".", 2)
            key = f"input_proj.{levels + int(number)}.{'0' if part == 'conv' else '1'}.{rest}"
        key = _renamed(_with_norms(key, _DETREX_NORMS, deformable), [*DETECTRON2_RESNET, *DETREX])
        renamed[key] = value
    dino = "label_enc.weight" in renamed
    if by_category:
        logger.info("%d classes under detrex's names are taken for COCO's: each goes to its category id", len(COCO_IDS))
        renamed = {key: _by_category(key, value) for key, value in renamed.items()}
    if dino:
        label_enc = renamed["label_enc.weight"]
        renamed["label_enc.weight"] = torch.cat([label_enc, label_enc.new_zeros(1, label_enc.shape[1])])
        renamed = _with_proposal_heads(renamed)
    return renamed


def _by_category(key: str, value: Tensor) -> Tensor:
    """The rows of COCO's classes at their category ids. A last row for "no object" stays the last."""
    if not CLASS_TENSORS.search(key):
        return value
    rows = value.new_full((len(COCO_CLASSES), *value.shape[1:]), NEVER if key.endswith("bias") else 0.0)
    rows[COCO_IDS] = value[:len(COCO_IDS)]
    return torch.cat([rows, value[len(COCO_IDS):]])


def _with_proposal_heads(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """detrex's DINO counts the heads of the encoder's proposals as those of one more decoder layer."""
    layers = len({key.split(".")[3] for key in state if key.startswith("transformer.decoder.layers.")})
    result = {}
    for key, value in state.items():
        for kind in ("bbox_embed", "class_embed"):
            if key.startswith(f"{kind}.{layers}."):
                key = f"transformer.enc_out_{kind}." + key.removeprefix(f"{kind}.{layers}.")
        if not re.match(rf"transformer\.decoder\.(bbox|class)_embed\.{layers}\.", key):
            result[key] = value
    return result


def _from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    deformable = any(".sampling_offsets." in key for key in state)
    renamed: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        key = _renamed(_with_norms(key, _TRANSFORMERS_NORMS, deformable), TRANSFORMERS)
        if key.startswith("backbone.0.body."):
            key = _renamed(key, TRANSFORMERS_RESNET)
        key = key.replace(".encoder_attn.", ".cross_attn." if deformable else ".multihead_attn.")
        projection = re.fullmatch(r"(.*)\.([qkv])_proj\.(weight|bias)", key)
        if projection:
            parts.setdefault(f"{projection[1]}.in_proj_{projection[3]}", {})[projection[2]] = value
        else:
            renamed[key] = value
    for key, projections in parts.items():
        if projections.keys() == set("qkv"):
            renamed[key] = torch.cat([projections[name] for name in "qkv"])
    return _with_all_heads(renamed) if deformable else renamed


def _with_all_heads(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The heads of Deformable DETR under all their names, of which its decoder has some where it refines boxes. A file
    of transformers has a shared tensor once: as the decoder's, or as the first layer's."""
    prefix = "transformer.decoder."
    refines = any(key.startswith(f"{prefix}bbox_embed.") for key in state)
    two_stage = "transformer.pos_trans.weight" in state
    count = len({key.split(".")[3] for key in state if key.startswith(f"{prefix}layers.")}) + two_stage
    kinds = {"bbox_embed": refines, "class_embed": two_stage}  # and whether the decoder has them
    heads = {key.removeprefix(prefix): value for key, value in state.items()
             if key.removeprefix(prefix).startswith(tuple(f"{kind}." for kind in kinds))}
    result = {key: value for key, value in state.items() if key.removeprefix(prefix) not in heads}
    for kind, in_decoder in kinds.items():
        own = {key: value for key, value in heads.items() if key.startswith(f"{kind}.")}
        if all(key.startswith(f"{kind}.0.") for key in own):
            own = {key.replace(".0.", f".{i}.", 1): value for i in range(count) for key, value in own.items()}
        result |= own | ({prefix + key: value for key, value in own.items()} if in_decoder else {})
    return result


def _with_norms(key: str, norms: Mapping[str, str], deformable: bool) -> str:
    """The norms of encoder and decoder layers in this project's numbers."""
    found = re.match(r"(.*(encoder|decoder)\.layers\.\d+\.)(.*)", key)
    name = next((name for name in norms if found and found[3].startswith(name)), None)
    if found is None or name is None:
        return key
    order = ["self", "last"] if found[2] == "encoder" else ["cross", "self", "last"] if deformable else [
        "self", "cross", "last"]
    # detrex numbers the norms of an encoder layer too, which has no second attention.
    place = "last" if found[2] == "encoder" and norms[name] == "cross" else norms[name]
    return f"{found[1]}norm{order.index(place) + 1}.{found[3].removeprefix(name)}"


def _renamed(key: str, renaming: Renaming) -> str:
    for pattern, replacement in renaming:
        key = re.sub(pattern, replacement, key)
    return key
