"""Detects objects: python tools/detect.py SOURCE ... --weights FILE [-c CONFIG]

SOURCE is an image, a folder, a pattern such as 'street_*.jpg', a video or an rtsp:// address; --camera 0 takes the
first camera instead. FILE is a checkpoint, exported weights, or an exported model (.onnx, .xml, .pt2); a training's
checkpoint and exported weights carry their config.

Writes into --output_dir
- for images: each with its boxes, and detections.json: for each image file_name, width, height, and its detections in
  descending order of score, each with class, category_id, score, and bbox [x, y, width, height] in pixels
- for videos, cameras and addresses: each as an MP4 video with boxes, and detections.jsonl: one such line per frame,
  with its number (frame) and seconds since the first (time), written as the frames come; Ctrl-C ends both properly

What cannot be read is named and skipped, broken frames too; the exit code is then 1. Nothing is written over an input.
"""
import argparse
import contextlib
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TextIO

from PIL import Image
from tqdm import tqdm

from common import add_detector_device_flag, add_detector_flags, run_tool, tool_parser
from inference.predictor import Predictor, default_device
from inference.results import Detections
from inference.scores import parse_score
from inference.sources import Source, open_source
from inference.video import VideoWriter, is_video, video_writer
from inference.window import Window
from util.errors import UserError
from util.files import atomic_write, write_text, writing
from util.outputs import keep_inputs
from util.signals import StopRequest

WRITTEN = (".jpg", ".jpeg", ".png")  # for images of other kinds the picture is a PNG


def main(args: argparse.Namespace) -> int:
    """Returns the exit code."""
    score, source = parse_score(args.score), find_source(args)
    output = Output(args.output_dir, source, pictures=not args.no_pictures)
    keep_inputs(output.files, [*source.files, args.config_file, args.resume])
    window = Window("detections; q closes") if args.show else None
    detector = Predictor(args.resume, args.config_file, options=args.options, amp=args.amp, compile=args.compile,
                         device=args.device or default_device(args.resume))
    tiles = args.tiles[0] if args.tiles is not None and len(args.tiles) == 1 else args.tiles
    results = detector(source, score, args.batch_size, tiles, args.overlap, stream=True)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    source.skipped.report = lambda message: tqdm.write(f"error: {message}", file=sys.stderr)
    stop, start = StopRequest(), time.monotonic()
    unit = " images" if output.lines is None else " frames"
    with output, tqdm(total=source.frame_count(), unit=unit, dynamic_ncols=True, leave=False, disable=None) as progress:
        for found in stop.until(results):
            picture = output.add(found)
            if window is not None:
                window.show(picture or found.draw())
            progress.update()
            if window is not None and window.closed:
                break
        results.close()
    rate = output.count / (time.monotonic() - start)
    listings = " and ".join(path.name for path in output.listings)
    print(f"wrote {output.count}{unit} and {listings} to {args.output_dir} ({rate:.2f} per second)")
    if source.skipped.count:
        print(f"skipped {source.skipped.count} that cannot be read: {source.skipped}", file=sys.stderr)
    if stop.requested:
        print("stopped", file=sys.stderr)
        return stop.exit_code
    return 1 if source.skipped.count else 0


def find_source(args: argparse.Namespace) -> Source:
    """Raises UserError for what is not there, and if there is none."""
    if args.camera is not None:
        if args.sources:
            raise UserError("--camera takes the place of files: leave one of them out")
        return open_source(args.camera)
    if not args.sources:
        raise UserError("name an image, folder, video or address, or pass --camera 0")
    source = open_source(args.sources)
    alone = len(source.items) == 1 and (source.live or is_video(source.files[0]))
    return Source(source.items, alone)


class Output:
    """A context that writes the files of a run. count: pictures so far."""

    def __init__(self, folder: Path, source: Source, pictures: bool):
        self.pictures: dict[str, Path] = {}
        for item in source.items:
            if isinstance(item, Path):
                suffixes, other = ((".mp4",), ".mp4") if is_video(item) else (WRITTEN, ".png")
                name = item.name if item.suffix.lower() in suffixes else f"{item.name}{other}"
            else:
                name = f"camera{item}.mp4" if isinstance(item, int) else "stream.mp4"
            self.pictures[str(item)] = folder / name
        images = sum(not is_video(item) for item in source.files)
        self.listing = folder / "detections.json" if images else None
        self.lines = folder / "detections.jsonl" if images < len(source.items) else None
        self.source, self.draws, self.count = source, pictures, 0
        self._records: list[dict] = []
        self._line_file: TextIO | None = None
        self._video: tuple[str, VideoWriter] | None = None
        self._open_files, self._open_video = contextlib.ExitStack(), contextlib.ExitStack()

    @property
    def listings(self) -> list[Path]:
        return [path for path in (self.listing, self.lines) if path is not None]

    @property
    def files(self) -> list[Path]:
        """All that may be written. The same input twice gives the same output twice."""
        names = [str(item) for item in self.source.items]
        return [*(self.pictures[name] for name in names if self.draws), *self.listings]

    def add(self, found: Detections) -> Image.Image | None:
        """Returns the picture, where one is drawn."""
        picture = found.draw() if self.draws else None
        place = str(self.source.items[0]) if self.source.live else found.path
        if found.frame is None:
            self._add_image(found, picture, self.pictures[place])
        else:
            self._add_frame(found, picture, place)
        self.count += 1
        return picture

    def _add_image(self, found: Detections, picture: Image.Image | None, path: Path) -> None:
        if picture is not None:
            with atomic_write(path) as temporary:
                picture.save(temporary, Image.registered_extensions()[path.suffix.lower()])
        self._records.append(as_record(found, Path(found.path).name))
        counts = Counter(found.names)
        listed = ", ".join(f"{count} {name}" for name, count in counts.most_common())
        tqdm.write(f"{found.path}: {listed or 'nothing'}")

    def _add_frame(self, found: Detections, picture: Image.Image | None, place: str) -> None:
        self._open_lines()
        if picture is not None and found.time is not None:
            if self._video is None or self._video[0] != place:
                self._open_video.close()  # the one before is complete
                self._video = place, self._open_video.enter_context(video_writer(self.pictures[place]))
            self._video[1].write(picture, found.time)
        if self._line_file is not None and self.lines is not None:
            place = found.path if self.source.live else Path(found.path).name
            line = json.dumps({"frame": found.frame, "time": round(found.time or 0, 6)} | as_record(found, place))
            with writing(self.lines):
                self._line_file.write(f"{line}\n")
                self._line_file.flush()

    def _open_lines(self) -> None:
        if self._line_file is None and self.lines is not None:
            with writing(self.lines):
                self.lines.unlink(missing_ok=True)  # where it is a link, what that leads to stays
                self._line_file = self._open_files.enter_context(self.lines.open("x", encoding="utf-8"))

    def __enter__(self) -> "Output":
        return self

    def __exit__(self, *error: object) -> None:
        with self._open_files, self._open_video:
            if error[0] is None:
                self._open_lines()  # those of an earlier run go, even if no frame has come
            if self.listing is not None and error[0] is None:
                write_text(self.listing, json.dumps(self._records, indent=1) + "\n")
            self._open_video.__exit__(*error)  # type: ignore[arg-type]


def as_record(found: Detections, name: str) -> dict:
    rows = found.to_coco()
    return {"file_name": name, "width": found.size[0], "height": found.size[1], "detections": [
        {"class": name, "category_id": row["category_id"], "score": round(row["score"], 4),
         "bbox": [round(x, 2) for x in row["bbox"]]} for name, row in zip(found.names, rows)]}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = tool_parser(__doc__)
    parser.add_argument("sources", nargs="*", metavar="SOURCE")
    parser.add_argument("--camera", type=int, metavar="N", help="the camera of this number, from 0")
    add_detector_flags(parser)
    parser.add_argument("--score", nargs="+", default=["0.3"], metavar="LIMIT", help="minimum score of a detection: a "
                        "number, or NAME=NUMBER for some classes (a further number stands for the rest), or 'best': "
                        "the scores of the best F1, which exported weights carry; default: 0.3")
    parser.add_argument("--batch_size", type=int, default=1, help="images at once; default: %(default)s")
    parser.add_argument("--tiles", nargs="+", type=int, metavar="PX", help="search large images in tiles of this side, "
                        "or height and width")
    parser.add_argument("--overlap", type=float, default=0.2, help="part of a tile's side that neighbours share; "
                        "default: %(default)s")
    parser.add_argument("--amp", action="store_true", help="half precision")
    parser.add_argument("--compile", action="store_true", help="torch.compile; takes minutes to start")
    parser.add_argument("--show", action="store_true", help="show the pictures in a window, too")
    parser.add_argument("--no_pictures", action="store_true", help="write the listings only")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/detect"))
    add_detector_device_flag(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_tool(main, parse_args())
