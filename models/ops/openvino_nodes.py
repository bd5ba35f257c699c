"""OpenVINO, and the operators as nodes of its models: the library that is built from src/openvino."""
import functools
from pathlib import Path
from typing import Any

from util.errors import UserError
from util.optional import require

LIBRARY = Path(__file__).parent / "build/openvino/lite_detr_openvino.so"
BUILD_COMMAND = "make operators-openvino"
DOMAIN = "lite_detr"  # of the nodes, KeyAwareDeformAttn and MSDeformAttn, in files of OpenVINO and in ONNX files


def available() -> bool:
    return LIBRARY.exists()


@functools.cache
def shared_core() -> Any:
    """The openvino.Core of this process. There is one, and it lives as long as the process: the CPU plugin of each Core
    gives the thread a stack for signals and takes it away with itself, and where two do that in the order in which they
    came, the thread keeps one that is gone (OpenVINO 2026.4). The next signal then writes over whatever lies there by
    now."""
    require("openvino")
    import openvino

    return openvino.Core()


def add_nodes(core: Any, source: str) -> None:
    """Makes the nodes known to an openvino.Core. Raises UserError that names `source`, which needs them."""
    if not available():
        raise UserError(f"{source} needs the compiled operators for OpenVINO, which are not built: {BUILD_COMMAND}")
    try:
        core.add_extension(str(LIBRARY))
    except RuntimeError as error:
        raise UserError(f"{source} needs the compiled operators for OpenVINO, but {LIBRARY} cannot be loaded: build it "
                        f"again for this version of OpenVINO with: {BUILD_COMMAND} ({error})") from error
