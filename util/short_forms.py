"""Short forms of config keys, all but one flags of the published main.py files; and those that are refused."""
import argparse

# flag: what it stands for in --options; with {} it takes a value, with [{}] one or more
SHORT_FORMS: dict[str, str] = {
    "val_fraction": "val_fraction={}",  # of this project
    # DETR and SDETR
    "lr": "lr={}", "lr_backbone": "lr_backbone={}", "batch_size": "batch_size={}", "weight_decay": "weight_decay={}",
    "epochs": "epochs={}", "lr_drop": "lr_drop={}", "clip_max_norm": "clip_max_norm={}",
    "backbone": "backbone={}", "dilation": "dilation=True", "position_embedding": "position_embedding={}",
    "enc_layers": "enc_layers={}", "dec_layers": "dec_layers={}", "dim_feedforward": "dim_feedforward={}",
    "hidden_dim": "hidden_dim={}", "dropout": "dropout={}", "nheads": "nheads={}", "num_queries": "num_queries={}",
    "pre_norm": "pre_norm=True", "no_aux_loss": "aux_loss=False",
    "set_cost_class": "set_cost_class={}", "set_cost_bbox": "set_cost_bbox={}", "set_cost_giou": "set_cost_giou={}",
    "bbox_loss_coef": "bbox_loss_coef={}", "giou_loss_coef": "giou_loss_coef={}", "eos_coef": "eos_coef={}",
    # Deformable DETR
    "lr_backbone_names": "lr_backbone_names=[{}]", "lr_linear_proj_names": "lr_linear_proj_names=[{}]",
    "lr_linear_proj_mult": "lr_linear_proj_mult={}", "lr_drop_epochs": "multi_step_lr=True lr_drop_list=[{}]",
    "with_box_refine": "with_box_refine=True", "two_stage": "two_stage=True",
    "num_feature_levels": "num_feature_levels={}", "dec_n_points": "dec_n_points={}", "enc_n_points": "enc_n_points={}",
    "cls_loss_coef": "cls_loss_coef={}", "focal_alpha": "focal_alpha={}",
    # H-DETR
    "pretrained_backbone_path": "backbone_dir={}", "drop_path_rate": "drop_path_rate={}",
    "num_queries_one2one": "num_queries={}", "num_queries_one2many": "num_queries_one2many={}",
    "mixed_selection": "mixed_selection=True", "look_forward_twice": "look_forward_twice=True",
    "k_one2many": "k_one2many={}", "lambda_one2many": "lambda_one2many={}", "topk": "num_select={}",
    "use_fp16": "amp=cuda amp_dtype=float16", "use_checkpoint": "use_checkpoint=True deformable_use_checkpoint=True",
}
_MASKS = "segmentation is not built here: the detectors find boxes"
_SCALES = "evaluation at several scales is not built here; config key eval_size_factor changes the one scale"
# flag: why it is refused
REFUSED: dict[str, str] = {
    "masks": _MASKS, "frozen_weights": _MASKS, "mask_loss_coef": _MASKS, "dice_loss_coef": _MASKS,
    "coco_panoptic_path": _MASKS,
    "remove_difficult": "the published code never reads it, and COCO has no such mark; leave it out",
    "sgd": "the optimizer is AdamW, as in all results of the papers",
    "position_embedding_scale": "the published code never reads it: the scale is 2 pi; leave it out",
    "cache_mode": "images are read when they are needed, and the operating system keeps files in memory; leave it out",
    "eval_in_training_set": "--eval evaluates val2017: give it a folder whose val2017 holds the training images",
    "use_wandb": "it is written --logger wandb here",
    "mstest": _SCALES, "mstest-with-h-flip": _SCALES, "vote_threshold": _SCALES,
}


def add_short_forms(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("short forms of config keys; --options comes after them and wins")
    for flag, pairs in SHORT_FORMS.items():
        takes: dict = {"action": "store_const", "const": True}
        if "{}" in pairs:
            takes = {"metavar": "VALUE"} | ({"nargs": "+"} if "[{}]" in pairs else {})
        group.add_argument(f"--{flag}", help=f"--options {pairs.format('VALUE')}", **takes)


def expand_short_forms(args: argparse.Namespace) -> list[str]:
    """The key=value pairs that the given flags stand for."""
    pairs = []
    for flag, form in SHORT_FORMS.items():
        value = getattr(args, flag)
        if value is not None:
            text = ",".join(value) if isinstance(value, list) else value
            pairs += [pair.format(text) for pair in form.split()]
    return pairs


def dataset_file(name: str) -> str:
    """The value of --dataset_file, which can only be "coco"."""
    if name != "coco":
        raise argparse.ArgumentTypeError(f"{name!r} is not read here: boxes in COCO's format are"
                                         + (", segmentation is not built" if "panoptic" in name else ""))
    return name


def refusal(argument: str) -> str | None:
    """Why a flag of the published code is not taken; None for any other argument."""
    return REFUSED.get(argument.removeprefix("--").partition("=")[0])
