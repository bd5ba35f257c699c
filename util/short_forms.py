"""The flags of DETR's command line, as short forms of config keys."""
import argparse

# flag: what it stands for in --options; with {} it takes a value
SHORT_FORMS: dict[str, str] = {
    "lr": "lr={}", "lr_backbone": "lr_backbone={}", "batch_size": "batch_size={}", "weight_decay": "weight_decay={}",
    "epochs": "epochs={}", "lr_drop": "lr_drop={}", "clip_max_norm": "clip_max_norm={}",
    "backbone": "backbone={}", "dilation": "dilation=True", "position_embedding": "position_embedding={}",
    "enc_layers": "enc_layers={}", "dec_layers": "dec_layers={}", "dim_feedforward": "dim_feedforward={}",
    "hidden_dim": "hidden_dim={}", "dropout": "dropout={}", "nheads": "nheads={}", "num_queries": "num_queries={}",
    "pre_norm": "pre_norm=True", "no_aux_loss": "aux_loss=False",
    "set_cost_class": "set_cost_class={}", "set_cost_bbox": "set_cost_bbox={}", "set_cost_giou": "set_cost_giou={}",
    "bbox_loss_coef": "bbox_loss_coef={}", "giou_loss_coef": "giou_loss_coef={}", "eos_coef": "eos_coef={}",
}


def add_short_forms(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("short forms of config keys; --options comes after them and wins")
    for flag, pair in SHORT_FORMS.items():
        takes = {"metavar": "VALUE"} if "{}" in pair else {"action": "store_const", "const": True}
        group.add_argument(f"--{flag}", help=f"--options {pair.format('VALUE')}", **takes)


def expand_short_forms(args: argparse.Namespace) -> list[str]:
    """The key=value pairs that the given flags stand for."""
    given = {flag: getattr(args, flag) for flag in SHORT_FORMS}
    return [SHORT_FORMS[flag].format(value) for flag, value in given.items() if value is not None]
