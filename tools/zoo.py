"""Lists the weights that --resume, Predictor and torch.hub know by name: python tools/zoo.py [--download NAME ...]

Downloads lie in $LITE_DETR_CACHE, or else in torch's cache (TORCH_HOME).
"""
from common import run_tool, tool_parser
from util import zoo
from util.download import cache_folder
from util.errors import UserError
from util.logger import setup_logging
from util.markdown import table

COLUMNS = ["name", "config", "COCO's numbers, %", "measured by", "remark"]


def listing() -> str:
    """A Markdown table."""
    rows = [[f"`{entry.name}`", f"`{entry.config}`" + (" with options" if entry.options else ""),
             ", ".join(f"{name} {100 * value:.4g}" for name, value in entry.measured.items()), entry.measured_by,
             entry.note] for entry in zoo.entries().values()]
    return table(COLUMNS, rows, "l" * len(COLUMNS))


def main(names: list[str]) -> None:
    if not names:
        print(listing())
        print(f"\nAddresses and options: {zoo.ZOO}. Downloads lie in {cache_folder()}")
    found = {name: zoo.find(name) for name in names}
    for name, entry in found.items():
        if entry is None:
            raise UserError(zoo.unknown(name))
    for entry in filter(None, found.values()):
        print(f"{entry.name}: {zoo.weights_path(entry)}", flush=True)


if __name__ == "__main__":
    parser = tool_parser(__doc__)
    parser.add_argument("--download", nargs="+", default=[], metavar="NAME",
                        help="download these if they are not there")
    args = parser.parse_args()
    setup_logging(0)
    run_tool(main, args.download)
