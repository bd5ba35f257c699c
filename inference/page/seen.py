"""One image as a session of the page keeps it: what was found, and what of it is shown."""
import html
from collections import Counter
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from inference.sampling import Inspected
from reports.attention import draw_heat_map, draw_samples, level_colour, region_around
from reports.drawing import PALETTE, draw_detections, truth_tensors

LOWEST = 0.05  # score of what is kept, and the smallest threshold
SMALLEST_SIDE, LARGEST_SIDE = 960, 1600  # px of the longer side of a picture in the page
HEADERS = ["#", "class", "score", "left", "top", "width", "height"]


@dataclass(frozen=True)
class Seen:
    """picture: the image, see page_picture. names: of the classes, by category id. milliseconds: from the image
    in memory to its detections."""

    title: str
    picture: Image.Image
    inspected: Inspected
    names: dict[int, str]
    milliseconds: float

    @property
    def found(self) -> dict[str, Tensor]:
        return self.inspected.found

    @property
    def scale(self) -> float:
        """Of the picture, over the image."""
        return self.picture.width / self.inspected.size[0]

    def name(self, label: int) -> str:
        return self.names.get(label, f"class {label}")

    def classes(self) -> list[int]:
        """The category ids that were found, the most frequent first."""
        return [label for label, _ in Counter(self.found["labels"].tolist()).most_common()]

    def visible(self, score: float, classes: list[int]) -> list[int]:
        """The places of the detections that have at least this score and one of these classes."""
        return [i for i, (s, label) in enumerate(zip(self.found["scores"].tolist(), self.found["labels"].tolist()))
                if s >= score and label in classes]

    def at(self, x: float, y: float, visible: list[int]) -> int | None:
        """Of the visible detections the one with the smallest box around a point of the picture, if there is one."""
        boxes = self.found["boxes"][visible] * self.scale
        inside = (boxes[:, :2] <= torch.tensor([x, y])).all(1) & (boxes[:, 2:] >= torch.tensor([x, y])).all(1)
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(1).where(inside, torch.inf)
        return visible[int(areas.argmin())] if inside.any() else None

    def rows(self, visible: list[int]) -> list[list]:
        """Of the table below HEADERS; the first column is the place, from 1."""
        rows = []
        for i in visible:
            left, top, right, bottom = (round(value) for value in self.found["boxes"][i].tolist())
            rows.append([i + 1, self.name(int(self.found["labels"][i])), round(float(self.found["scores"][i]), 3),
                         left, top, right - left, bottom - top])
        return rows

    def drawn(self, visible: list[int], chosen: int | None) -> Image.Image:
        """The picture with the visible boxes; the chosen one has a white frame."""
        shown = {name: self.found[name][visible] for name in ("scores", "labels", "boxes")}
        shown["boxes"] = shown["boxes"] * self.scale
        canvas = draw_detections(self.picture, truth_tensors([]), shown, self.names, 0)
        if chosen is not None:
            unit = max(1, round(max(canvas.size) / 320))
            left, top, right, bottom = (self.found["boxes"][chosen] * self.scale).tolist()
            draw = ImageDraw.Draw(canvas, "RGBA")  # blends translucent colours
            for inset, colour, width in ((2, "white", 2), (4, "black", 1)):
                low, high = (left + inset * unit, top + inset * unit), (right - inset * unit, bottom - inset * unit)
                if low[0] < high[0] and low[1] < high[1]:
                    draw.rectangle((*low, *high), outline=colour, width=width * unit,
                                   fill="#ffffff28" if colour == "white" else None)
        return canvas

    def summary(self, visible: list[int]) -> str:
        """How many of each class are visible, and how long it took: HTML."""
        counts = Counter(self.found["labels"][visible].tolist())
        chips = [f'<span class="chip"><i style="background:{PALETTE[label % len(PALETTE)]}"></i>'
                 f"{html.escape(self.name(label))} <b>{count}</b></span>" for label, count in counts.most_common()]
        width, height = self.inspected.size
        facts = f"{html.escape(self.title)} · {width}×{height} px · {self.milliseconds:.0f} ms"
        return f'<div class="summary">{"".join(chips) or "nothing found"}<span class="facts">{facts}</span></div>'

    def explained(self, chosen: int, layer: int, heads: list[int], levels: list[int], whole: bool) -> Image.Image:
        """What the query of a detection attended to, on all of the picture or around its box."""
        attention = self.inspected.attention(chosen, layer)
        box = self.found["boxes"][chosen] * self.scale
        if attention.points is None:
            return draw_heat_map(self.picture, box, attention.heat_map(heads))
        points = (attention.points[heads][:, levels] * self.scale).reshape(-1, 2)
        weights = attention.weights[heads][:, levels]
        of_level = torch.tensor(levels)[None, :, None].expand(weights.shape).flatten().tolist()
        region = None if whole else region_around(box, points, self.picture.size)
        return draw_samples(self.picture, box, points, weights.flatten(), of_level, region)

    def title_of(self, chosen: int) -> str:
        """What a detection is: HTML."""
        label, score = int(self.found["labels"][chosen]), float(self.found["scores"][chosen])
        return (f'<div class="chosen"><b>#{chosen + 1} {html.escape(self.name(label))}</b> {score:.2f} '
                f'<span class="facts">query {int(self.found["queries"][chosen])}</span></div>')

    def legend(self, chosen: int, layer: int, heads: list[int]) -> str:
        """Each level's colour and share of a detection's attention: HTML."""
        attention = self.inspected.attention(chosen, layer)
        if attention.points is None:
            return "<div class='note'>Global attention, from dark (little) to yellow (much).</div>"
        rows = []
        shares = attention.weights[heads].sum(-1).mean(0).tolist()
        for level, ((height, width), share) in enumerate(zip(attention.shapes, shares)):
            bar = f'<i style="background:{level_colour(level)};width:{100 * share:.1f}%"></i>'
            rows.append(f'<div class="level"><span>level {level + 1} <small>{width}×{height}</small></span>'
                        f'<span class="bar">{bar}</span><span>{100 * share:.0f} %</span></div>')
        return "".join(rows)


def page_picture(image: Image.Image) -> Image.Image:
    """An RGB image at a size for the page."""
    longest = max(image.size)
    factor = min(max(longest, SMALLEST_SIDE), LARGEST_SIDE) / longest
    if factor == 1:
        return image
    return image.resize([max(1, round(side * factor)) for side in image.size], Image.Resampling.LANCZOS)
