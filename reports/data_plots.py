"""Histograms of the boxes of a data set."""
import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from reports.fonts import families, shortened
from reports.style import save_figure

SPLIT_COLOURS = {"train": "#2563eb", "val": "#ea580c"}
MAX_BARS = 30  # classes that fit into the picture
NAME_LENGTH = 20  # characters of a class name


def plot_boxes(by_class: dict[str, dict[str, int]], lengths: dict[str, np.ndarray],
               by_image: Mapping[str, Sequence[int]], size: int, path: str | os.PathLike) -> None:
    """Writes a PNG of three histograms, each argument by split: boxes by class (the most frequent MAX_BARS), lengths
    (the root of a box's area, px, in images resized to `size`), and boxes per image.
    """
    boxes = {name: [counts.get(name, 0) for counts in by_class.values()] for counts in by_class.values()
             for name in counts}
    names = sorted((name for name in boxes if any(boxes[name])), key=lambda name: boxes[name], reverse=True)
    shown = names[:MAX_BARS]
    figure = Figure(figsize=(14, max(4.2, 0.22 * len(shown) + 1.2)), dpi=110, layout="constrained")
    bars, sizes, images = figure.subplots(1, 3)
    for axes in (bars, sizes, images):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e3e3e3", linewidth=0.8)
        axes.set_axisbelow(True)
    thickness = 0.8 / len(by_class)
    for i, (split, counts) in enumerate(by_class.items()):
        bars.barh(np.arange(len(shown)) + (i - (len(by_class) - 1) / 2) * thickness,
                  [counts.get(name, 0) for name in shown], thickness, color=SPLIT_COLOURS[split], label=split)
    more = f" (the first {MAX_BARS} of {len(names)})" if len(names) > MAX_BARS else ""
    bars.set(title=f"Boxes by class{more}", xlabel="boxes (logarithmic)", yticks=range(len(shown)), xscale="log")
    bars.set_xlim(left=0.5)
    bars.xaxis.set_major_formatter("{x:g}")
    bars.minorticks_off()
    labels = [shortened(name, NAME_LENGTH).replace("$", r"\$") for name in shown]
    bars.set_yticklabels(labels, fontfamily=families(labels))
    bars.set_ylim(max(len(shown), 1) - 0.5, -0.5)
    bars.grid(axis="y", visible=False)
    bars.legend(frameon=False, loc="lower right")
    _plot_shares(sizes, lengths, np.geomspace(1, 2048, 45))
    sizes.set(title=f"Size of boxes in images of {size} px", xlabel="√area, px", ylabel="share of the boxes, %",
              xscale="log")
    sizes.set_xticks([1, 4, 16, 64, 256, 1024], labels=[1, 4, 16, 64, 256, 1024])
    sizes.minorticks_off()
    largest = max((max(counts) for counts in by_image.values() if len(counts)), default=0)
    _plot_shares(images, by_image, np.arange(-0.5, largest + 1.5, max(1, largest // 30)))
    images.set(title="Boxes per image", xlabel="boxes", ylabel="share of the images, %")
    images.xaxis.set_major_locator(MaxNLocator(integer=True))
    save_figure(figure, path)


def _plot_shares(axes: Axes, values: Mapping[str, Sequence[float] | np.ndarray], edges: np.ndarray) -> None:
    """Overlaid histograms in percent; values beyond the edges count in the outermost bins."""
    for split, numbers in values.items():
        if len(numbers):
            heights, _ = np.histogram(np.clip(numbers, edges[0], edges[-1]), edges)
            axes.stairs(100 * heights / len(numbers), edges, fill=True, color=SPLIT_COLOURS[split], alpha=0.25)
            axes.stairs(100 * heights / len(numbers), edges, color=SPLIT_COLOURS[split], linewidth=1.4)
