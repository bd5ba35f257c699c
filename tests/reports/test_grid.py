import numpy as np
import pytest
from PIL import Image

from reports.drawing import PALETTE
from reports.grid import save_grid
from tests.reports.pictures import count, grey, opened
from util.errors import UserError


def test_grid_of_one_picture(tmp_path):
    path = tmp_path / "new" / "grid.png"
    save_grid([Image.new("RGB", (480, 360), "blue")], path)
    grid = opened(path)
    assert count(grid, "blue") == 480 * 360
    assert grid.width < 600 and 360 < grid.height < 450
    assert count(grid, PALETTE[0]) > 0  # the prediction of the legend
    assert [file.name for file in path.parent.iterdir()] == ["grid.png"]


def test_grid_of_nine_letterboxes_in_equal_cells(tmp_path):
    pictures = [Image.new("RGB", (400, 200), "blue")] * 8 + [Image.new("RGB", (200, 400), "red")]
    save_grid(pictures, tmp_path / "grid.png")
    grid = np.asarray(opened(tmp_path / "grid.png"))
    assert count(grid, "blue") == 8 * 400 * 200
    assert count(grid, "red") == 200 * 400
    assert 4 * 400 < grid.shape[1] < 4 * 430 and 3 * 400 < grid.shape[0] < 3 * 460
    rows, columns = np.nonzero((grid == (255, 0, 0)).all(-1))
    assert rows.min() > 800 and columns.max() < 400  # the ninth starts the third row


def test_grid_columns_and_title(tmp_path):
    pictures = [grey()] * 4
    save_grid(pictures, tmp_path / "plain.png", columns=2)
    save_grid(pictures, tmp_path / "titled.png", columns=2, title="epoch 3")
    plain, titled = opened(tmp_path / "plain.png"), opened(tmp_path / "titled.png")
    assert plain.width == titled.width and 2 * 640 < plain.width < 2 * 680
    assert plain.height < titled.height < plain.height + 100


def test_grid_of_large_pictures_is_limited(tmp_path):
    save_grid([grey(3000, 2000)] * 2, tmp_path / "grid.png")
    assert opened(tmp_path / "grid.png").width < 1400


def test_grid_without_pictures_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no pictures"):
        save_grid([], tmp_path / "grid.png")


def test_interrupted_write_keeps_the_old_file(tmp_path, monkeypatch):
    def interrupted(self, path, *args):
        path.write_text("half a picture")
        raise OSError("disk full")

    path = tmp_path / "grid.png"
    path.write_text("old")
    monkeypatch.setattr(Image.Image, "save", interrupted)
    with pytest.raises(UserError, match="disk full"):
        save_grid([grey()], path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_grid_may_have_neither_title_nor_legend(tmp_path):
    save_grid([grey(200, 100)], tmp_path / "grid.png", legend=False)
    assert opened(tmp_path / "grid.png").height < 100 + 4 * 14
