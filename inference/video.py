"""Videos and cameras, read and written by PyAV one frame at a time."""
import contextlib
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL import Image

from inference.frames import Frame, Skipped
from util.errors import UserError
from util.file_kind import file_kind
from util.files import atomic_write, cannot_write

SUFFIXES = {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv",
            ".3gp", ".ogv", ".vob", ".mxf", ".y4m", ".h264", ".264", ".h265", ".hevc", ".mjpeg"}
UPRIGHT = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
CLOCK = Fraction(1, 90_000)  # of the times in a written video, s
ENCODERS = ("libx264", "libopenh264", "mpeg4")  # the first that PyAV has; builds without GPL lack libx264
PLAYLISTS = {"concat", "hls", "dash", "imf"}
WAIT = 10  # seconds for an address to answer
CAMERAS = {"Linux": ("/dev/video{}", "v4l2"), "Darwin": ("{}", "avfoundation")}


def is_video(path: str | os.PathLike) -> bool:
    """By its name."""
    return Path(path).suffix.lower() in SUFFIXES


def is_address(source: str) -> bool:
    return source.startswith(("rtsp://", "rtsps://"))


@dataclass(frozen=True)
class Opening:
    """What PyAV opens, with which container format and options. name: for the user."""

    name: str
    file: str
    format: str | None = None
    options: tuple[tuple[str, str], ...] = ()
    live: bool = False

    @classmethod
    def of(cls, source: str | os.PathLike | int) -> "Opening":
        """Of a file, an rtsp address, or the number of a camera. Raises UserError for a camera that is not there."""
        if isinstance(source, int):
            pattern, form = CAMERAS.get(platform.system(), ("", ""))
            if not form:
                raise UserError(f"cameras cannot be opened on {platform.system()}: pass a video or an rtsp address")
            file = pattern.format(source)
            if form == "v4l2" and not Path(file).exists():
                there = ", ".join(sorted(str(path) for path in Path("/dev").glob("video*"))) or "none"
                raise UserError(f"there is no camera {source} ({file}); cameras here: {there}")
            return cls(f"camera {source}", file, form, live=True)
        if is_address(str(source)):
            options = (("rtsp_transport", "tcp"), ("timeout", str(WAIT * 1_000_000)))
            return cls(_without_password(str(source)), str(source), options=options, live=True)
        return cls(str(source), f"file:{source}", options=(("protocol_whitelist", "file"),))  # playlists lead nowhere


def read_video(source: str | os.PathLike | int, skipped: Skipped) -> Iterator[Frame]:
    """The frames, upright as the video's metadata say; broken ones are skipped.

    Raises UserError for what cannot be opened and for what has no frames.
    """
    av, opening = _av(), Opening.of(source)
    with _opened(av, opening) as container:
        stream = container.streams.video[0]
        stream.thread_type = "SLICE" if opening.live else "AUTO"  # threads over frames would delay a live picture
        start, rate = None, stream.average_rate or Fraction(25)
        for number, picture in _decoded(av, container, stream, opening.name, skipped):
            rgb = picture.to_image()
            turn = UPRIGHT.get(round(picture.rotation) % 360)
            time = float(number / rate) if picture.time is None else picture.time
            start = time if start is None else start
            yield Frame(rgb if turn is None else rgb.transpose(turn), opening.name, number, time - start)


def frame_count(source: str | os.PathLike | int) -> int | None:
    """As the video's header says; None where it does not or cannot be read."""
    with contextlib.suppress(UserError):
        opening = Opening.of(source)
        if not opening.live:
            with _opened(_av(), opening) as container:
                return container.streams.video[0].frames or None
    return None


def _decoded(av: ModuleType, container: Any, stream: Any, name: str, skipped: Skipped) -> Iterator[tuple[int, Any]]:
    """The pictures, each with its place; broken ones have places, too. Where a file is cut, the picture in which it is
    counts with those that are missing, as one. Raises UserError if there is no whole picture."""
    packets, place, time, end = container.demux(stream), 0, 0.0, ""
    broken: list[tuple[str, str]] = []  # name and message, since the last whole picture
    while True:
        try:
            packet = next(packets, None)
        except (av.FFmpegError, OSError) as error:  # the file ends early, or the camera is gone
            end = f"{name}: it ends after {time:.2f} s ({_reason(error)})"
            break
        if packet is None:
            break
        try:
            pictures = packet.decode()
        except av.FFmpegError as error:
            broken.append((f"{name} at {time:.2f} s", f"{name}: a frame after {time:.2f} s is broken "
                           f"({_reason(error)})"))
            place += 1
            continue
        for picture in pictures:
            time = picture.time or time
            if picture.is_corrupt:
                broken.append((f"{name} at {time:.2f} s", f"{name}: the frame at {time:.2f} s is broken"))
            else:
                while broken:
                    skipped.add(*broken.pop(0))
                yield place, picture
            place += 1
    end_place = place - len(broken)
    if not end_place:
        raise UserError(f"{name}: no frame of it can be read")
    if not end and stream.frames > place:
        end = f"{name}: it ends after {end_place} of {stream.frames} frames"
    for fault in [(name, end)] if end else broken:
        skipped.add(*fault)


@contextlib.contextmanager
def _opened(av: ModuleType, opening: Opening) -> Iterator[Any]:
    try:
        container = av.open(opening.file, format=opening.format, options=dict(opening.options),
                            timeout=None if not opening.live else (WAIT, None))
    except (av.FFmpegError, OSError, ValueError) as error:
        path = Path(opening.name)
        kind = file_kind(path) if path.is_file() and os.access(path, os.R_OK) else ""
        reason = f"it is {kind}" if kind else _reason(error)
        raise UserError(f"cannot open the video {opening.name}: {reason}") from error
    with container:
        if PLAYLISTS & set(container.format.name.split(",")):
            raise UserError(f"cannot open the video {opening.name}: it is a list of other files")
        if not container.streams.video:
            raise UserError(f"{opening.name}: there is no picture in it, only {_kinds(container)}")
        yield container


def _kinds(container: Any) -> str:
    return ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):  # PyAV reads the texts in a container
        return "it is damaged"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _without_password(address: str) -> str:
    scheme, _, rest = address.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


class VideoWriter:
    """Pictures of another size than the first are resized to that; odd sides lose a pixel."""

    def __init__(self, av: ModuleType, container: Any):
        self.frames = 0
        self._av, self._container = av, container
        self._stream: Any = None
        self._last = -1

    def write(self, picture: Image.Image, time: float) -> None:
        """time: seconds, later than that of the picture before."""
        if self._stream is None:
            self._stream = self._new_stream(picture)
        size = (self._stream.width, self._stream.height)
        frame = self._av.VideoFrame.from_image(picture if picture.size == size else picture.resize(size))
        self._last = max(self._last + 1, round(time / CLOCK))
        frame.pts, frame.time_base = self._last, CLOCK
        self._container.mux(self._stream.encode(frame))
        self.frames += 1

    def finish(self) -> None:
        if self._stream is not None:
            self._container.mux(self._stream.encode(None))

    def _new_stream(self, picture: Image.Image) -> Any:
        name = next(name for name in ENCODERS if name in self._av.codecs_available)
        stream = self._container.add_stream(name, options={"preset": "veryfast"} if name == "libx264" else {})
        stream.width, stream.height = (max(2, side - side % 2) for side in picture.size)
        stream.pix_fmt = "yuv420p"  # what every player shows
        stream.codec_context.time_base = CLOCK
        return stream


@contextlib.contextmanager
def video_writer(path: Path) -> Iterator[VideoWriter]:
    """Writes an MP4 video without sound; the file is there when the block ends without an error."""
    av = _av()
    with atomic_write(path) as temporary:
        try:
            with av.open(f"file:{temporary}", "w", format="mp4") as container:
                writer = VideoWriter(av, container)
                yield writer
                writer.finish()
        except av.FFmpegError as error:  # a full disk is an error of the file, not of the codec
            raise cannot_write(path, error) from error
        if not writer.frames:
            raise UserError(f"cannot write {path}: there is no picture for it")


def _av() -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise UserError("videos and cameras need the package av: pip install av") from error
    return av
