"""What every tool needs: importing this module puts the project on the path and lets the console take any letter."""
import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from util.console import escape_unknown_letters  # noqa: E402 - the lines above make it importable
from util.program import run_program as run_tool  # noqa: E402, F401

escape_unknown_letters()  # here, because --help writes before run_tool is called


def tool_parser(description: str | None, epilog: str | None = None) -> argparse.ArgumentParser:
    """A parser whose --help shows the tool's docstring as it is written."""
    return argparse.ArgumentParser(description=description, epilog=epilog,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)


def add_device_flag(parser: argparse.ArgumentParser) -> None:
    import torch  # here, because tools/gpu_report.py runs without it

    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu",
                        help="cuda, cuda:N or cpu; default here: %(default)s")


def add_detector_device_flag(parser: argparse.ArgumentParser) -> None:
    """Of a program that takes exported files too: None stands for inference.predictor.default_device."""
    parser.add_argument("--device", help="cuda, cuda:N or cpu; default: cuda where there is a GPU and the detector "
                        "runs on it, which most exported files do not")


def add_options_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="override config keys")


def add_size_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", nargs=2, type=int, default=(800, 1066), metavar=("H", "W"),
                        help="image height and width in pixels; default: 800 1066")


def add_detector_flags(parser: argparse.ArgumentParser) -> None:
    """Config, weights and options of a trained detector."""
    parser.add_argument("--config_file", "-c", help="config file, where the weights carry no config")
    parser.add_argument("--weights", "--resume", dest="resume", required=True, metavar="NAME|FILE|URL",
                        help="the detector's weights, or a file exported from them")
    add_options_flag(parser)
