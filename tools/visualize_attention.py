"""Draws what a query attends to: python tools/visualize_attention.py -c CONFIG --resume CHECKPOINT --image FILE

One row for each encoder and decoder, one panel for each of its layers (with --heads: for each head of its last layer).
A decoder's panels show what the query attends to in the memory. An encoder's show what the token in the centre of the
query's box attends to, on the coarsest map; a cross marks that token. Global attention is a map over the image;
deformable attention is its sampled points, coloured by weight. The query's box is drawn in white.
"""
import argparse
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor
from torchvision.ops import box_convert

from common import add_detector_flags, run_tool, tool_parser
from datasets.images import read_image
from inference.backends.torch_model import TorchBackend
from inference.predictor import Predictor
from inference.sampling import forward_recorded
from models.attention_maps import Attended, as_map
from reports.fonts import families, shown_names
from reports.style import save_figure
from util.errors import UserError
from util.outputs import keep_inputs

COLOURS = "inferno"
NAME_LENGTH = 40  # characters of a class name


def main(args: argparse.Namespace) -> None:
    if args.output.suffix.lower().lstrip(".") not in FigureCanvasBase.get_supported_filetypes():
        raise UserError(f"--output {args.output}: its name must end like that of a picture, such as .png")
    keep_inputs([args.output], [args.image, args.config_file, args.resume])
    backend = Predictor(args.resume, args.config_file, options=args.options).backend
    if not isinstance(backend, TorchBackend):
        raise UserError(f"{args.resume} is an exported file, which returns nothing but its detections: pass the "
                        "weights that it was exported from")
    picture = read_image(args.image)
    outputs, records = forward_recorded(backend, picture)

    scores, labels, queries = (x[0] for x in backend.postprocess.classification.top_detections(
        outputs["pred_logits"], outputs["pred_logits"][0].numel()))
    num_queries = outputs["pred_boxes"].shape[1]
    if args.query is not None and not 0 <= args.query < num_queries:
        raise UserError(f"--query {args.query} must be from 0 to {num_queries - 1}")
    mine = queries == args.query if args.query is not None else torch.ones_like(queries, dtype=torch.bool)
    strongest = torch.where(mine, scores, -1).argmax()
    query, label = int(queries[strongest]), int(labels[strongest])
    name = backend.card.class_names.get(label, f"class {label}")
    caption = f"query {query}: {{}}, score {scores[strongest]:.2f}".format
    title = caption(shown_names({label: name}, NAME_LENGTH)[label].replace("$", r"\$"))
    save_figure(draw(picture, records, query, outputs["pred_boxes"][0, query], title, args.heads), args.output)
    print(f"{caption(name)}; wrote {args.output}")


def draw(picture: Image.Image, records: list[Attended], query: int, box: Tensor, title: str, heads: bool) -> Figure:
    """The panels of a query whose box [4] is cxcywh in [0, 1]."""
    parts: dict[str, list[Attended]] = {}
    for record in records:
        parts.setdefault(record.part, []).append(record)
    rows = []
    for part, layers in parts.items():
        if heads:
            rows.append([(f"{part}, layer {len(layers)}, head {head + 1}", layers[-1], [head])
                         for head in range(layers[-1].weights.shape[1])])
        else:
            rows.append([(f"{part}, layer {i + 1}", layer, list(range(layer.weights.shape[1])))
                         for i, layer in enumerate(layers)])
    columns = max(map(len, rows))
    height = 3 * picture.height / picture.width
    figure = Figure(figsize=(3 * columns, (height + 0.3) * len(rows) + 0.5), dpi=110, layout="constrained")
    figure.suptitle(title, fontfamily=families([title]))
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes, panel in [(axes, panel) for row, panels in zip(grid, rows)
                        for axes, panel in zip(row, panels + [None] * (columns - len(panels)))]:
        axes.set_axis_off()
        if panel is not None:
            name, layer, chosen = panel
            axes.set_title(name, fontsize=8)
            draw_panel(axes, picture, layer, chosen, query, box)
    return figure


def draw_panel(axes: Axes, picture: Image.Image, layer: Attended, heads: list[int], query: int, box: Tensor) -> None:
    """The attention of a query, as the mean over `heads`."""
    width, height = picture.size
    if layer.in_encoder:
        index, (x, y) = token_at(layer, box)
        axes.plot(x * width, y * height, "+", color="cyan", markersize=10, markeredgewidth=2, zorder=3)
    else:
        index = query
    weights = layer.weights[index, heads]
    extent = (0, width, height, 0)
    axes.imshow(picture.convert("L"), cmap="gray", extent=extent)
    if layer.locations is None:
        axes.imshow(as_map(weights.mean(0), layer.shapes).numpy(), cmap=COLOURS, alpha=0.65, extent=extent)
    else:
        points = layer.locations[index, heads].flatten(0, -2)
        order = weights.flatten().argsort()  # the largest on top
        x, y = (points[order] * points.new_tensor([width, height])).T.numpy()
        axes.scatter(x, y, c=weights.flatten()[order].numpy(), cmap=COLOURS, s=9)
    *corner, box_width, box_height = (box_convert(box, "cxcywh", "xywh") * box.new_tensor([width, height] * 2)).tolist()
    axes.add_patch(Rectangle(corner, box_width, box_height, fill=False, edgecolor="white", linewidth=1.5))
    axes.set(xlim=(0, width), ylim=(height, 0))


def token_at(layer: Attended, box: Tensor) -> tuple[int, tuple[float, float]]:
    """The token of the coarsest map in the centre of the box: its place among the tokens that the layer updates (which
    end with those of the coarsest map), and its centre (x, y) in [0, 1].
    """
    height, width = layer.shapes[-1]
    column, row = (min(int(c * n), n - 1) for c, n in zip(box[:2].clamp(0, 1), (width, height)))
    index = len(layer.weights) - height * width + row * width + column
    return index, ((column + 0.5) / width, (row + 0.5) / height)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = tool_parser(__doc__)
    add_detector_flags(parser)
    parser.add_argument("--image", required=True, type=Path)
    parser.add_argument("--query", type=int, help="number of the query; default: the one with the best score")
    parser.add_argument("--heads", action="store_true", help="heads of each part's last layer instead of its layers")
    parser.add_argument("--output", type=Path, default=Path("attention.png"))
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_tool(main, parse_args())
