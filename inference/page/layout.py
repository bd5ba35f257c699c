"""The page as a whole, and how it is served."""
import html
import threading
from pathlib import Path
from typing import Any

from inference.page.images_tab import build_images_tab
from inference.page.shared import SharedDetector
from inference.page.video_tab import build_live_tab, build_video_tab
from util.errors import UserError

FILE_LIFETIME = 3600  # s, after which what visitors sent, and what they were shown, is removed
MOST_SESSIONS = 100
LARGEST_UPLOAD = "2gb"
STYLE = Path(__file__).with_name("page.css")


def build_page(detector: SharedDetector, title: str, score: float) -> Any:
    """The page (gradio.Blocks) of a detector that is called `title`; `score` is the threshold at the start."""
    import gradio as gr

    with gr.Blocks(title=f"{title} · Lite DETR", analytics_enabled=False, fill_width=True,
                   delete_cache=(FILE_LIFETIME // 4, FILE_LIFETIME)) as page:
        gr.HTML(f"<header><h1>{html.escape(title)}</h1><p>{_description(detector)}</p></header>")
        with gr.Tab("Images"):
            build_images_tab(detector, score)
        with gr.Tab("Video"):
            build_video_tab(detector, score)
        with gr.Tab("Live camera"):
            build_live_tab(detector, score)
    return page.queue(default_concurrency_limit=8, max_size=MOST_SESSIONS, api_open=False)


def serve(page: Any, host: str, port: int) -> None:
    """Until the program is interrupted. The page loads nothing from another server. Raises UserError for a port that is
    taken or a host that this computer is not."""
    import gradio as gr

    theme = gr.themes.Default(primary_hue="indigo", secondary_hue="indigo", neutral_hue="slate",
                              font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    try:
        page.launch(server_name=host, server_port=port, share=False, theme=theme, css=STYLE.read_text(encoding="utf-8"),
                    footer_links=[], run_history=False, ssr_mode=False, enable_monitoring=False, quiet=True,
                    prevent_thread_lock=True, state_session_capacity=MOST_SESSIONS, max_file_size=LARGEST_UPLOAD)
    except OSError as error:
        raise UserError(f"cannot serve {host}, port {port}, which another program may use already: choose one with "
                        "--port") from error
    print(f"open {page.local_url} in a browser; Ctrl-C ends the page", flush=True)
    try:
        threading.Event().wait()
    finally:
        page.close(verbose=False)


def _description(detector: SharedDetector) -> str:
    """Of the detector, as HTML: what it is, what it finds, and what was measured."""
    card = detector.predictor.card
    names = [name for name in card.class_names.values() if name not in ("__background__", "N/A")]
    listed = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    parts = [str(card.config.get("modelname", "")), f"finds {listed}" if names else ""]
    if "AP" in card.measured:
        parts.append(f"AP {card.measured['AP']:.3f}" + (f" on {card.measured_on}" if card.measured_on else ""))
    return " · ".join(html.escape(part) for part in parts if part)
