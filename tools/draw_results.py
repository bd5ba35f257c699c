"""Draws the results of a run: python tools/draw_results.py RUN_FOLDER --data PATH

Reads RUN_FOLDER/results/val_detections.json (written by main.py --eval --save_results) and log.txt, and writes
detections.png, a grid of val images with ground truth and detections, and curves.png, the training by epoch. An image
that cannot be read is named and skipped; the exit code is then 1.
"""
import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

from common import run_tool, tool_parser
from datasets.coco import class_names, read_annotations
from datasets.data import DetectionData
from datasets.images import find_files, read_image
from reports.curves import plot_log
from reports.drawing import detection_tensors, draw_detections, truth_tensors
from reports.grid import save_grid
from util.errors import UserError
from util.outputs import keep_inputs


def main(args: argparse.Namespace) -> int:
    """Returns the exit code."""
    results = args.run / "results" / "val_detections.json"
    if not results.is_file():
        raise UserError(f"no detections {results}; main.py --eval --save_results --output_dir {args.run} writes them")
    data = DetectionData(args.data)
    folder = data.source("val").folder
    keep_inputs([args.run / "detections.png", args.run / "curves.png"], data.source("val").folders)
    coco = read_annotations(data, "val")
    detections = defaultdict(list)
    for row in json.loads(results.read_text(encoding="utf-8")):
        detections[row["image_id"]].append(row)
    chosen = [coco.imgs[image_id] for image_id in sorted(coco.getImgIds())[: args.images]]
    files, _ = find_files(folder, [row["file_name"] for row in chosen])
    pictures, skipped = [], 0
    for row in chosen:
        image_id, name = row["id"], row["file_name"]
        try:
            image = read_image(folder / files.get(name, name), (row["width"], row["height"]))
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            skipped += 1
            continue
        pictures.append(draw_detections(image, truth_tensors(coco.imgToAnns[image_id]),
                                        detection_tensors(detections[image_id]), class_names(coco), args.score))
    if pictures:
        save_grid(pictures, args.run / "detections.png")
    if (args.run / "log.txt").is_file():
        plot_log(args.run / "log.txt", args.run / "curves.png")
    return 1 if skipped else 0


if __name__ == "__main__":
    parser = tool_parser(__doc__)
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER")
    parser.add_argument("--data", "--coco_path", required=True, metavar="PATH")
    parser.add_argument("--images", type=int, default=16, help="number of val images; default: %(default)s")
    parser.add_argument("--score", type=float, default=0.3, help="minimum score of a detection; default: %(default)s")
    run_tool(main, parser.parse_args())
