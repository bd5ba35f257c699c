"""Draws docs/lite_detr.png and docs/data_flow.png: python tools/draw_lite_detr_figure.py [FOLDER]

The first: which tokens each layer of the interleaved encoder updates, and how key-aware deformable attention weights
its samples. The second: what travels between the parts of a detector. One unit of the axes is an inch of a figure.
"""
import math
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from common import ROOT, run_tool, tool_parser
from reports.style import save_figure

WIDTH = 12.6
INK, GREY, RED = "#1f2937", "#9ca3af", "#dc2626"
HIGH, LOW, BLOCK = "#fde68a", "#bbf7d0", "#f3f4f6"
LEVELS = {8: "#60a5fa", 16: "#34d399", 32: "#fbbf24", 64: "#f472b6"}  # stride: colour
IMAGE = (800, 1066)  # the size that the shares of the tokens are counted at
LAYERS, BLOCKS = 6, 3


def token_shares() -> dict[int, float]:
    """Part of all tokens that each level has, by stride."""
    counts = {stride: math.ceil(IMAGE[0] / stride) * math.ceil(IMAGE[1] / stride) for stride in LEVELS}
    return {stride: count / sum(counts.values()) for stride, count in counts.items()}


def text(axes: Axes, x: float, y: float, words: str, **style) -> None:
    axes.text(x, y, words, **{"ha": "center", "va": "center", "fontsize": 10.5, "color": INK, **style})


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], **style) -> None:
    usual = {"arrowstyle": "-|>", "mutation_scale": 12, "color": INK, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0}
    axes.add_patch(FancyArrowPatch(start, end, **{**usual, **style}))


def box(axes: Axes, left: float, bottom: float, width: float, height: float, colour: str, **style) -> None:
    axes.add_patch(FancyBboxPatch((left, bottom), width, height, boxstyle="round,pad=0,rounding_size=0.05",
                                  **{"facecolor": colour, "edgecolor": INK, "linewidth": 1, **style}))


def grid(axes: Axes, left: float, bottom: float, cells: tuple[int, int], side: tuple[float, float],
         colour: str) -> None:
    """Rows and columns of cells; side is a cell's (width, height)."""
    for row in range(cells[0]):
        for column in range(cells[1]):
            axes.add_patch(Rectangle((left + column * side[0], bottom + row * side[1]), *side, facecolor=colour,
                                     edgecolor="white", linewidth=0.8))


def draw_encoder(axes: Axes) -> None:
    """Lanes of tokens from left to right, and the layers across those that they update."""
    text(axes, 0.08, 4.68, "(a) Interleaved encoder, H3L1-(2+1)\u00d73", ha="left", fontsize=12.5, weight="bold")
    lanes = {8: 3.62, 16: 2.52, 32: 1.92, 64: 1.42}
    first, pitch, width, end = 2.42, 0.6, 0.4, 6.12
    for number in range(BLOCKS):
        left = first - 0.07 + 2 * pitch * number
        box(axes, left, 1.04, 2 * pitch - 0.06, 3.2, BLOCK, linewidth=0)
        text(axes, left + pitch - 0.03, 0.86, f"block {number + 1}")
    for (stride, y), cell in zip(lanes.items(), ((8, 11), (4, 6), (2, 3), (1, 2))):
        grid(axes, 1.67 - 0.05 * cell[1], y - 0.05 * cell[0], cell, (0.1, 0.1), LEVELS[stride])
        share = token_shares()[stride]
        text(axes, 1.03, y, f"stride {stride}\n{100 * share:.0f} % of tokens", ha="right", fontsize=9.5,
             linespacing=1.15)
        arrow(axes, (2.29, y), (end, y), zorder=1)
    top, bottom = lanes[16] + 0.28, lanes[64] - 0.24
    for layer in range(LAYERS):
        left = first + pitch * layer
        middle = left + width / 2
        if (layer + 1) % (LAYERS // BLOCKS) == 0:
            box(axes, left, bottom, width, lanes[8] + 0.44 - bottom, LOW, zorder=2)
            axes.add_patch(Rectangle((left, top - 0.1), width, 0.1, facecolor=HIGH, linewidth=0, zorder=2))
            box(axes, left, bottom, width, top - bottom - 0.02, HIGH, linewidth=0, zorder=2)
            box(axes, left, bottom, width, lanes[8] + 0.44 - bottom, "none", zorder=3)
            axes.plot([left, left + width], [top, top], color=INK, linewidth=1, zorder=3)
            text(axes, middle, lanes[8] - 0.08, "small FFN", rotation=90, fontsize=10, zorder=4)
        else:
            box(axes, left, bottom, width, top - bottom, HIGH, zorder=3)
            arrow(axes, (middle, lanes[8]), (middle, top), linestyle=(0, (3, 2)), color=RED, zorder=2)
        text(axes, middle, (top + bottom) / 2, f"layer {layer + 1}", rotation=90, zorder=4)
    box(axes, 0.12, 0.42, 0.24, 0.18, HIGH)
    text(axes, 0.44, 0.51, "high-level tokens: every layer updates them", ha="left", fontsize=10)
    box(axes, 0.12, 0.12, 0.24, 0.18, LOW)
    text(axes, 0.44, 0.21, "low-level tokens: only the last layer of a block", ha="left", fontsize=10)
    arrow(axes, (4.22, 0.51), (4.62, 0.51), linestyle=(0, (3, 2)), color=RED)
    text(axes, 4.7, 0.51, "sampled, not updated", ha="left", fontsize=10, color=RED)


def draw_attention(axes: Axes) -> None:
    """A query's 16 samples: their keys decide their weights."""
    left = 6.75
    text(axes, left, 4.68, "(b) Key-aware deformable attention", ha="left", fontsize=12.5, weight="bold")
    maps, width, height = left + 0.55, 1.05, 0.68
    query = (maps + width / 2, 4.22)
    box(axes, query[0] - 0.42, query[1] - 0.15, 0.84, 0.3, "#fbcfe8")
    text(axes, *query, "query q")
    arrow(axes, (query[0], query[1] - 0.15), (query[0], 3.78))
    text(axes, query[0] - 0.12, 3.91, "offsets", ha="right", fontsize=9.5)
    shifts = ((-0.34, 0.13), (0.17, 0.2), (-0.13, -0.22), (0.32, -0.1))
    strip, side, gap = 8.95, 0.185, 0.07
    middle = strip + (16 * side + 3 * gap) / 2
    rows = {"keys k": 3.42, "values v": 1.42}
    for number, ((stride, colour), cell) in enumerate(zip(LEVELS.items(), ((8, 11), (4, 6), (2, 3), (1, 2)))):
        bottom = 3.05 - 0.8 * number
        grid(axes, maps, bottom, cell, (width / cell[1], height / cell[0]), colour)
        text(axes, maps - 0.1, bottom + height / 2, f"stride\n{stride}", ha="right", fontsize=9.5, linespacing=1.1)
        centre = (maps + 0.5 * width, bottom + 0.5 * height)
        axes.plot(*centre, marker="x", color=INK, markersize=6, markeredgewidth=1.6)
        scale = 0.65 + 0.12 * number  # offsets count in pixels of their level
        for dx, dy in shifts:
            axes.plot(centre[0] + scale * dx, centre[1] + scale * dy, marker="o", color=RED, markersize=4.5,
                      markeredgecolor="white", markeredgewidth=0.7)
        for row in rows.values():
            for point in range(4):
                at = strip + number * (4 * side + gap) + point * side
                axes.add_patch(Rectangle((at, row - side / 2), side, side, facecolor=colour, edgecolor="white"))
    for name, row in rows.items():
        text(axes, strip - 0.08, row + 0.24, name, ha="left", fontsize=10)
        arrow(axes, (maps + width + 0.16, row), (strip - 0.06, row), color=RED)
    text(axes, strip + 0.75, rows["keys k"] + 0.24, "at the 16 sampled points, 4 per level", ha="left", fontsize=9.5)
    axes.plot([maps + width + x for x in (0.07, 0.16, 0.16, 0.07)], [3.73, 3.73, 0.65, 0.65], color=RED, linewidth=1.2)
    # The query meets the keys.
    box(axes, middle - 1.0, 2.66, 2.0, 0.36, "#fbcfe8")
    text(axes, middle, 2.84, r"softmax( q $\cdot$ k / $\sqrt{D}$ )", fontsize=11)
    arrow(axes, (middle, rows["keys k"] - side / 2 - 0.02), (middle, 3.03))
    corner = strip + 16 * side + 3 * gap + 0.16
    axes.plot([query[0] + 0.42, corner, corner], [query[1], query[1], 2.84], color=INK, linewidth=1.2)
    arrow(axes, (corner, 2.84), (middle + 1.0, 2.84))
    # Its weights, as bars over the values.
    logits = (0.1, 0.9, 0.2, 1.5, 0.4, 1.7, 0.2, 2.2, 0.5, 0.3, 1.1, 0.2, 0.9, 0.1, 0.4, 0.2)
    largest = max(logits)
    for point, (logit, colour) in enumerate(zip(logits, [c for c in LEVELS.values() for _ in range(4)])):
        at = strip + (point // 4) * gap + point * side
        axes.add_patch(Rectangle((at + 0.03, 1.86), side - 0.06, 0.5 * math.exp(logit - largest), facecolor=colour,
                                 edgecolor=INK, linewidth=0.6))
    axes.plot([strip, corner - 0.16], [1.86, 1.86], color=INK, linewidth=0.8)
    arrow(axes, (middle, 2.65), (middle, 2.42))
    text(axes, strip - 0.08, 2.3, "weights a", ha="left", fontsize=10)
    arrow(axes, (middle, rows["values v"] - side / 2 - 0.02), (middle, 1.05))
    box(axes, middle - 1.0, 0.72, 2.0, 0.32, "#e5e7eb")
    text(axes, middle, 0.88, r"output  $\Sigma$ a v", fontsize=11)
    text(axes, left + 0.1, 0.21, "Plain deformable attention: a = softmax(linear(q)), without a look at the keys.",
         ha="left", fontsize=10)


def draw_flow(axes: Axes) -> None:
    """The parts of a detector in two rows, and over the arrows what travels between them."""
    upper, lower, width, height = 2.95, 0.95, 2.0, 0.72
    parts = {  # name: centre, file
        "images": (1.15, upper, ""), "backbone": (4.55, upper, "models/backbones/"),
        "input projection": (7.95, upper, "models/features.py"), "encoder": (11.35, upper, "models/encoders/"),
        "query selection": (1.15, lower, "models/transformer.py"), "decoder": (4.55, lower, "models/decoders/"),
        "heads": (7.95, lower, "models/heads.py"), "losses": (11.35, lower + 0.45, "models/criterion.py"),
        "detections": (11.35, lower - 0.45, "models/postprocess.py")}
    colours = {"images": "#e5e7eb", "losses": "#fbcfe8", "detections": "#fbcfe8", "encoder": LOW, "decoder": HIGH}
    for name, (x, y, file) in parts.items():
        box(axes, x - width / 2, y - height / 2, width, height, colours.get(name, "#dbeafe"))
        text(axes, x, y + (0.13 if file else 0), name, fontsize=12)
        text(axes, x, y - 0.17, file, fontsize=9, family="monospace")

    def carry(start: str, end: str, what: str, shape: str) -> None:
        """An arrow to the right between two parts of a row."""
        left, right = parts[start][0] + width / 2 + 0.04, parts[end][0] - width / 2 - 0.04
        y = parts[start][1]
        arrow(axes, (left, y), (right, y))
        text(axes, (left + right) / 2 - 0.03, y + 0.05, what, va="bottom", weight="bold", fontsize=10)
        text(axes, (left + right) / 2 - 0.05, y - 0.07, shape, va="top", fontsize=9, linespacing=1.25)

    carry("images", "backbone", "NestedTensor", "tensors [B,3,H,W]\nmask [B,H,W]")
    carry("backbone", "input projection", "maps", "one NestedTensor\nper level")
    carry("input projection", "encoder", "FlatFeatures", "tokens [B,N,C]\npos, padding,\nshapes, ratios")
    carry("query selection", "decoder", "Queries", "content [B,Q,C]\nboxes [B,Q,4]")
    carry("decoder", "heads", "DecoderOutput", "hidden [B,Q,C]\nper layer")
    # The encoder's tokens go to the second row.
    turn = 1.95
    axes.plot([11.35, 11.35, 1.15], [upper - height / 2, turn, turn], color=INK, linewidth=1.2)
    for part in ("query selection", "decoder"):
        arrow(axes, (parts[part][0], turn), (parts[part][0], lower + height / 2 + 0.03))
    text(axes, 7.95, turn + 0.05, "FlatFeatures", va="bottom", weight="bold", fontsize=10)
    text(axes, 7.95, turn - 0.06, "the memory, tokens updated", va="top", fontsize=9)
    # Outputs serve two readers.
    fork = 9.75
    axes.plot([parts["heads"][0] + width / 2 + 0.04, fork], [lower, lower], color=INK, linewidth=1.2)
    for part in ("losses", "detections"):
        y = parts[part][1]
        axes.plot([fork, fork], [lower, y], color=INK, linewidth=1.2)
        arrow(axes, (fork, y), (parts[part][0] - width / 2 - 0.04, y))
    text(axes, 9.35, lower + 0.05, "outputs", va="bottom", weight="bold", fontsize=10)
    text(axes, 9.35, lower - 0.07, "logits\n[B,Q,K]\nboxes\n[B,Q,4]", va="top", fontsize=9, linespacing=1.25)


def canvas(height: float) -> tuple[Figure, Axes]:
    """A figure with axes in inches."""
    figure = Figure(figsize=(WIDTH, height), dpi=130)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(0, height))
    axes.set_axis_off()
    return figure, axes


def draw() -> Figure:
    figure, axes = canvas(4.9)
    draw_encoder(axes)
    draw_attention(axes)
    axes.plot([6.43, 6.43], [0.15, 4.75], color=GREY, linewidth=0.8)
    return figure


def draw_data_flow() -> Figure:
    figure, axes = canvas(3.5)
    draw_flow(axes)
    return figure


def main(folder: Path) -> None:
    save_figure(draw(), folder / "lite_detr.png")
    save_figure(draw_data_flow(), folder / "data_flow.png")


if __name__ == "__main__":
    parser = tool_parser(__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "docs", metavar="FOLDER")
    run_tool(main, parser.parse_args().folder)
