"""Which change of a training helps, by runs in pairs: each recipe against the first one, seed by seed.

    python tools/compare_recipes.py -c CONFIG --data DIR --recipes FILE --seeds 5

FILE is YAML: {name: {config key: value, ...}, ...}. The first recipe is the baseline; `config: OTHER_CONFIG` in a
recipe replaces CONFIG for it. Each run is main.py in OUTPUT_DIR/NAME/seed_S. Finished runs are not repeated, and
interrupted ones go on where they stopped. recipes.md, recipes.json and recipes.png in OUTPUT_DIR are written anew after
each run. The exit code is 1 if a run failed.

Config files are code and are executed: use only those that you trust.
"""
import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from common import ROOT, add_device_flag, run_tool, tool_parser
from measure.model_cost import device_name
from recipe_file import Recipe, read_recipes
from recipe_runs import RecipeRun, Slots, plan, run_all
from reports.recipes import compare, format_report, numbers, read_run
from util.errors import UserError, nearest
from util.files import write_text
from util.outputs import keep_inputs
from util.run_folder import prepare_folder
from util.signals import StopRequest

MAIN = ROOT / "main.py"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = tool_parser(__doc__)
    add = parser.add_argument
    add("--config_file", "-c", help="config of the recipes that name none")
    add("--data", "--coco_path", metavar="DIR", help="the data set, as main.py takes it")
    add("--recipes", required=True, type=Path, metavar="FILE")
    add("--seeds", type=int, default=5, metavar="N", help="runs of each recipe, with seeds 0 to N - 1; default: 5")
    add("--output_dir", type=Path, default=Path("outputs/recipes"), help="default: %(default)s")
    add("--parallel", type=int, default=1, metavar="N", help="runs at a time, each on its share of the processors")
    add("--only", nargs="+", metavar="NAME", help="run these recipes only; the tables still have all that is finished")
    add_device_flag(parser)
    add("--amp", action="store_true", help="as main.py's")
    add("--pretrain_model_path", metavar="FILE|URL|NAME", help="as main.py's: all runs start from these weights")
    return parser.parse_args(argv)


def main_flags(args: argparse.Namespace) -> list[str]:
    """Flags of main.py that all runs share."""
    given = {"data": args.data and str(Path(args.data).absolute()), "device": args.device,
             "pretrain_model_path": args.pretrain_model_path}
    return [word for name, value in given.items() if value for word in (f"--{name}", value)] + ["--amp"] * args.amp


def report(args: argparse.Namespace, recipes: Sequence[Recipe], runs: Sequence[RecipeRun],
           failures: Mapping[str, str]) -> str:
    """Writes recipes.md, .json and .png on what has finished. Returns the text of the first."""
    from reports.recipe_plots import plot_recipes  # importing matplotlib takes a second

    finished = [run for run in runs if run.finished]
    results = compare({recipe.name: [read_run(run.folder, run.seed) for run in finished if run.recipe == recipe]
                       for recipe in recipes})
    circumstances = [run.circumstances() for run in finished]
    processors, versions = (sorted({str(made[key]) for made in circumstances}) for key in ("processors", "version"))
    about = {"device": device_name(torch.device(args.device)), "torch": torch.__version__,
             "command": shlex.join(["python", *sys.argv]), "parallel": args.parallel, "processors": processors,
             "versions": versions, "failed": list(failures)}
    notes = [f"{about['device']}, torch {torch.__version__}; {args.parallel} at a time; processors a run: "
             f"{', '.join(processors)}", f"program version: {', '.join(versions)}", f"`{about['command']}`",
             *(f"failed: {title}" for title in failures)]
    text = format_report(results, {recipe.name: recipe.text for recipe in recipes}, notes)
    write_text(args.output_dir / "recipes.md", text)
    write_text(args.output_dir / "recipes.json",
               json.dumps({"format": 1, "about": about, "recipes": numbers(results)}, indent=1, allow_nan=False) + "\n")
    plot_recipes(results, args.output_dir / "recipes.png")
    return text


def main(args: argparse.Namespace, program: Path = MAIN) -> int:
    """Returns the exit code."""
    if args.seeds < 1:
        raise UserError("--seeds must be at least 1")
    recipes = read_recipes(args.recipes, args.config_file)
    names = [recipe.name for recipe in recipes]
    for name in args.only or []:
        if name not in names:
            raise UserError(f"--only {name}: {args.recipes} has no such recipe.{nearest(name, names)}")
    slots = Slots(args.parallel)
    torch.set_num_threads(len(slots.free[0]))  # for the name of the machine: those of a run
    runs = plan(recipes, args.seeds, args.output_dir, main_flags(args))
    keep_inputs([args.output_dir], [Path(args.data)] if args.data else [])
    prepare_folder(args.output_dir)
    unfinished = [run for run in runs if not run.finished and (not args.only or run.recipe.name in args.only)]
    print(f"{len(unfinished)} of {len(runs)} runs to do", flush=True)
    failures: dict[str, str] = {}

    def ended(run: RecipeRun, failure: str | None) -> None:
        if failure:
            failures[run.title] = failure
            print(f"{run.title}: FAILED, {failure}", file=sys.stderr, flush=True)
        else:
            print(f"{run.title}: finished", flush=True)
            report(args, recipes, runs, failures)

    stop = StopRequest()
    run_all(unfinished, slots, program, stop, ended)
    print("\n" + report(args, recipes, runs, failures), flush=True)
    if stop.requested:
        print("stopped; the same command goes on from here", flush=True)
        return stop.exit_code
    return 1 if failures else 0


if __name__ == "__main__":
    run_tool(main, parse_args())
