"""Draws docs/sdetr.png, the figure of docs/sdetr.md: python tools/draw_sdetr_figure.py [FILE]

Left: how the stages of SDETR follow one another. Right: attention as grids over the image.
"""
import math
from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from common import ROOT, run_tool, tool_parser
from reports.style import save_figure

FILL = {"feature": "#dbeafe", "encoder": "#bbf7d0", "decoder": "#fde68a", "query": "#fbcfe8", "head": "#e5e7eb"}
EDGE, RED = "#374151", "#dc2626"


def box(axes: Axes, x: float, y: float, text: str, kind: str, width: float = 2.0, height: float = 0.8) -> None:
    """A box whose centre is at (x, y)."""
    axes.add_patch(FancyBboxPatch((x - width / 2, y - height / 2), width, height, boxstyle="round,pad=0.04",
                                  facecolor=FILL[kind], edgecolor=EDGE, linewidth=1))
    axes.text(x, y, text, ha="center", va="center", fontsize=9)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str = EDGE) -> None:
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color=colour, linewidth=1.3,
                                   shrinkA=0, shrinkB=0))


def draw_stages(axes: Axes) -> None:
    axes.set_title("Stacked stages", fontsize=11)
    box(axes, 1.1, 0, "image", "feature", 1.4)
    box(axes, 1.1, 1.6, "backbone", "feature", 1.4)
    arrow(axes, (1.1, 0.45), (1.1, 1.15))
    stages = [(3.4, "C5, stride 32", "8 heads"), (6.2, "C4, stride 16", "1 head")]
    for number, (y, level, heads) in enumerate(stages, 1):
        box(axes, 3.7, y, level, "feature", 1.9)
        box(axes, 6.2, y, f"encoder {number}\n{heads}", "encoder", 1.7)
        box(axes, 8.7, y, f"decoder {number}\n8 heads", "decoder", 1.7)
        box(axes, 11.3, y, "shared\nheads", "head", 1.5)
        box(axes, 8.7, y - 1.35, f"positions {number} (learned)", "query", 2.9, 0.55)
        arrow(axes, (1.1, 2.05) if number == 1 else (1.1, 3.4), (1.1, y))
        arrow(axes, (1.1, y), (2.7, y))
        arrow(axes, (4.7, y), (5.3, y))
        arrow(axes, (7.1, y), (7.8, y))
        arrow(axes, (9.6, y), (10.5, y))
        arrow(axes, (8.7, y - 1.03), (8.7, y - 0.45))
    # The content that the first decoder ends with starts the second.
    axes.plot([9.25, 9.25, 10.35, 10.35], [3.84, 4.25, 4.25, 5.95], color=RED, linewidth=1.6)
    arrow(axes, (10.35, 5.95), (9.6, 5.95), RED)
    axes.text(10.5, 5.0, "content", color=RED, fontsize=9, va="center")
    axes.set(xlim=(0.2, 12.3), ylim=(-0.6, 7.0))


def draw_grid(axes: Axes) -> None:
    """The four grids of one head: a cell of Q meets all cells of K; that gives A, the weights of the cells of V."""
    axes.set_title("Attention as a grid", fontsize=11)
    shape, chosen = (6, 8), (2, 5)  # rows and columns, and the query's cell
    near = [[math.exp(-((row - 2) ** 2 + (column - 5) ** 2) / 4) for column in range(shape[1])]
            for row in range(shape[0])]
    cells = {"Q": lambda row, column: RED if (row, column) == chosen else "#dbeafe", "K": lambda *_: "#bbf7d0",
             "A": lambda row, column: colormaps["inferno"](near[row][column]), "V": lambda *_: "#fde68a"}
    corners = {"Q": (0, 4.6), "K": (0, 0.6), "A": (5.2, 2.6), "V": (10.4, 2.6)}
    notes = {"Q": "a cell asks ...", "K": "... all cells", "A": "one weight per cell,\nsum 1: a picture",
             "V": "added up by A:\nthe cell's new content"}
    for name, (left, bottom) in corners.items():
        for row in range(shape[0]):
            for column in range(shape[1]):
                axes.add_patch(Rectangle((left + 0.4 * column, bottom + 0.4 * (shape[0] - 1 - row)), 0.4, 0.4,
                                         edgecolor="white", facecolor=cells[name](row, column)))
        axes.text(left - 0.2, bottom + 1.2, name, ha="right", va="center", fontsize=12, weight="bold")
        axes.text(left + 1.6, bottom - 0.15, notes[name], ha="center", va="top", fontsize=9)
    arrow(axes, (3.4, 5.4), (4.6, 4.3))
    arrow(axes, (3.4, 2.2), (4.6, 3.3))
    arrow(axes, (8.6, 3.8), (9.8, 3.8))
    axes.text(6.8, 6.4, "8 heads: eight grids A, each from C/8 channels\n1 head: one grid A from all C channels",
              ha="left", va="center", fontsize=9)
    axes.set(xlim=(-0.8, 13.8), ylim=(-0.6, 7.2))


def draw() -> Figure:
    figure = Figure(figsize=(13.5, 4.8), dpi=110, layout="constrained")
    stages, grid = figure.subplots(1, 2, width_ratios=[12, 14.6])
    for axes, paint in ((stages, draw_stages), (grid, draw_grid)):
        axes.set_aspect("equal")
        axes.set_axis_off()
        paint(axes)
    return figure


def main(file: Path) -> None:
    save_figure(draw(), file)


if __name__ == "__main__":
    parser = tool_parser(__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=ROOT / "docs/sdetr.png", metavar="FILE")
    run_tool(main, parser.parse_args().file)
