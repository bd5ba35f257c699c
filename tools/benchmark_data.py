"""What a large data set costs before the first step, and how fast images are loaded.

    python tools/benchmark_data.py start FOLDER [--times 10]     time and memory to the first sample, and of a worker
    python tools/benchmark_data.py loader                        samples per second, against torchvision's own classes
    python tools/benchmark_data.py augmentations DATA            milliseconds a sample, with each augmentation
    python tools/benchmark_data.py draft FOLDER --side PX        what JPEG's draft mode would gain and change there

`start` writes a COCO set into FOLDER, unless it is there: COCO's numbers of images and boxes, or `--times` as many
boxes. Every start is a program of its own, which imports what main.py imports; the first reads the annotations, the
later ones find them in FOLDER/data_cache. --code DIR measures another version of the project there; --processes N
starts that many at once, as torchrun does.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from common import ROOT, run_tool, tool_parser
from util.errors import UserError
from util.markdown import table, three_digits

IMAGES, BOXES, CLASSES = 118_287, 860_001, 90  # COCO's train2017
SIDES = (640, 480)  # of every image, px
PART = 20_000  # annotations that are written at once
SOURCES = 16  # picture files; the others are further names of them


def main(args: argparse.Namespace) -> int:
    """Returns the exit code."""
    if args.folder is None and args.part != "loader":
        raise UserError(f"{args.part} needs a FOLDER")
    if args.part != "start":
        import data_loading  # here, because `start` measures other processes

        parts = {"loader": lambda: data_loading.compare_loaders(args.seconds),
                 "augmentations": lambda: data_loading.compare_augmentations(args.folder, args.seconds),
                 "draft": lambda: data_loading.compare_draft(args.folder, args.side)}
        print(parts[args.part]())
        return 0
    root = args.folder / f"boxes_x{args.times}"
    if not (root / "complete").exists():
        print(f"writing {root}", flush=True)
        write_set(root, IMAGES, BOXES * args.times)
    size = (root / "annotations/instances_train2017.json").stat().st_size
    print(f"{IMAGES} images, {BOXES * args.times} boxes, {size / 1e6:.0f} MB of annotations; {args.processes} at once")
    rows = []
    for number in range(args.starts):
        for found in start(args.code, root, args.folder / "data_cache", args.processes):
            rows.append(["first" if number == 0 else "later", *(three_digits(found[name]) for name in COLUMNS)])
            print(json.dumps(found), flush=True)
    print("\n" + table(["start", *(name.replace("_", " ") for name in COLUMNS)], rows))
    return 0


# Seconds from the start of the program; MB, of which "before" is what the imports take.
COLUMNS = ("seconds", "imports_seconds", "peak_mb", "kept_mb", "kept_own_mb", "before_mb", "worker_mb")


def start(code: Path, root: Path, cache: Path, processes: int) -> list[dict]:
    """What each of the processes that are started at once measures."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(29_500 + os.getpid() % 1000)}
    running = []
    for rank in range(processes):
        group = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)} | address
        command = [sys.executable, str(ROOT / "tools/data_probe.py"), str(code), str(root), str(cache),
                   str(time.time())]
        running.append(subprocess.Popen(command, cwd=code, stdout=subprocess.PIPE, text=True,
                                        env=os.environ | (group if processes > 1 else {})))
    found = []
    for process in running:
        text, _ = process.communicate(timeout=1800)
        if process.returncode:
            raise UserError(f"a start ended with exit code {process.returncode}")
        found.append(json.loads(text.splitlines()[-1]))
    return found


def write_set(root: Path, images: int, boxes: int) -> None:
    """A COCO set of that many images and boxes with polygons; val2017 has the first hundred of them."""
    generator = np.random.default_rng(0)
    (root / "annotations").mkdir(parents=True)
    _write_pictures(root / "train2017", images)
    _write_pictures(root / "val2017", 100)
    for split, image_count, box_count in (("train", images, boxes), ("val", 100, 1000)):
        with (root / f"annotations/instances_{split}2017.json").open("w", encoding="utf-8") as file:
            file.write('{"info": {"description": "generated"}, "licenses": [], "images": ')
            json.dump([_image(i) for i in range(1, image_count + 1)], file)
            file.write(', "annotations": [')
            for first in range(0, box_count, PART):
                rows = _annotations(generator, first, min(PART, box_count - first), image_count)
                file.write((", " if first else "") + json.dumps(rows)[1:-1])
            file.write('], "categories": ')
            json.dump([{"id": i, "name": f"class {i}", "supercategory": "thing"} for i in range(1, CLASSES + 1)], file)
            file.write("}")
    (root / "complete").touch()


def _image(number: int) -> dict:
    """With the keys that COCO's have."""
    name = f"{number:012d}.jpg"
    return {"license": 4, "file_name": name, "coco_url": f"http://images.cocodataset.org/train2017/{name}",
            "height": SIDES[1], "width": SIDES[0], "date_captured": "2013-11-14 11:18:45",
            "flickr_url": f"http://farm9.staticflickr.com/8186/{number:010d}_4e622c8349_z.jpg", "id": number}


def _annotations(generator: np.random.Generator, first: int, count: int, images: int) -> list[dict]:
    """Outlines have 6 to 36 corners, which gives COCO's bytes per box."""
    starts = (generator.random((count, 2)) * (400, 300)).round(2)
    sides = (generator.random((count, 2)) * (200, 150) + 5).round(2)
    corners = generator.integers(6, 37, count)
    shown, classes = generator.integers(1, images + 1, count), generator.integers(1, CLASSES + 1, count)
    rows = []
    for i in range(count):
        outline = (generator.random((corners[i], 2)) * sides[i] + starts[i]).round(2).reshape(-1)
        rows.append({"segmentation": [outline.tolist()], "area": round(float(sides[i].prod()) * 0.7, 4), "iscrowd": 0,
                     "image_id": int(shown[i]), "bbox": [*starts[i].tolist(), *sides[i].tolist()],
                     "category_id": int(classes[i]), "id": first + i + 1})
    return rows


def _write_pictures(folder: Path, count: int) -> None:
    """Files of a few pictures under many names; a file system allows 65,000 of one file at most."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(dir=folder.parent) as sources:
        for number in range(SOURCES):
            coarse = generator.integers(256, size=(SIDES[1] // 8, SIDES[0] // 8, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize(SIDES, Image.Resampling.BICUBIC).save(f"{sources}/{number}.jpg", quality=95)
        for number in range(1, count + 1):
            os.link(f"{sources}/{number % SOURCES}.jpg", folder / f"{number:012d}.jpg")


def get_args_parser() -> argparse.ArgumentParser:
    parser = tool_parser(__doc__)
    parser.add_argument("part", choices=("start", "loader", "augmentations", "draft"))
    parser.add_argument("folder", nargs="?", type=Path, metavar="FOLDER",
                        help="start: where the generated set is kept; augmentations: a data set; draft: the pictures")
    parser.add_argument("--times", type=int, default=1, help="start: as many times COCO's boxes; default: %(default)s")
    parser.add_argument("--starts", type=int, default=3, help="start: how many, one after the other; default: "
                                                               "%(default)s")
    parser.add_argument("--processes", type=int, default=1, help="start: at once; default: %(default)s")
    parser.add_argument("--code", type=Path, default=ROOT, help="start: the project's folder; default: this one")
    parser.add_argument("--side", type=int, default=240, help="draft: shorter side that the images will have, px; "
                                                              "default: %(default)s")
    parser.add_argument("--seconds", type=float, default=20, help="loader, augmentations: of each measurement; "
                                                                  "default: %(default)s")
    return parser


if __name__ == "__main__":
    run_tool(main, get_args_parser().parse_args())
