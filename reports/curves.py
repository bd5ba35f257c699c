"""The curves of a training log."""
import json
import os
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from reports.style import plain_axes, save_figure
from util.errors import UserError

METRICS = {"AP": "#2563eb", "AP50": "#059669", "AP75": "#c026d3"}  # the first entries of "test_coco_eval_bbox"


def read_log(path: str | os.PathLike) -> list[dict]:
    """The records of a log.txt (one json object per line) in the order of their "epoch".

    Of two lines for one epoch the later counts, for a resumed run. A broken last line is skipped, for a killed one.
    Raises FileNotFoundError for a missing file, UserError (a ValueError) with file and line for any other bad line.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no training log at {path}")
    lines = Path(path).read_text(encoding="utf-8", errors="replace").rstrip().split("\n")
    records = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise UserError(f"{path}, line {number}: not json ({error})") from None
        if not isinstance(record, dict) or "epoch" not in record:
            raise UserError(f'{path}, line {number}: not a json object with an "epoch"')
        records[record["epoch"]] = record
    return [records[epoch] for epoch in sorted(records)]


def plot_log(log: list[dict] | str | os.PathLike, path: str | os.PathLike) -> None:
    """Writes a PNG of loss, learning rate and AP in percent by epoch. `log` is what `read_log` returns, or its path.

    A record that lacks a key has no point in that curve. Raises UserError for a log without records.
    """
    records = log if isinstance(log, list) else read_log(log)
    if not records:
        raise UserError(f"{path} is not written: the log has no finished epoch")
    figure = Figure(figsize=(11, 4.6), dpi=130, layout="constrained")
    panels = figure.subplot_mosaic([["loss", "AP"], ["rate", "AP"]], height_ratios=[3, 1])
    for axes in panels.values():
        axes.set_xlim(records[0]["epoch"] - 0.5, records[-1]["epoch"] + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        plain_axes(axes)
    _plot_curve(panels["loss"], _series(records, "train_loss"), "train", "#2563eb")
    _plot_curve(panels["loss"], _series(records, "test_loss"), "test", "#ea580c")
    panels["loss"].set(title="Loss", ylabel="loss")
    panels["loss"].tick_params(labelbottom=False)  # the panel below has the same epochs
    if panels["loss"].lines:
        panels["loss"].legend(frameon=False)
    _plot_curve(panels["rate"], _series(records, "train_lr"), "learning rate", "#525252")
    panels["rate"].set(xlabel="epoch", ylabel="learning rate", ylim=(0, None))
    panels["rate"].ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    _plot_average_precision(panels["AP"], _series(records, "test_coco_eval_bbox"))
    save_figure(figure, path)


def _series(records: list[dict], key: str) -> tuple[list[int], list]:
    """The epochs that have the key, and its values there."""
    present = [record for record in records if key in record]
    return [record["epoch"] for record in present], [record[key] for record in present]


def _plot_curve(axes: Axes, series: tuple[list[int], list[float]], name: str, colour: str) -> None:
    """A line with at most about forty markers: they show a single point and do not hide a long curve."""
    epochs, values = series
    if epochs:
        axes.plot(epochs, values, color=colour, label=name, linewidth=1.6, marker="o", markersize=3.5,
                  markevery=max(1, len(epochs) // 40))


def _plot_average_precision(axes: Axes, series: tuple[list[int], list[list[float]]]) -> None:
    """METRICS in percent, with their last values to the right. COCO's -1 (nothing to find) counts as no value."""
    epochs = [epoch for epoch, metrics in zip(*series) if metrics[0] >= 0]
    curves = {name: [100 * metrics[i] for metrics in series[1] if metrics[0] >= 0] for i, name in enumerate(METRICS)}
    axes.set(title="Average precision", xlabel="epoch", ylabel="AP [%]")
    if not epochs:
        axes.text(0.5, 0.5, "no average precision in this log", transform=axes.transAxes, ha="center", color="#737373")
        axes.set_yticks([])
        return
    for name, values in curves.items():
        _plot_curve(axes, (epochs, values), name, METRICS[name])
    axes.legend(frameon=False)
    top = 1.08 * max(1, *map(max, curves.values()))
    axes.set_ylim(0, top)
    height = 0.0
    for name, values in sorted(curves.items(), key=lambda curve: curve[1][-1]):
        height = max(height, values[-1])
        axes.text(1.01, height, f"{values[-1]:.1f}", color=METRICS[name], transform=axes.get_yaxis_transform(),
                  va="center")
        height += 0.045 * top  # so that the next number does not overlap
