"""Text beside the boxes of a picture, placed so that labels do not cover each other."""
from dataclasses import dataclass

from PIL import ImageDraw

from reports.fonts import Font, font_for

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels, all four drawn


@dataclass(frozen=True)
class Label:
    """A class name, which may be shortened, and a suffix, which may not; `above` the box, or below."""

    name: str
    suffix: str
    box: Box
    above: bool
    colour: str
    background: str


def write_labels(draw: ImageDraw.ImageDraw, labels: list[Label], size: float, canvas_size: tuple[int, int]) -> None:
    """Writes each label at its box, in letters of `size` px; where they must overlap, the first is on top."""
    placed: list[tuple[str, Font, Box]] = []
    for label in labels:
        font = font_for(label.name, size)
        text = _shortened(label, font, canvas_size[0])
        taken = [place for *_, place in placed]
        placed.append((text, font, _free_place(text, font, label.box, label.above, canvas_size, taken)))
    for label, (text, font, place) in reversed(list(zip(labels, placed))):
        draw.rectangle(place, fill=label.background)
        centre = (place[0] + place[2]) / 2, (place[1] + place[3]) / 2
        draw.text(centre, text, fill=label.colour, font=font, anchor="mm")


def _shortened(label: Label, font: Font, width: int) -> str:
    """Name and suffix, with as much of the name as fits into the width."""
    name = label.name
    text = name + label.suffix
    while name and font.getlength(text) + font.size / 2 > width:
        name = name[:-1]
        text = f"{name}…{label.suffix}"
    return text


def _free_place(text: str, font: Font, box: Box, above: bool, canvas_size: tuple[int, int], taken: list[Box]) -> Box:
    """Where to write the text: at a corner of the box, inside the picture, off the taken places if that is possible."""
    width, height = round(font.getlength(text) + font.size / 2), sum(font.getmetrics())
    left, top, right, bottom = box
    rows = [top - height, top, bottom + 1, bottom - height + 1]  # outside and inside of the upper and the lower side
    places = []
    for row in rows if above else rows[2:] + rows[:2]:
        y = max(0, min(row, canvas_size[1] - height))
        for column in (left, right - width + 1):
            x = max(0, min(column, canvas_size[0] - width))
            places.append((x, y, x + width - 1, y + height - 1))
    return next((place for place in places if not any(_overlap(place, other) for other in taken)), places[0])


def _overlap(a: Box, b: Box) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]
