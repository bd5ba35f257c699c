"""Images that a visitor gave to the page."""
import html
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from datasets.images import read_image
from util.errors import UserError

MOST_IMAGES = 50  # in the strip of a session
THUMBNAIL = 200  # px


@dataclass(frozen=True)
class Dropped:
    """A file that the page has received, under the name that it had at the visitor's."""

    path: Path
    title: str
    thumbnail: Image.Image

    def read(self) -> Image.Image:
        """Raises UserError with the title, not with the folder in which the server keeps the file."""
        return _read(self.path)


def receive(paths: list[str]) -> tuple[list[Dropped], list[str]]:
    """The images that can be read, and in words what is wrong with the others."""
    received: list[Dropped] = []
    problems = [f"Only the first {MOST_IMAGES} of {len(paths)} images were taken."] if len(paths) > MOST_IMAGES else []
    for path in map(Path, paths[:MOST_IMAGES]):
        try:
            image = _read(path)
        except UserError as error:
            problems.append(str(error))
            continue
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        received.append(Dropped(path, path.name, image))
    return received, problems


def notice(problems: list[str]) -> str:
    """As HTML."""
    return "".join(f'<div class="problem">{html.escape(problem)}</div>' for problem in problems)


def _read(path: Path) -> Image.Image:
    try:
        return read_image(path)
    except UserError as error:
        raise UserError(str(error).replace(str(path), path.name)) from error
