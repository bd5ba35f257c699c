"""Videos, and the picture of a camera as it comes."""
import html
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from inference.page.dropped import notice
from inference.page.seen import LOWEST
from inference.page.shared import SharedDetector
from inference.sources import open_source
from inference.video import frame_count, is_video, video_writer
from util.errors import UserError

HEIGHT = 560  # px of a video on the page
PREVIEW_EVERY = 0.5  # s between pictures of the frame that was done last
CAMERA_EVERY = 0.2  # s between pictures of a camera
CAMERA_SECONDS = 300  # after which a visitor must start the camera again


def build_video_tab(detector: SharedDetector, score: float) -> None:
    """Into the gradio.Blocks that is open."""
    import gradio as gr

    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=280):
            upload = gr.File(label="Video", file_types=["video"], height=130, elem_id="video_file")
            threshold = gr.Slider(LOWEST, 1, max(score, LOWEST), step=0.01, label="Score from", buttons=[],
                                  elem_id="video_score")
            with gr.Row():
                start = gr.Button("Detect", variant="primary", elem_id="video_start")
                stop = gr.Button("Cancel", elem_id="video_stop")
        with gr.Column(scale=5, min_width=420):
            status = gr.HTML('<div class="note">No video yet: drop one on the left.</div>', elem_id="video_status")
            preview = gr.Image(show_label=False, format="jpeg", interactive=False, visible=False, buttons=[],
                               height=HEIGHT, elem_id="video_preview")
            result = gr.Video(show_label=False, interactive=False, visible=False, autoplay=True, loop=True,
                              height=HEIGHT, buttons=["download"], elem_id="video_result")

    def run(path: str | None, score: float) -> Iterator[dict]:
        if path is None:
            yield {status: notice(["There is no video: drop one on the left."])}
            return
        yield {result: gr.update(value=None, visible=False), status: '<div class="note">Reading …</div>',
               preview: gr.update(value=None, visible=False)}
        with tempfile.TemporaryDirectory() as folder:
            annotated = Path(folder) / f"{Path(path).stem[:80]}_detections.mp4"
            try:
                for picture, text in annotate(detector, Path(path), annotated, score):
                    yield {preview: gr.update(value=picture, visible=True), status: text}
            except UserError as error:
                yield {status: notice([str(error).replace(path, Path(path).name)]), preview: gr.update(visible=False)}
                return
            yield {result: gr.update(value=annotated, visible=True), preview: gr.update(value=None, visible=False),
                   status: text}

    running = start.click(run, [upload, threshold], [result, preview, status], show_progress="hidden",
                          concurrency_limit=2)
    stop.click(lambda: {status: '<div class="note">Cancelled.</div>', preview: gr.update(value=None, visible=False)},
               None, [status, preview], cancels=[running], show_progress="hidden")


def annotate(detector: SharedDetector, path: Path, output: Path, score: float) -> Iterator[tuple[Image.Image, str]]:
    """Writes the video `output` with boxes. After a frame every PREVIEW_EVERY seconds, and after the last, gives the
    frame that was drawn last and, as HTML, how far it is. Raises UserError for what is no video."""
    if not is_video(path):
        raise UserError(f"{path} is no video")
    source, total, most, begin = open_source(path), frame_count(path), Counter[str](), time.monotonic()
    frames, shown = 0, begin
    with video_writer(output) as writer:
        for found in detector.predictor(source, score=score, stream=True):
            picture = found.draw()
            writer.write(picture, found.time)
            frames += 1
            most |= Counter(found.names)  # the larger of both counts
            now = time.monotonic()
            if now - shown >= PREVIEW_EVERY:
                shown = now
                yield picture, _progress(path.name, frames, total, frames / (now - begin), most)
    text = _progress(path.name, frames, frames, frames / (time.monotonic() - begin), most)
    yield picture, text + notice([f"Left out, because they cannot be read: {source.skipped.count} frames."]
                                 if source.skipped.count else [])


def build_live_tab(detector: SharedDetector, score: float) -> None:
    """Into the gradio.Blocks that is open."""
    import gradio as gr

    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=280):
            camera = gr.Image(sources=["webcam"], streaming=True, type="pil", show_label=False, elem_id="live_camera",
                              webcam_options=gr.WebcamOptions(mirror=False))
            threshold = gr.Slider(LOWEST, 1, max(score, LOWEST), step=0.01, label="Score from", buttons=[])
        with gr.Column(scale=5, min_width=420):
            status = gr.HTML('<div class="note">Start the camera on the left. Pictures stay between your browser and '
                             "the computer that runs this page.</div>", elem_id="live_status")
            drawn = gr.Image(show_label=False, format="jpeg", interactive=False, buttons=[], elem_id="live_picture")

    def look(picture: Image.Image | None, score: float) -> dict:
        if picture is None:
            return {status: gr.skip()}
        begin = time.perf_counter()
        found = detector.predictor(picture.convert("RGB"), score=score)
        milliseconds = 1000 * (time.perf_counter() - begin)
        return {drawn: found.draw(), status: _chips(Counter(found.names), f"{milliseconds:.0f} ms")}

    camera.stream(look, [camera, threshold], [drawn, status], stream_every=CAMERA_EVERY, time_limit=CAMERA_SECONDS,
                  concurrency_limit=4, show_progress="hidden")


def _progress(name: str, frames: int, total: int | None, rate: float, most: Counter[str]) -> str:
    known = f" of {total}" if total is not None and total >= frames else ""
    share = f"<progress max='{max(total, frames)}' value='{frames}'></progress>" if total else ""
    return share + _chips(most, f"{html.escape(name)} · frame {frames}{known} · {rate:.1f} frames/s",
                          "the most in one frame: ")


def _chips(counts: Counter[str], facts: str, explanation: str = "") -> str:
    chips = [f'<span class="chip">{html.escape(name)} <b>{count}</b></span>' for name, count in counts.most_common()]
    return (f'<div class="summary">{explanation if chips else ""}{"".join(chips)}'
            f'<span class="facts">{facts}</span></div>')
