"""A grid of pictures in one file, with a legend of the box styles."""
import os
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

from reports.drawing import PALETTE, draw_prediction_box, draw_truth_box
from reports.fonts import font_for
from reports.labels import Box
from util.files import atomic_write
from util.integers import ceil_div

MAX_CELL_SIDE = 640  # px, so that viewers can open a grid of photographs


def save_grid(pictures: list[Image.Image], path: str | os.PathLike, columns: int = 4,
              title: str | None = None, legend: bool = True) -> None:
    """Writes a PNG with the pictures row by row in equal cells, under the title and a legend of the box styles.

    Raises ValueError if there are no pictures.
    """
    if not pictures:
        raise ValueError(f"no pictures to save in {path}")
    columns = min(columns, len(pictures))
    width, height = (min(MAX_CELL_SIDE, max(picture.size[axis] for picture in pictures)) for axis in (0, 1))
    text_size = max(14, columns * width // 80)  # legible when a wide grid is shrunk to the screen
    gap = text_size // 2
    header = _header(title, text_size, legend)
    page_width = max(columns * (width + gap) - gap, header.width) + 2 * gap
    rows = ceil_div(len(pictures), columns)
    page = Image.new("RGB", (page_width, header.height + rows * (height + gap) + 2 * gap), "white")
    page.paste(header, (gap, gap))
    for i, picture in enumerate(pictures):
        row, column = divmod(i, columns)
        tile = ImageOps.pad(picture.convert("RGB"), (width, height), color="#eeeeee")
        page.paste(tile, (gap + column * (width + gap), header.height + 2 * gap + row * (height + gap)))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        page.save(temporary, "PNG")


def _header(title: str | None, size: int, legend: bool) -> Image.Image:
    """The title, if there is one, over a line that shows each box style next to its meaning."""
    font, title_font, unit = font_for("", size), font_for(title or "", 1.25 * size), size // 10
    styles: dict[str, Callable[[ImageDraw.ImageDraw, Box], None]] = {
        "ground truth": lambda draw, box: draw_truth_box(draw, box, False, unit),
        "crowd": lambda draw, box: draw_truth_box(draw, box, True, unit),
        "prediction, one colour per class": lambda draw, box: draw_prediction_box(draw, box, PALETTE[0], unit),
    } if legend else {}
    width = max(sum(font.getlength(meaning) + 4 * size for meaning in styles) - size, title_font.getlength(title or ""))
    lines = [line for line in (title, styles) if line]
    header = Image.new("RGB", (round(width) + 1, 2 * size * len(lines)), "white")
    draw = ImageDraw.Draw(header, "RGBA")
    draw.text((0, size), title or "", fill="#222222", font=title_font, anchor="lm")
    x, middle = 0, header.height - size
    for meaning, draw_style in styles.items():
        box = (x, middle - size // 2, x + 2 * size, middle + size // 2)
        draw.rectangle(box, fill="#999999")
        draw_style(draw, box)
        draw.text((x + 2.5 * size, middle), meaning, fill="#222222", font=font, anchor="lm")
        x += round(font.getlength(meaning)) + 4 * size
    return header
