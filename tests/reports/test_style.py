import pytest
from matplotlib.figure import Figure

from reports.style import plain_axes, save_figure
from tests.reports.pictures import opened
from util.errors import UserError


def test_axes_have_no_frame_above_and_to_the_right():
    axes = Figure().subplots()
    plain_axes(axes)
    visible = {side: axes.spines[side].get_visible() for side in ("left", "bottom", "top", "right")}
    assert visible == {"left": True, "bottom": True, "top": False, "right": False}


def test_a_figure_makes_its_folder(tmp_path):
    save_figure(Figure(figsize=(2, 1), dpi=100), tmp_path / "new" / "figure.png")
    assert opened(tmp_path / "new" / "figure.png").size == (200, 100)


def test_a_failed_figure_keeps_the_old_file(tmp_path, monkeypatch):
    def interrupted(self, path, **options):
        path.write_text("half a picture")
        raise OSError("disk full")

    path = tmp_path / "figure.png"
    path.write_text("old")
    monkeypatch.setattr(Figure, "savefig", interrupted)
    with pytest.raises(UserError, match="disk full"):
        save_figure(Figure(), path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
