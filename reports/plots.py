"""Plots of an evaluation: precision over recall, confusion matrix, and the split of the errors."""
import os

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.fonts import columns_of, families, shown_names
from reports.style import plain_axes, save_figure
from util.integers import ceil_div

FEW_CLASSES = 10  # up to which each curve has its own colour and name
READABLE_CELLS = 20  # classes up to which a confusion matrix has room for its numbers
MAX_SIDE = 15  # inches of a confusion matrix, so that viewers can open it
NAME_LENGTH = 20  # characters of a class name


def plot_precision_recall(curves: dict[str, np.ndarray], names: list[str], path: str | os.PathLike) -> None:
    """Writes a PNG with a panel for each of `curves`, precision [R, K] in [0, 1] at R evenly spaced recalls by title.

    names: of the K classes, shown as shown_names says. A class that was not measured has -1, and no curve.
    """
    figure = Figure(figsize=(11, 4.9), dpi=130, layout="constrained")
    panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    few = len(names) <= FEW_CLASSES
    labels = _labels(names)
    for axes, (title, precision) in zip(panels, curves.items()):
        plain_axes(axes)
        axes.set(title=title, xlabel="recall [%]", xlim=(0, 101), ylim=(0, 102))
        recall = np.linspace(0, 100, len(precision))
        measured = precision[0] > -1
        for k in np.flatnonzero(measured):
            look = {"color": f"C{k}", "linewidth": 1.4, "label": labels[k]} if few else {
                "color": "#93b4e8", "linewidth": 0.6, "label": "one class" if k == measured.argmax() else None}
            axes.plot(recall, 100 * precision[:, k], **look)
        if measured.any():
            axes.plot(recall, 100 * precision[:, measured].mean(1), color="#111111", linewidth=2.4, label="mean")
        else:
            _write_centred(axes, "no ground-truth box")
    panels[0].set_ylabel("precision [%]")
    if measured.any():
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", frameon=False,
                      prop={"family": families(labels)})
    save_figure(figure, path)


def plot_confusion_matrix(matrix: np.ndarray, names: list[str], title: str, path: str | os.PathLike) -> None:
    """Writes a PNG of a matrix [K + 1, K + 1] of counts: rows truth, columns prediction, the last of each background.

    Colours are shares of the row. Few classes have the counts in the cells, very many a name only here and there.
    """
    classes = len(names)
    total = matrix.sum(1, keepdims=True)
    share = np.divide(100 * matrix, total, out=np.full(matrix.shape, np.nan), where=total > 0)
    share[-1, -1] = np.nan  # background that is detected as background cannot be counted
    readable = classes <= READABLE_CELLS
    side = min(MAX_SIDE, 3.4 + (0.5 if readable else 0.13) * classes)
    figure = Figure(figsize=(side + 0.9, side), dpi=130, layout="constrained")
    axes = figure.subplots()
    colours = colormaps["Blues"].with_extremes(bad="#f1f1f1")
    picture = axes.imshow(share, cmap=colours, vmin=0, vmax=100)
    bar = figure.colorbar(picture, ax=axes, shrink=0.7, aspect=30, pad=0.02)
    bar.set_label("share of the row [%]")
    bar.outline.set_visible(False)
    step = ceil_div(classes, 100)
    ticks = [*range(0, classes, step), classes]
    shown = _labels(names)
    labels = [shown[k] for k in ticks[:-1]]
    columns, rows = [*labels, "missed"], [*labels, "background"]
    size = 9 if readable else 6
    wide = 0.09 * max(map(columns_of, columns)) > 0.7 * side / (classes + 1)  # inches of a name, and of a cell
    axes.set_xticks(ticks, columns, rotation=90 if wide else 0, fontsize=size, fontfamily=families(labels))
    axes.set_yticks(ticks, rows, fontsize=size, fontfamily=families(labels))
    axes.tick_params(length=0)
    axes.set(title=title, xlabel="detected as", ylabel="ground truth")
    axes.spines[:].set_visible(False)
    axes.axhline(classes - 0.5, color="#737373", linewidth=0.8)
    axes.axvline(classes - 0.5, color="#737373", linewidth=0.8)
    if readable:
        for row, column in zip(*np.nonzero(matrix)):
            colour = "white" if share[row, column] > 55 else "#222222"
            text = f"{matrix[row, column]}" + (f"\n{share[row, column]:.0f} %" if classes <= 12 else "")
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    else:
        for k in range(10, classes, 10):  # guide lines
            axes.axhline(k - 0.5, color="#c9c9c9", linewidth=0.5)
            axes.axvline(k - 0.5, color="#c9c9c9", linewidth=0.5)
    save_figure(figure, path)


def plot_errors(main: dict[str, float | None], special: dict[str, float | None], path: str | os.PathLike) -> None:
    """Writes a PNG with a bar for each kind of error: the AP50 in [0, 1] gained without it, or None if unknown."""
    figure = Figure(figsize=(8, 4.4), dpi=130, layout="constrained")
    panels = figure.subplots(2, 1, sharex=True, height_ratios=[len(main), len(special)])
    for axes, gains, colour in zip(panels, (main, special), ("#2563eb", "#737373")):
        plain_axes(axes)
        axes.grid(visible=False, axis="y")
        axes.set_axisbelow(True)
        values = [100 * (gain or 0) for gain in gains.values()]
        bars = axes.barh(list(gains), values, color=colour, height=0.62)
        axes.bar_label(bars, ["-" if gain is None else f"{100 * gain:.1f}" for gain in gains.values()], padding=4)
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
    panels[0].set_title("What each kind of error costs", loc="left")
    panels[1].set_xlabel("AP50 gained without it [points]")
    panels[1].set_xlim(0, 1.1 * max(1, *(100 * (gain or 0) for gain in [*main.values(), *special.values()])))
    save_figure(figure, path)


def _labels(names: list[str]) -> list[str]:
    """Class names as labels: see shown_names; no formulas, and no leading underscore, which would hide them."""
    shown = shown_names(dict(enumerate(names)), NAME_LENGTH).values()
    return [(" " if name.startswith("_") else "") + name.replace("$", r"\$") for name in shown]


def _write_centred(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", color="#737373")
