"""Detectors by name."""
from collections.abc import Callable

from models.compiled import require_compiler
from models.deformable_detr import build_deformable_detr
from models.detector import Detector
from models.detr import build_detr
from models.dino import build_dino
from models.parts import Built
from models.registry import choose
from models.sdetr import build_lite_sdetr, build_sdetr
from util.config import Config
from util.options import Options, parse_options

MODELS: dict[str, Callable[[Options], Built]] = {
    "dino": build_dino,
    "deformable_detr": build_deformable_detr,
    "detr": build_detr,
    "sdetr": build_sdetr,
    "lite_sdetr": build_lite_sdetr,
}


def build_model(config: Config) -> Built:
    """The detector of a config, its criterion, and its post-processors {"bbox": ...}.

    Raises UserError for keys and values that make no model.
    """
    return build_detector(parse_options(config))


def build_detector(options: Options) -> Built:
    """The same from parsed options."""
    return choose(MODELS, "modelname", options.modelname)(options)


def compile_parts(model: Detector, backend: str) -> None:
    """Compiles backbone, encoders and decoders in place, for images of any size. Raises UserError for a backend that
    torch does not have.
    """
    require_compiler(backend)
    for part, paths in model.parts().items():
        if part.startswith(("backbone", "encoder", "decoder")):
            for path in paths:
                model.get_submodule(path).compile(dynamic=True, backend=backend)
