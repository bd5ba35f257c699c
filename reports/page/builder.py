"""Writes report.html: one file that a browser opens without network, from page.html, page.css and the scripts here.

Texts of the data set, such as file names, reach the page as JSON that cannot end its element, and only as text. The
page's policy allows no other scripts, styles or addresses than its own.
"""
import base64
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

from datasets.coco_eval import EvaluationSummary
from reports.error_analysis import Matches, OperatingPoint
from reports.page.content import costs, page_content, read_pictures
from util.files import write_text

SOURCES = Path(__file__).parent
SCRIPTS = ("numbers.js", "boxes.js", "page.js")


def write_page(path: Path, summary: EvaluationSummary, matches: Matches, points: list[OperatingPoint | None],
               images: Path, facts: Mapping[str, object]) -> None:
    """images: the folder with what was evaluated. points: of each class. facts: listed at the top."""
    coco, ids = summary.truth, sorted(summary.detections)
    pictures = read_pictures(coco, ids, costs(coco, ids, matches), images)
    write_text(path, assembled(page_content(summary, matches, points, pictures, facts)))


def assembled(content: Mapping[str, object]) -> str:
    style = _source("page.css")
    script = "\n".join(_source(name) for name in SCRIPTS)
    policy = (f"default-src 'none'; img-src data: blob:; style-src {_hashed(style)}; script-src {_hashed(script)}; "
              "base-uri 'none'; form-action 'none'")
    parts = {"policy": policy, "style": style, "script": script, "report": as_json(content)}
    return re.sub(r"@(policy|style|script|report)@", lambda place: parts[place[1]], _source("page.html"))


def as_json(content: object) -> str:
    """JSON for a script element: without what could end it or begin a comment."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def _source(name: str) -> str:
    return (SOURCES / name).read_text(encoding="utf-8")


def _hashed(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
