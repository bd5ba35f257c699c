"""Opens a page in the browser that shows what a detector finds: python tools/app.py WEIGHTS

WEIGHTS is a checkpoint, a file of tools/export_weights.py, the name of a released model (python tools/zoo.py lists
them), or an exported file (.onnx, .xml, .pt2). Drop images or a video on the page, or use the camera; a click on a box
shows where its query sampled. Only this computer can open the page, unless --host says otherwise. It needs no network,
and keeps what it receives in a temporary folder, which is removed at the end.
"""
import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path

from common import add_detector_device_flag, add_options_flag, run_tool, tool_parser
from util.errors import UserError


def main(args: argparse.Namespace) -> None:
    if not 0 <= args.score <= 1:
        raise UserError(f"--score {args.score} must be from 0 to 1")
    if not 1 <= args.port <= 65535:
        raise UserError(f"--port {args.port} must be from 1 to 65535")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the folder is removed then too
    with tempfile.TemporaryDirectory(prefix="lite_detr_page_") as folder:
        settle_gradio(folder, args.host)
        try:
            import gradio  # noqa: F401 - it reads these settings when it is imported
        except ImportError as error:
            raise UserError("the page needs the package gradio: pip install gradio") from error
        from inference.page.layout import build_page, serve
        from inference.page.shared import SharedDetector
        from inference.predictor import Predictor, default_device

        predictor = Predictor(args.weights, args.config_file, options=args.options,
                              device=args.device or default_device(args.weights))
        serve(build_page(SharedDetector(predictor), Path(args.weights).stem, args.score), args.host, args.port)


def settle_gradio(folder: str, host: str) -> None:
    """Files go to the folder, nothing is reported to gradio's makers, and no proxy stands before this computer."""
    os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "localhost", "127.0.0.1", host]))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = tool_parser(__doc__)
    parser.add_argument("weights", metavar="WEIGHTS")
    parser.add_argument("--config_file", "-c", help="the config of weights that carry none")
    add_options_flag(parser)
    parser.add_argument("--score", type=float, default=0.3, help="threshold at the start; default: %(default)s")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other computers open the page; default: "
                        "%(default)s")
    parser.add_argument("--port", type=int, default=7860, help="default: %(default)s")
    add_detector_device_flag(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_tool(main, parse_args())
