"""Entry points of torch.hub: one for each detector of config/zoo.json, and `predictor`.

    model = torch.hub.load(REPO, "lite_dino_r50_h3l1_2p1x3")        # a module in evaluation mode, with its weights
    predictor = torch.hub.load(REPO, "predictor", "bccd_lite_dino")
    for found in predictor("street.jpg"): ...

REPO is an address such as "OWNER/NAME", or a folder with source="local".
"""
import sys as _sys
from pathlib import Path as _Path
from typing import Any as _Any

dependencies = ["torch", "torchvision", "safetensors", "timm", "addict", "yapf", "filelock", "pycocotools", "scipy"]
_ROOT = str(_Path(__file__).resolve().parent)


def _refuse_namesakes() -> None:
    """The project's packages have short names, which another library may have taken in this process."""
    for name in ("datasets", "inference", "models", "util"):
        place = getattr(_sys.modules.get(name), "__file__", None)
        if place and not _Path(place).is_relative_to(_ROOT):
            raise ImportError(f"{place} is imported as {name!r}, which is a package of this project too: call "
                              "torch.hub.load before that import, or in a process of its own")


_refuse_namesakes()
if _ROOT not in _sys.path:  # torch.hub takes it out again, and some modules are imported when they are used
    _sys.path.append(_ROOT)

from inference.predictor import Predictor as _Predictor  # noqa: E402 - the lines above make it importable
from models import build_detector as _build_detector  # noqa: E402
from models.detector import Detector as _Detector  # noqa: E402
from util import zoo as _zoo  # noqa: E402
from util.checkpoint import load_weights as _load_weights  # noqa: E402
from util.config import load_config as _load_config  # noqa: E402
from util.options import parse_options as _parse_options  # noqa: E402


def predictor(name: str, **options: _Any) -> _Predictor:
    """inference.predictor.Predictor for weights by name, a file or an address; options: its further arguments, such as
    device="cuda"."""
    return _Predictor(name, **options)


def _entry_point(entry: _zoo.Entry) -> _Any:
    def build(pretrained: bool = True, **options: _Any) -> _Detector:
        config = _load_config(entry.config_file, {**entry.options, **options})
        model = _build_detector(_parse_options(config).replaced(pretrained_backbone=False))[0]
        if pretrained:
            _load_weights(model, _zoo.weights_path(entry))
        return model.eval()

    build.__name__ = build.__qualname__ = entry.name
    measured = ", ".join(f"{key} {100 * value:.1f}" for key, value in entry.measured.items())
    build.__doc__ = (f"The detector of {entry.config}; {measured} ({entry.measured_by}). {entry.note}\n\n"
                     "pretrained: with its weights, else with random ones. options: config keys.\n"
                     "Takes a list of images [3, H, W], normalised as datasets.transforms does.")
    return build


globals().update({name: _entry_point(entry) for name, entry in _zoo.entries().items()})
