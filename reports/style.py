"""The look of all plots."""
import os
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from util.errors import UserError
from util.files import atomic_write


def plain_axes(axes: Axes) -> None:
    """A light grid and no frame above and to the right."""
    axes.grid(color="#e3e3e3", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)


def save_figure(figure: Figure, path: str | os.PathLike, dpi: float | None = None) -> None:
    """Writes a picture in the format that its name ends with, completely or not at all.

    Raises UserError for a format that matplotlib does not write.
    """
    path, formats = Path(path), figure.canvas.get_supported_filetypes()
    if path.suffix[1:] not in formats:
        raise UserError(f"{path}: the name of a picture ends with one of {', '.join(sorted(formats))}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=dpi or figure.dpi)
