"""Which detector is in a checkpoint, and which config and options load it: from names and shapes of its tensors alone.

    python tools/inspect_checkpoint.py CKPT
    python tools/inspect_checkpoint.py CKPT --coco_path DIR [--images N]

A wrong `enc_scale` loads without complaint and evaluates to an AP near 0. With --coco_path every possible one is tried
on the first N val images, and they are ranked by AP.
"""
import argparse
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common import ROOT, add_device_flag, run_tool, tool_parser
from datasets.coco import CocoDetection
from datasets.coco_eval import CocoEvaluator
from datasets.loaders import eval_loader
from datasets.transforms import val_transforms
from engine import evaluate
from models import build_model
from models.backbones.swin import SWINS
from models.encoders.interleaved import InterleavedEncoder
from util.checkpoint import load_weights, model_state, our_name, read_checkpoint
from util.config import Config, load_config
from util.errors import UserError
from util.options import GROUPS, Options, parse_options

RESNETS = {(2, False): "resnet18", (6, False): "resnet34", (6, True): "resnet50", (23, True): "resnet101"}
USUAL_HEADS = 8  # no shape tells them
ONE_TO_MANY = 1500  # of H-DETR's queries, in all released checkpoints
TITLES = {"dino": "DINO", "deformable_detr": "Deformable DETR", "detr": "DETR", "sdetr": "SDETR",
          "lite_sdetr": "Lite-SDETR"}


def describe(state: dict[str, Tensor]) -> dict[str, Any]:
    """Config keys of the model whose published or own state dict this is, as far as names and shapes tell them.

    Raises UserError if it is none of the detectors here.
    """
    state = {our_name(key): value for key, value in state.items()}
    if "label_enc.weight" in state:
        found = _dino(state)
    elif {"transformer.reference_points.weight", "transformer.pos_trans.weight"} & set(state):
        found = _deformable_detr(state)
    elif "class_embed.weight" in state and any(".multihead_attn." in key for key in state):
        found = _stacked(state)
    else:
        raise UserError(f"the checkpoint is of no detector that is known here; names in it are {sorted(state)[:5]}")
    return found | _backbone(state)


def _dino(state: dict[str, Tensor]) -> dict[str, Any]:
    queries = state.get("transformer.tgt_embed.weight")
    found = {"modelname": "dino", "embed_init_tgt": queries is not None} | _deformable_transformer(state)
    if queries is not None:
        found["num_queries"] = len(queries)
    return found | {"dn_labelbook_size": len(state["label_enc.weight"]) - 1}


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
    encoder = "transformer.encoder.layers."
    found = {"num_classes": len(state["class_embed.0.weight"]), "hidden_dim": dim, "num_feature_levels": levels,
             "nheads": USUAL_HEADS, "dim_feedforward": len(state[f"{encoder}0.linear1.weight"]),
             "enc_layers": _count(state, encoder), "dec_layers": _count(state, "transformer.decoder.layers."),
             "dec_n_points": _points(state, "transformer.decoder.layers.0.cross_attn.", levels)[0]}
    return found | _deformable_encoder(state, encoder, levels)


def _deformable_encoder(state: dict[str, Tensor], prefix: str, levels: int) -> dict[str, Any]:
    attention = f"{prefix}0.self_attn."
    points, same_loc = _points(state, attention, levels)
    # A layer with the small feed-forward ends each block.
    blocks = sum(f"{prefix}{i}.linear12.weight" in state for i in range(_count(state, prefix)))
    return {"num_expansion": blocks or None, "enc_n_points": points, "same_loc": same_loc,
            "key_aware": f"{attention}attention_weights.weight" not in state,
            "proj_key": f"{attention}key_proj.weight" in state}


def _points(state: dict[str, Tensor], prefix: str, levels: int) -> tuple[int, bool]:
    """Sampling points a level and head, and whether all heads share them."""
    pairs = len(state[f"{prefix}sampling_offsets.weight"]) // (2 * levels)  # points times location heads
    weights = state.get(f"{prefix}attention_weights.weight")
    same_loc = pairs < USUAL_HEADS if weights is None else pairs < len(weights) // levels
    return (pairs, True) if same_loc else (max(pairs // USUAL_HEADS, 1), False)


def _stacked(state: dict[str, Tensor]) -> dict[str, Any]:
    stages = _count(state, "stages.")
    prefixes = [f"stages.{i}." for i in range(stages)] or ["transformer."]
    queries = state["query_embed.0.weight" if stages else "query_embed.weight"]
    depth = {"dec_layers": [_count(state, f"{prefix}decoder.layers.") for prefix in prefixes]}
    found = {"modelname": "sdetr" if stages else "detr", "num_classes": len(state["class_embed.weight"]) - 1,
             "hidden_dim": queries.shape[1], "num_queries": len(queries),
             "dim_feedforward": len(state[f"{prefixes[0]}decoder.layers.0.linear1.weight"])}
    if "level_embed" in state:
        levels = len(state["level_embed"])
        found |= {"modelname": "lite_sdetr", "num_feature_levels": levels,
                  "enc_layers": _count(state, "encoder.layers.")}
        found |= _deformable_encoder(state, "encoder.layers.", levels)
    else:
        depth["enc_layers"] = [_count(state, f"{prefix}encoder.layers.") for prefix in prefixes]
    return found | {key: counts if stages else counts[0] for key, counts in depth.items()}


def _backbone(state: dict[str, Tensor]) -> dict[str, Any]:
    """The name, and which stages the projections read; {} for one that names do not tell (timm's)."""
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
    else:
        return {}
    read = [state[key].shape[1] for key in sorted(state) if re.fullmatch(r"input_proj\.(\d\.)?(0\.)?weight", key)
            and state[key].shape[2:] == (1, 1)]
    found = {"return_interm_indices": sorted(channels.index(c) for c in read if c in channels)}
    return found if name is None else found | {"backbone": name}


def _count(state: dict[str, Tensor], prefix: str) -> int:
    """How many numbered entries follow a prefix."""
    return len({key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)})


def flat(options: Options) -> dict[str, Any]:
    """Every key with its value; a label book that follows the classes has their number."""
    keys = {"modelname": options.modelname}
    for group in GROUPS:
        keys |= vars(getattr(options, group))
    if keys["dn_labelbook_size"] is None:
        keys["dn_labelbook_size"] = keys["num_classes"]
    return keys


def choose_config(found: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """The shipped config that needs the fewest options to agree with what was found, and these options."""
    best: tuple[Path, dict[str, Any]] | None = None
    for path in sorted((ROOT / "config").glob("*/*.py")):
        if load_config(path).get("modelname") != found["modelname"]:
            continue
        options: dict[str, Any] = {}
        for _ in range(2):  # key_aware=None follows from num_expansion
            have = flat(parse_options(load_config(path, options)))
            options |= {key: value for key, value in found.items() if have[key] != value}
        if found.get("num_expansion") and have["enc_scale"] >= found["num_feature_levels"]:
            options["enc_scale"] = found["num_feature_levels"] - 1  # a first guess: low-level tokens there must be
        if best is None or len(options) < len(best[1]):
            best = path, options
    return best


def undecided(model: nn.Module, found: dict[str, Any]) -> list[str]:
    """What names and shapes do not tell about this model."""
    lines = ["nheads: 8 is usual; a wrong number loads without complaint"]
    encoder = _interleaved(model)
    if encoder is not None:
        lines.append(f"enc_scale: from 1 to {found['num_feature_levels'] - 1}; --coco_path DIR tries them")
    if found.get("key_aware") and encoder is None:
        lines.append("num_expansion: small_expand=False leaves no trace of the blocks")
    if found.get("with_box_refine"):
        lines.append("look_forward_twice: matters in training alone")
    if found.get("two_stage") and "num_queries" not in found:
        lines.append("num_queries: the queries are made from proposals, 300 is usual")
    if "backbone" not in found:
        lines.append("backbone: its names are timm's; set backbone=timm:NAME")
    if str(found.get("backbone", "")).startswith("resnet"):
        lines.append("dilation: the same weights serve both")
    return lines


def _interleaved(model: nn.Module) -> InterleavedEncoder | None:
    return next((m for m in model.modules() if isinstance(m, InterleavedEncoder)), None)


def rank_scales(model: nn.Module, postprocess: nn.Module, options: Options, coco_path: str, images: int,
                device: torch.device) -> list[tuple[float, int]]:
    """AP and enc_scale of all that are possible, best first, on the first val images."""
    encoder = _interleaved(model)
    dataset = CocoDetection(coco_path, "val", val_transforms(options.data, False))
    ranking = []
    for scale in range(1, options.transformer.num_feature_levels):
        encoder.enc_scale = scale
        evaluator = CocoEvaluator(dataset.coco)
        evaluate(model, None, postprocess, eval_loader(dataset, 1, 0), evaluator, device, max_batches=images)
        ranking.append((evaluator.summarize()[0], scale))
    return sorted(ranking, reverse=True)


def main(args: argparse.Namespace) -> int:
    """Returns the exit code: 1 if the weights do not load."""
    checkpoint = read_checkpoint(args.checkpoint)
    found = describe(model_state(checkpoint))
    path, options = choose_config(found)
    lite = "Lite " if found.get("num_expansion") and found["modelname"] != "lite_sdetr" else ""
    print(f"{lite}{TITLES[found['modelname']]}, backbone {found.get('backbone', 'unknown')}")
    for key, value in found.items():
        print(f"  {key} = {value!r}")
    print(f"\nload it with\n  {_arguments(path, options)}")

    config: Config = load_config(path, options | {"pretrained_backbone": False})
    model, _, post = build_model(config)
    print("\nnames and shapes do not tell\n  " + "\n  ".join(undecided(model, found)))
    try:
        load_weights(model, checkpoint)
    except UserError as error:
        print(f"\nthese options do not load it: {error}")
        return 1
    print("\nthe weights load with these options")
    if args.coco_path and _interleaved(model) is not None:
        ranking = rank_scales(model.to(args.device), post["bbox"], parse_options(config), args.coco_path, args.images,
                              torch.device(args.device))
        print(f"\nAP on {args.images} val images")
        for ap, scale in ranking:
            print(f"  enc_scale={scale}  {ap:.3f}")
        print(f"\nload it with\n  {_arguments(path, options | {'enc_scale': ranking[0][1]})}")
    return 0


def _arguments(path: Path, options: dict[str, Any]) -> str:
    """For main.py."""
    pairs = [f"{key}={str(value).replace(' ', '')}" for key, value in options.items()]
    return " ".join([f"-c {path.relative_to(ROOT)}", *(["--options", *pairs] if pairs else [])])


if __name__ == "__main__":
    parser = tool_parser(__doc__)
    parser.add_argument("checkpoint", metavar="CKPT", help="a file or an https address")
    parser.add_argument("--coco_path", metavar="DIR", help="try what shapes do not tell on val images of this data set")
    parser.add_argument("--images", type=int, default=50, help="how many val images")
    add_device_flag(parser)
    run_tool(main, parser.parse_args())
