"""The picture of several recipes: differences to the baseline, and AP over the epochs."""
import math
import os
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from reports.recipes import RecipeResult, mean_curve
from reports.style import plain_axes, save_figure

COLOURS = ["#525252", "#2563eb", "#059669", "#c026d3", "#ea580c", "#0891b2", "#ca8a04", "#dc2626"]  # baseline first


def plot_recipes(results: Sequence[RecipeResult], path: str | os.PathLike) -> None:
    """Writes a PNG. Left: each recipe's mean difference in AP to the first one, in points, with its interval. Right:
    val AP in percent by epoch, a thin line a run and the mean over the seeds."""
    figure = Figure(figsize=(11, max(3.6, 2 + 0.35 * len(results))), dpi=130, layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        plain_axes(axes)
    _plot_differences(left, results)
    _plot_curves(right, results)
    save_figure(figure, path)


def _plot_differences(axes: Axes, results: Sequence[RecipeResult]) -> None:
    others = results[1:]
    axes.axvline(0, color=COLOURS[0], linewidth=1.2)
    for place, result in enumerate(others):
        difference = result.difference
        if difference is None:
            continue
        colour = _colour(place + 1)
        if math.isfinite(difference.low):
            axes.plot([100 * difference.low, 100 * difference.high], [place, place], color=colour, linewidth=2.2)
        axes.plot([100 * difference.mean], [place], "o", color=colour, markersize=7)
        axes.annotate(difference.verdict, (100 * difference.mean, place), xytext=(0, 8), textcoords="offset points",
                      ha="center", fontsize=8, color=colour)
    axes.set_yticks(range(len(others)), [result.name for result in others])
    axes.set(title=f"AP minus that of {results[0].name}", xlabel="points", ylim=(len(others) - 0.4, -0.6))


def _plot_curves(axes: Axes, results: Sequence[RecipeResult]) -> None:
    for place, result in enumerate(results):
        for run in result.runs:
            axes.plot([point.epoch for point in run.evaluations], [100 * point.ap for point in run.evaluations],
                      color=_colour(place), linewidth=0.6, alpha=0.5)
        mean = mean_curve(result.runs)
        if mean:
            axes.plot([point.epoch for point in mean], [100 * point.ap for point in mean], color=_colour(place),
                      label=f"{result.name} ({len(result.runs)})", linewidth=2, marker="o", markersize=3.5,
                      markevery=max(1, len(mean) // 40))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set(title="val AP (seeds)", xlabel="epoch", ylabel="AP [%]", ylim=(0, None))
    if axes.lines:
        axes.legend(frameon=False, fontsize=8)


def _colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]
