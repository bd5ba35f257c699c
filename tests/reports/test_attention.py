import numpy as np
import pytest
import torch
from PIL import Image

from reports.attention import LEVEL_COLOURS, LONG_SIDE, draw_heat_map, draw_samples, level_colour, region_around

GREY = Image.new("RGB", (200, 100), (120, 120, 120))
BOX = torch.tensor([20.0, 20, 60, 80])


def colour_at(picture, x, y, region=(0, 0, 200, 100)):
    """Of the pixel that shows the point (x, y) of the image."""
    left, top, right, bottom = region
    place = (x - left) / (right - left) * picture.width, (y - top) / (bottom - top) * picture.height
    return picture.getpixel(tuple(int(value) for value in place))


def near(colour, wanted):
    return max(abs(a - b) for a, b in zip(colour, bytes.fromhex(wanted[1:]))) < 12


def test_points_have_the_colour_of_their_level_where_they_are():
    points = torch.tensor([[100.0, 50], [150, 20], [190, 90]])
    picture = draw_samples(GREY, BOX, points, torch.ones(3), [0, 1, 2])
    assert picture.size == (LONG_SIDE, LONG_SIDE // 2)
    for (x, y), level in zip(points.tolist(), (0, 1, 2)):
        assert near(colour_at(picture, x, y), LEVEL_COLOURS[level])
    assert level_colour(len(LEVEL_COLOURS)) == LEVEL_COLOURS[0]


def test_a_large_weight_is_larger_more_opaque_and_on_top():
    points = torch.tensor([[100.0, 50], [150, 50], [150, 50]])
    picture = draw_samples(GREY, BOX, points, torch.tensor([0.01, 0.9, 0.09]), [0, 0, 1])
    pixels = np.asarray(picture).astype(int)
    yellow = (pixels[..., 0] > pixels[..., 2] + 60)
    faint, strong = yellow[:, :560].sum(), yellow[:, 560:].sum()
    assert 0 < 3 * faint < strong and near(colour_at(picture, 150, 50), LEVEL_COLOURS[0])


def test_only_the_region_is_shown():
    region = region_around(BOX, torch.tensor([[100.0, 50]]), GREY.size)
    picture = draw_samples(GREY, BOX, torch.tensor([[100.0, 50]]), torch.ones(1), [0], region)
    assert max(picture.size) == LONG_SIDE and near(colour_at(picture, 100, 50, region), LEVEL_COLOURS[0])
    assert sum(colour_at(picture, 20.4, 50, region)) > 700  # the box is white


@pytest.mark.parametrize("box, points", [
    ([20.0, 20, 60, 80], [[100.0, 50]]), ([0.0, 0, 200, 100], [[-500.0, 900]]), ([190.0, 90, 260, 190], []),
    ([50.0, 50, 50, 50], []), ([60.0, 80, 20, 20], [[199.0, 99]])])
def test_a_region_is_inside_the_image_in_its_proportions_and_holds_what_lies_there(box, points):
    points = torch.tensor(points).reshape(-1, 2)
    left, top, right, bottom = region_around(torch.tensor(box), points, GREY.size)
    assert -1e-3 <= left < right <= 200.001 and -1e-3 <= top < bottom <= 100.001
    assert (right - left) / (bottom - top) == pytest.approx(2)
    for x, y in [*points.tolist(), box[:2], box[2:]]:
        assert left - 1e-3 <= min(max(x, 0), 200) <= right + 1e-3 and top - 1e-3 <= min(max(y, 0), 100) <= bottom + 1e-3


@pytest.mark.parametrize("points, weights", [(torch.zeros(0, 2), torch.zeros(0)),
                                             (torch.full((2, 2), 1e6), torch.zeros(2))])
def test_no_points_and_points_without_weight(points, weights):
    picture = draw_samples(GREY, torch.tensor([60.0, 80, 20, 20]), points, weights, [0] * len(points))
    assert picture.size == (LONG_SIDE, LONG_SIDE // 2)


def test_a_heat_map_is_bright_where_the_weights_are():
    weights = torch.zeros(2, 4)
    weights[1, 3] = 0.2
    picture = draw_heat_map(GREY, BOX, weights)
    assert sum(colour_at(picture, 190, 90)) > 2 * sum(colour_at(picture, 100, 10))
    assert draw_heat_map(GREY, BOX, torch.full((2, 4), 0.125)).size == picture.size  # nothing stands out


def test_the_image_is_not_changed():
    before = GREY.copy()
    draw_samples(GREY, BOX, torch.rand(5, 2) * 100, torch.rand(5), range(5))
    draw_heat_map(GREY, BOX, torch.rand(3, 4))
    assert GREY.tobytes() == before.tobytes()
