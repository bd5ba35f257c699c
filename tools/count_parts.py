"""Parameters and GFLOPs of detectors by part, as a Markdown table: python tools/count_parts.py CONFIG ...

One image; a multiply-add counts as one. Only shapes are computed: it needs neither data nor
weights, and gives the same on any machine.
"""
import argparse
from pathlib import Path

from common import add_options_flag, add_size_flag, run_tool, tool_parser
from measure.model_cost import count_flops, count_part_parameters
from models import build_model
from util.config import load_config, parse_pairs
from util.markdown import table


def count_costs(config: str, options: dict, size: tuple[int, int]) -> dict[str, tuple[float, float]]:
    """Millions of parameters and GFLOPs of each part, of "other" if it is not empty, and last of "all"."""
    model = build_model(load_config(config, {"pretrained_backbone": False} | options))[0]
    parameters, flops = count_part_parameters(model), count_flops(model, size)
    parts = {part: (count / 1e6, flops[part]) for part, count in parameters.items()
             if part != "other" or count or flops[part] >= 0.05}
    return parts | {"all": (sum(parameters.values()) / 1e6, flops["total"])}


def parts_table(configs: dict[str, dict[str, tuple[float, float]]]) -> str:
    """One row per part and two columns per config."""
    parts = [part for part in dict.fromkeys(part for counts in configs.values() for part in counts) if part != "all"]
    columns = ["", *(column for name in configs for column in (f"{name}: M parameters", "GFLOPs"))]
    rows = []
    for part in [*parts, "all"]:
        counts = [config.get(part) for config in configs.values()]
        rows.append([part, *(cell for count in counts
                             for cell in ((f"{count[0]:.2f}", f"{count[1]:.1f}") if count else ("", "")))])
    return table(columns, rows, "l" + "rr" * len(configs))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = tool_parser(__doc__)
    parser.add_argument("configs", nargs="+", metavar="CONFIG")
    add_size_flag(parser)
    add_options_flag(parser)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    options = parse_pairs(args.options)
    print(parts_table({Path(config).stem: count_costs(config, options, tuple(args.size)) for config in args.configs}))


if __name__ == "__main__":
    run_tool(main, parse_args())
