"""Detectors by name."""
from collections.abc import Callable

from torch import nn

from models.build_deformable_detr import build_deformable_detr
from models.build_dino import build_dino
from models.build_sdetr import build_detr, build_lite_sdetr, build_sdetr
from models.criterion import SetCriterion
from util.config import Config
from util.errors import UserError, nearest
from util.options import Options, parse_options

MODELS: dict[str, Callable[[Options], tuple[nn.Module, SetCriterion, dict]]] = {
    "dino": build_dino,
    "deformable_detr": build_deformable_detr,
    "detr": build_detr,
    "sdetr": build_sdetr,
    "lite_sdetr": build_lite_sdetr,
}


def build_model(config: Config) -> tuple[nn.Module, SetCriterion, dict]:
    """The detector of a config, its criterion, and its post-processors {"bbox": ...}.

    Raises UserError for keys and values that make no model.
    """
    return build_detector(parse_options(config))


def build_detector(options: Options) -> tuple[nn.Module, SetCriterion, dict]:
    """The same from parsed options."""
    if options.modelname not in MODELS:
        raise UserError(f"modelname={options.modelname!r} is unknown.{nearest(options.modelname, MODELS)} "
                        f"Known: {', '.join(MODELS)}")
    if options.data.num_classes == "auto":
        raise UserError("num_classes='auto' takes the classes from a data set: pass --coco_path, or set a number")
    return MODELS[options.modelname](options)


def compile_parts(model: nn.Module, backend: str) -> None:
    """Compiles backbone, encoders and decoders in place, for images of any size."""
    for part, paths in model.PARTS.items():
        if part.startswith(("backbone", "encoder", "decoder")):
            for path in paths:
                model.get_submodule(path).compile(dynamic=True, backend=backend)
