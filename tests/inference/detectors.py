"""Small detectors with random weights in files, which find something in any image."""
import torch

from models import build_model
from util.config import Config, load_config

# Small detectors of all kinds: CONFIGS[name](tiny_dino, tiny_sdetr), with these fixtures, is the config.
CONFIGS = {
    "lite_dino": lambda dino, sdetr: dino(), "dino": lambda dino, sdetr: dino(num_expansion=None),
    "msda": lambda dino, sdetr: dino(key_aware=False),
    "h_detr": lambda dino, sdetr: load_config("config/DeformableDETR/h_r50_two_stage.py", {
        "pretrained_backbone": False, "backbone": "resnet18", "num_classes": 7, "num_queries": 20, "num_select": 20,
        "enc_layers": 2, "dec_layers": 2, "hidden_dim": 32, "nheads": 2, "dim_feedforward": 64}),
    "deformable_detr": lambda dino, sdetr: load_config("config/DeformableDETR/r50.py", {
        "pretrained_backbone": False, "backbone": "resnet18", "num_classes": 7, "num_queries": 20, "num_select": 20,
        "enc_layers": 2, "dec_layers": 2, "hidden_dim": 32, "nheads": 2, "dim_feedforward": 64}),
    "detr": lambda dino, sdetr: sdetr("detr_r50"), "sdetr": lambda dino, sdetr: sdetr("sdetr_r50"),
    "lite_sdetr": lambda dino, sdetr: sdetr("lite_sdetr_r50"),
}


@torch.no_grad()
def spread_scores(model):
    """Scores around 0.5, a tenth of them above 0.6; those of fresh heads are too low to count as detections."""
    for name, parameter in model.named_parameters():
        if "class_embed" in name:
            parameter.copy_(torch.randn_like(parameter) * 0.06 if parameter.dim() > 1 else torch.zeros(()))
        elif "sampling_offsets.weight" in name or "attention_weights.weight" in name:
            parameter.copy_(torch.randn_like(parameter) * 0.1)  # or all queries sample alike


def save_detector(config, folder, names=None):
    """The paths of weights and config, see spread_scores."""
    torch.manual_seed(0)
    model = build_model(config)[0]
    spread_scores(model)
    folder.mkdir(exist_ok=True)
    Config(config).dump(folder / "config.py")
    names = {i: f"thing {i}" for i in range(config["num_classes"])} if names is None else names
    torch.save({"model": model.state_dict(), "class_names": names}, folder / "weights.pth")
    return folder / "weights.pth", folder / "config.py"
