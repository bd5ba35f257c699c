"""What runs of several recipes say: the tables of tools/compare_recipes.py, from the logs of the runs."""
import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reports.curves import read_log
from reports.paired import CONFIDENCE, ENOUGH, PairedDifference, paired_difference
from util.errors import UserError
from util.finished_epoch import AP, logged_ap
from util.markdown import table, three_digits

LEGEND = """\
AP and AP50 [%] on val: means over the seeds, of the last evaluation, which is what is compared; the best one is chosen
by val, and too good by luck. AP minus {base}'s: the mean over the seeds that have finished with both, and its interval
of {confidence:.0%} confidence (Student's t, in pairs of one seed). "better" and "worse" are those whose interval leaves
out 0; with fewer than {enough} seeds nothing is decided. Of 20 changes that do nothing, one gets such a verdict by
chance. s/step: median over the epochs, mean over the seeds; MB: the largest peak; hours: mean, with evaluations."""
TIMES = "hours to {base}'s AP: until the first evaluation at which the mean AP is at least {base}'s last one."


@dataclass(frozen=True)
class Evaluated:
    """An evaluation during a training. seconds: since the training began, without interruptions. AP in [0, 1]."""

    epoch: int
    seconds: float
    ap: float
    ap50: float


@dataclass(frozen=True)
class RunResult:
    """A finished run. step_seconds: median over the epochs; memory_mb: the peak."""

    seed: int
    evaluations: list[Evaluated]
    step_seconds: float
    memory_mb: float
    seconds: float

    @property
    def last(self) -> Evaluated:
        return self.evaluations[-1]

    @property
    def ap(self) -> float:
        return self.last.ap

    @property
    def ap50(self) -> float:
        return self.last.ap50

    @property
    def best_ap(self) -> float:
        return max(evaluated.ap for evaluated in self.evaluations)


@dataclass(frozen=True)
class RecipeResult:
    """A recipe against the baseline, over the seeds that have finished with both. difference: in AP of the last
    evaluation: the best one was chosen by val, and is too good by luck, the more so the more evaluations there are.
    time_to_baseline: mean seconds to the first evaluation whose mean AP is that of the baseline's last, infinite if
    there is none. Both are None without common seeds, and the difference for the baseline itself."""

    name: str
    runs: list[RunResult]
    difference: PairedDifference | None
    time_to_baseline: float | None

    def mean(self, key: str) -> float | None:
        """Of an attribute of the runs; None without runs."""
        values = [getattr(run, key) for run in self.runs]
        return statistics.fmean(values) if values else None


def read_run(folder: Path, seed: int) -> RunResult:
    """Raises UserError if the log of the run holds no AP."""
    path = folder / "log.txt"
    records = read_log(path) if path.is_file() else []
    try:
        evaluations = [Evaluated(record["epoch"], record["seconds"], *record[AP][:2]) for record in records
                       if logged_ap(record) is not None]
        if not evaluations:
            raise UserError(f"{path} holds no val AP: are there boxes in the val set?")
        return RunResult(seed, evaluations, statistics.median(record["step_seconds"] for record in records),
                         max(record["peak_memory_mb"] for record in records), records[-1]["seconds"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is not the log of a training of this version ({type(error).__name__} {error})"
                        ) from error


def compare(runs: Mapping[str, Sequence[RunResult]]) -> list[RecipeResult]:
    """runs: the finished ones by recipe, the baseline first."""
    baseline = {run.seed: run for run in next(iter(runs.values()))}
    results = []
    for index, (name, finished) in enumerate(runs.items()):
        pairs = [(run, baseline[run.seed]) for run in finished if run.seed in baseline]
        difference = paired_difference([run.ap - base.ap for run, base in pairs]) if pairs and index else None
        results.append(RecipeResult(name, list(finished), difference, _time_to(pairs)))
    return results


def mean_curve(runs: Sequence[RunResult]) -> list[Evaluated]:
    """The means over runs of the same recipe, at the epochs that all have evaluated."""
    by_epoch = [{evaluated.epoch: evaluated for evaluated in run.evaluations} for run in runs]
    common = sorted(set.intersection(*map(set, by_epoch))) if by_epoch else []
    return [Evaluated(epoch, *(statistics.fmean(getattr(run[epoch], key) for run in by_epoch)
                               for key in ("seconds", "ap", "ap50"))) for epoch in common]


def _time_to(pairs: Sequence[tuple[RunResult, RunResult]]) -> float | None:
    if not pairs:
        return None
    wanted = statistics.fmean(base.ap for _, base in pairs)
    return next((point.seconds for point in mean_curve([run for run, _ in pairs]) if point.ap >= wanted), math.inf)


def format_report(results: Sequence[RecipeResult], changes: Mapping[str, str], notes: Sequence[str]) -> str:
    """recipes.md. changes: what each recipe is, in words. notes: on how the runs were made; one line each."""
    base = results[0].name
    times = any(len(run.evaluations) > 1 for result in results for run in result.runs)
    columns = ["recipe", "seeds", "AP", "best AP", "AP50", f"AP minus {base}'s", "verdict", "s/step", "MB", "hours"]
    rows = [_row(result, base) + [_hours(result.time_to_baseline)] * times for result in results]
    text = ["# Recipes", table(columns + [f"hours to {base}'s AP"] * times, rows, "lrrrrrlrrr" + "r" * times)]
    text.append(table(["recipe", "what it is"], [[result.name, changes[result.name]] for result in results]))
    text.append(LEGEND.format(base=base, confidence=CONFIDENCE, enough=ENOUGH)
                + ("\n" + TIMES.format(base=base) if times else ""))
    return "\n\n".join([*text, "\n".join(f"- {note}" for note in notes)]) + "\n"


def _row(result: RecipeResult, base: str) -> list[str]:
    aps = ["-" if (mean := result.mean(key)) is None else f"{100 * mean:.1f}" for key in ("ap", "best_ap", "ap50")]
    difference = result.difference
    against = ["-", "baseline" if result.name == base else f"undecided: 0 of {ENOUGH} seeds"]
    if difference is not None:
        mean, low, high = (100 * x for x in (difference.mean, difference.low, difference.high))
        against = [f"{mean:+.2f}" + f" [{low:+.2f}, {high:+.2f}]" * (difference.pairs > 1), difference.verdict]
    memory = max((run.memory_mb for run in result.runs), default=None)
    seconds = result.mean("seconds")
    return [result.name, str(len(result.runs)), *aps, *against, three_digits(result.mean("step_seconds")),
            three_digits(memory), _hours(seconds)]


def _hours(seconds: float | None) -> str:
    return "never" if seconds == math.inf else three_digits(None if seconds is None else seconds / 3600)


def numbers(results: Sequence[RecipeResult]) -> dict[str, Any]:
    """The same for JSON, by recipe: the runs with all their evaluations, the difference, the verdict, seconds to the
    baseline's AP. What is infinite is null."""
    content = {}
    for result in results:
        entry = dataclasses.asdict(result)
        del entry["name"]
        for part in (entry, entry["difference"] or {}):
            part |= {key: None for key, value in part.items() if value == math.inf or value == -math.inf}
        content[result.name] = entry | {"verdict": result.difference and result.difference.verdict}
    return content
