"""Draws the results of a run: python tools/draw_results.py RUN_FOLDER --coco_path DIR

Reads RUN_FOLDER/results/val_detections.json (written by main.py --eval --save_results) and log.txt, and writes
detections.png, a grid of val images with ground truth and detections, and curves.png, the training by epoch.
"""
import argparse
import json
from collections import defaultdict
from pathlib import Path

from PIL import Image

from common import run_tool, tool_parser
from datasets.coco import SPLITS, class_names, read_annotations
from reports.curves import plot_log
from reports.drawing import detection_tensors, draw_detections, truth_tensors
from reports.grid import save_grid
from util.errors import UserError


def main(args: argparse.Namespace) -> None:
    results = args.run / "results" / "val_detections.json"
    if not results.is_file():
        raise UserError(f"no detections {results}; main.py --eval --save_results --output_dir {args.run} writes them")
    coco = read_annotations(args.coco_path, "val")
    detections = defaultdict(list)
    for row in json.loads(results.read_text()):
        detections[row["image_id"]].append(row)
    folder = Path(args.coco_path) / SPLITS["val"][0]
    ids = sorted(coco.getImgIds())[: args.images]
    pictures = [draw_detections(Image.open(folder / coco.imgs[i]["file_name"]).convert("RGB"),
                                truth_tensors(coco.imgToAnns[i]), detection_tensors(detections[i]), class_names(coco),
                                args.score) for i in ids]
    save_grid(pictures, args.run / "detections.png")
    if (args.run / "log.txt").is_file():
        plot_log(args.run / "log.txt", args.run / "curves.png")


if __name__ == "__main__":
    parser = tool_parser(__doc__)
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER")
    parser.add_argument("--coco_path", required=True, metavar="DIR")
    parser.add_argument("--images", type=int, default=16, help="number of val images; default: %(default)s")
    parser.add_argument("--score", type=float, default=0.3, help="minimum score of a detection; default: %(default)s")
    run_tool(main, parser.parse_args())
