"""The operators as nodes of OpenVINO models: the library that is built from src/openvino."""
from pathlib import Path
from typing import Any

from util.errors import UserError

LIBRARY = Path(__file__).parent / "build/openvino/lite_detr_openvino.so"
BUILD_COMMAND = "make operators-openvino"
DOMAIN = "lite_detr"  # of the nodes, KeyAwareDeformAttn and MSDeformAttn, in files of OpenVINO and in ONNX files


def available() -> bool:
    return LIBRARY.exists()


def add_nodes(core: Any, source: str) -> None:
    """Makes the nodes known to an openvino.Core. Raises UserError that names `source`, which needs them."""
    if not available():
        raise UserError(f"{source} needs the compiled operators for OpenVINO, which are not built: {BUILD_COMMAND}")
    try:
        core.add_extension(str(LIBRARY))
    except RuntimeError as error:
        raise UserError(f"{source} needs the compiled operators for OpenVINO, but {LIBRARY} cannot be loaded: build it "
                        f"again for this version of OpenVINO with: {BUILD_COMMAND} ({error})") from error
