"""Detects objects in images: python tools/detect.py IMAGE_OR_FOLDER ... -c CONFIG --resume CHECKPOINT

Writes each image with its boxes into --output_dir, and detections.json: for each image file_name, width, height,
and its detections in descending order of score, each with class, category_id, score, and bbox [x, y, width, height] in
pixels. An image that cannot be read is named and skipped; the exit code is then 1. Nothing is written over an image
that is read.
"""
import argparse
import json
import sys
from collections import Counter
from pathlib import Path

import torch
from PIL import Image
from torchvision.ops import box_convert

from common import add_detector_flags, add_device_flag, run_tool, tool_parser
from inference.predictor import Predictor, read_image
from reports.drawing import draw_detections, truth_tensors
from util.errors import UserError
from util.files import atomic_write, write_text
from util.outputs import keep_inputs

WRITTEN = (".jpg", ".jpeg", ".png")  # for images of other kinds the picture is a PNG


def main(args: argparse.Namespace) -> int:
    """Returns the exit code."""
    if not 0 <= args.score <= 1:
        raise UserError(f"--score {args.score} must be from 0 to 1")
    files = find_images(args.images)
    listing = args.output_dir / "detections.json"
    pictures = [args.output_dir / (f.name if f.suffix.lower() in WRITTEN else f"{f.name}.png") for f in files]
    keep_inputs([*pictures, listing], [*files, args.config_file, args.resume])
    detector = Predictor.from_files(args.config_file, args.resume, args.options, args.device)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    records: list[dict] = []
    skipped = []
    for file, path in zip(files, pictures):
        try:
            image = read_image(file)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            skipped.append(file)
            continue
        found = detector(image)
        found = {name: value[found["scores"] >= args.score] for name, value in found.items()}
        picture = draw_detections(image, truth_tensors([]), found, detector.class_names, args.score)
        with atomic_write(path) as temporary:
            picture.save(temporary, Image.registered_extensions()[path.suffix.lower()])
        rows = as_rows(found, detector.class_names)
        records.append({"file_name": file.name, "width": image.width, "height": image.height, "detections": rows})
        counts = Counter(row["class"] for row in rows)
        print(f"{file}: " + (", ".join(f"{count} {name}" for name, count in counts.most_common()) or "nothing"))
    write_text(listing, json.dumps(records, indent=1) + "\n")
    print(f"wrote {len(records)} images and {listing.name} to {args.output_dir}")
    if skipped:
        print(f"skipped {len(skipped)} that cannot be read: {', '.join(map(str, skipped))}", file=sys.stderr)
    return 1 if skipped else 0


def find_images(paths: list[Path]) -> list[Path]:
    """The given files, and the images in the given folders. Raises UserError if there are none."""
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    files = []
    for path in paths:
        if not path.exists():
            raise UserError(f"no file or folder {path}")
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in known) if path.is_dir() else [path]
        if not inside:
            raise UserError(f"no image in the folder {path}")
        files += inside
    return files


def as_rows(found: dict[str, torch.Tensor], class_names: dict[int, str]) -> list[dict]:
    boxes = box_convert(found["boxes"], "xyxy", "xywh").tolist()
    return [{"class": class_names.get(label, f"class {label}"), "category_id": label, "score": round(score, 4),
             "bbox": [round(x, 2) for x in box]}
            for label, score, box in zip(found["labels"].tolist(), found["scores"].tolist(), boxes)]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = tool_parser(__doc__)
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE_OR_FOLDER")
    add_detector_flags(parser)
    parser.add_argument("--score", type=float, default=0.3, help="minimum score of a detection; default: %(default)s")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/detect"))
    add_device_flag(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_tool(main, parse_args())
