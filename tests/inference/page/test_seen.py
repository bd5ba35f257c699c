import pytest
import torch
from PIL import Image

from inference.page.seen import LARGEST_SIDE, SMALLEST_SIDE, Seen, page_picture
from inference.sampling import Inspected
from models.attention_maps import Attended

NAMES = {1: "cell", 2: "<img src=x onerror=alert(1)>"}
BOXES = [[0.0, 0, 100, 100], [20, 20, 60, 60], [40, 40, 80, 80], [150, 10, 190, 50]]  # in an image of 200x120 px


@pytest.fixture
def seen():
    """Four detections, seen in a picture of 4.8 times the size."""
    found = {"scores": torch.tensor([0.9, 0.6, 0.4, 0.2]), "labels": torch.tensor([1, 2, 1, 3]),
             "boxes": torch.tensor(BOXES), "queries": torch.tensor([7, 3, 3, 0])}
    layers = [Attended("transformer.decoder", [(8, 10), (4, 5), (2, 3)], torch.full((4, 2, 3, 2), 1 / 6),
                       torch.rand(4, 2, 3, 2, 2))] * 2
    picture = page_picture(Image.new("RGB", (200, 120), "grey"))
    return Seen("blood.png", picture, Inspected(found, (200, 120), layers), NAMES, 12.3)


def test_filters_by_score_and_class(seen):
    assert seen.classes() == [1, 2, 3]
    assert seen.visible(0.05, [1, 2, 3]) == [0, 1, 2, 3] and seen.visible(0.4, [1, 2, 3]) == [0, 1, 2]
    assert seen.visible(0.05, [1]) == [0, 2] and seen.visible(0.95, [1, 2, 3]) == seen.visible(0, []) == []


@pytest.mark.parametrize("point, visible, wanted", [
    ((10, 10), [0, 1, 2, 3], 0), ((30, 30), [0, 1, 2, 3], 1), ((75, 75), [0, 1, 2, 3], 2),
    ((170, 30), [0, 1, 2, 3], 3), ((30, 30), [0, 2, 3], 0), ((170, 30), [0], None), ((199, 119), [0, 1, 2, 3], None),
    ((30, 30), [], None)])
def test_a_click_means_the_smallest_visible_box_around_it(seen, point, visible, wanted):
    assert seen.at(point[0] * 4.8, point[1] * 4.8, visible) == wanted


def test_rows_keep_their_number_when_others_are_hidden(seen):
    assert seen.rows([1, 3]) == [[2, NAMES[2], 0.6, 20, 20, 40, 40], [4, "class 3", 0.2, 150, 10, 40, 40]]


def test_names_are_escaped_in_html(seen):
    for text in (seen.summary([0, 1]), seen.title_of(1)):
        assert "<img" not in text and "&lt;img" in text
    assert "blood.png · 200×120 px · 12 ms" in seen.summary([0, 1]) and "<b>2</b>" in seen.summary([0, 2])
    assert "query 3" in seen.title_of(1) and "#2 " in seen.title_of(1)
    assert "nothing" in seen.summary([])


def test_the_chosen_box_stands_out(seen):
    plain, marked = seen.drawn([0, 3], None), seen.drawn([0, 3], 3)
    assert plain.size == marked.size == (960, 576)
    changed = [(x, y) for x in range(0, 960, 2) for y in range(0, 576, 2)
               if plain.getpixel((x, y)) != marked.getpixel((x, y))]
    left, top, right, bottom = (value * 4.8 for value in BOXES[3])
    assert changed and all(left <= x <= right and top <= y <= bottom for x, y in changed)
    assert seen.drawn([], None).size == plain.size


def test_the_explanation_is_of_the_chosen_heads_and_levels(seen):
    everything = seen.explained(0, 1, [0, 1], [0, 1, 2], True)
    one_head = seen.explained(0, 1, [1], [0, 1, 2], True)
    nothing = seen.explained(0, 1, [0, 1], [], True)
    assert len({picture.tobytes() for picture in (everything, one_head, nothing)}) == 3
    assert seen.explained(3, 0, [0], [1], False).size == everything.size  # around the box, in the same proportions
    legend = seen.legend(0, 1, [0, 1])
    assert legend.count("33 %") == 3 and "level 3 <small>3×2</small>" in legend


def test_global_attention_is_a_heat_map(seen):
    seen.inspected.layers[:] = [Attended("stages.0.decoder", [(2, 3)], torch.rand(4, 8, 6))]
    assert seen.explained(0, 0, [0, 1], [0], True).size[0] == 900
    assert "Global attention" in seen.legend(0, 0, [0])


@pytest.mark.parametrize("size, wanted", [((100, 50), (SMALLEST_SIDE, SMALLEST_SIDE // 2)), ((1200, 10), (1200, 10)),
                                          ((16000, 4), (LARGEST_SIDE, 1)), ((2000, 4000), (800, 1600))])
def test_pictures_have_a_size_for_the_page(size, wanted):
    assert page_picture(Image.new("RGB", size)).size == wanted
