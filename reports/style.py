"""The look of all plots."""
import os
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from util.files import atomic_write


def plain_axes(axes: Axes) -> None:
    """A light grid and no frame above and to the right."""
    axes.grid(color="#e3e3e3", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)


def save_figure(figure: Figure, path: str | os.PathLike) -> None:
    """Writes a PNG, completely or not at all."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")
