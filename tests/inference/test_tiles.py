import pytest
import torch

from inference.tiles import checked_tiles, merged, windows
from tests.inference.merging import merged_one_by_one
from util.errors import UserError

SIZE = (1000, 600)
WHOLE = (0, 0, 1000, 600)
LEFT, RIGHT = (0, 0, 600, 600), (400, 0, 1000, 600)
LIMITS = torch.full((5,), 0.3)


def seen(window, *objects):
    """A part with the objects (box in pixels of the image, score, label) cut at its borders, as a detector finds
    them."""
    left, top, right, bottom = window
    rows = [((max(box[0], left) - left, max(box[1], top) - top, min(box[2], right) - left, min(box[3], bottom) - top),
             score, label) for box, score, label in objects]
    rows = [row for row in rows if row[0][2] > row[0][0] and row[0][3] > row[0][1]]
    return window, {"boxes": torch.tensor([row[0] for row in rows], dtype=torch.float32).reshape(-1, 4),
                    "scores": torch.tensor([row[1] for row in rows]),
                    "labels": torch.tensor([row[2] for row in rows], dtype=torch.int64)}


def boxes(*parts):
    found = merged(list(parts), SIZE, LIMITS)
    assert found["scores"].equal(found["scores"].sort(descending=True).values)
    return [[round(x) for x in box] for box in found["boxes"].tolist()]


def scores(*parts):
    return [round(score, 3) for score in merged(list(parts), SIZE, LIMITS)["scores"].tolist()]


@pytest.mark.parametrize("size, tiles, overlap, wanted", [
    ((100, 80), (100, 100), 0.2, [(0, 0, 100, 80)]),
    ((100, 80), (640, 640), 0.2, [(0, 0, 100, 80)]),
    ((160, 100), (100, 100), 0.2, [(0, 0, 160, 100), (0, 0, 100, 100), (60, 0, 160, 100)]),
    ((100, 300), (120, 90), 0, [(0, 0, 100, 300), *((x, y, x + 90, y + 120) for y in (0, 90, 180) for x in (0, 10))])])
def test_tiles_cover_the_image_evenly(size, tiles, overlap, wanted):
    assert windows(size, tiles, overlap) == wanted


@pytest.mark.parametrize("size", [(1920, 1080), (641, 640), (5000, 640), (777, 3333)])
@pytest.mark.parametrize("overlap", [0, 0.2, 0.75])
def test_neighbours_overlap_and_nothing_is_left_out(size, overlap):
    parts = windows(size, (640, 480), overlap)[1:]
    for axis, tile in ((0, 480), (1, 640)):
        starts = sorted({part[axis] for part in parts})
        assert starts[0] == 0 and starts[-1] == max(0, size[axis] - tile)
        assert all(b - a <= max(1, int(tile * (1 - overlap))) for a, b in zip(starts, starts[1:]))
    assert {(r - x, b - y) for x, y, r, b in parts} == {(480, min(640, size[1]))}


def test_an_object_in_the_overlap_is_found_once():
    small = ((450, 100, 550, 200), 0.8, 1)
    assert boxes(seen(LEFT, small), seen(RIGHT, (small[0], 0.9, 1))) == [[450, 100, 550, 200]]


def test_a_cut_box_goes_where_a_neighbour_sees_the_whole():
    """Whatever the scores: the object has the higher."""
    whole = ((550, 100, 750, 200), 0.5, 1)
    assert boxes(seen(LEFT, (whole[0], 0.9, 1)), seen(RIGHT, whole)) == [[550, 100, 750, 200]]
    assert scores(seen(LEFT, (whole[0], 0.9, 1)), seen(RIGHT, whole)) == [0.9]


def test_the_whole_view_of_an_object_may_be_less_sure_than_the_limit():
    """As sure as half of it, if a cut view is surer."""
    box = (550, 100, 750, 200)
    assert boxes(seen(LEFT, (box, 0.6, 1)), seen(RIGHT, (box, 0.2, 1))) == [[*box]]
    assert boxes(seen(LEFT), seen(RIGHT, (box, 0.2, 1))) == []


def test_a_sliver_at_a_seam_goes_even_if_it_is_inexact():
    sliver = (LEFT, {"boxes": torch.tensor([[593.0, 105, 600, 190]]), "scores": torch.tensor([0.9]),
                     "labels": torch.tensor([1])})
    assert boxes(sliver, seen(RIGHT, ((597, 100, 750, 200), 0.5, 1))) == [[597, 100, 750, 200]]


def test_an_object_larger_than_a_tile_is_the_one_of_the_whole_image():
    large = ((100, 50, 900, 550), 0.7, 1)
    assert boxes(seen(WHOLE, large), seen(LEFT, (large[0], 0.9, 1)), seen(RIGHT, (large[0], 0.8, 1))) == [
        [100, 50, 900, 550]]


def test_pieces_of_an_object_that_nobody_sees_whole_are_put_together():
    large = (100, 50, 900, 550)
    assert boxes(seen(WHOLE), seen(LEFT, (large, 0.9, 1)), seen(RIGHT, (large, 0.8, 1))) == [[100, 50, 900, 550]]
    corners = [(x, y, x + 600, y + 400) for y in (0, 200) for x in (0, 400)]
    assert boxes(*(seen(window, (large, 0.9, 1)) for window in corners)) == [[100, 50, 900, 550]]


def test_a_cut_box_stays_where_nothing_else_shows_the_object():
    assert boxes(seen(LEFT, ((550, 100, 750, 200), 0.9, 1)), seen(RIGHT)) == [[550, 100, 600, 200]]


def test_a_box_at_the_images_border_is_whole():
    edge = ((940, 100, 1000, 200), 0.5, 1)
    assert boxes(seen(LEFT), seen(RIGHT, edge), seen(WHOLE)) == [[940, 100, 1000, 200]]


def test_neighbours_and_other_classes_stay_apart():
    a, b, c = ((410, 100, 590, 200), 0.9, 1), ((600, 100, 780, 200), 0.8, 1), ((410, 100, 590, 200), 0.7, 2)
    assert boxes(seen(LEFT, a, c), seen(RIGHT, a, b, c)) == [
        [410, 100, 590, 200], [600, 100, 780, 200], [410, 100, 590, 200]]


def test_objects_of_one_tile_stay_apart_although_one_covers_the_other_at_the_border():
    """Of the front one, the neighbour sees the rest."""
    big, front = ((100, 50, 590, 550), 0.9, 1), ((550, 300, 760, 500), 0.8, 1)
    found = boxes(seen(LEFT, big, front), seen(RIGHT, front))
    assert found == [[100, 50, 590, 550], [550, 300, 760, 500]]


def test_of_objects_that_fit_into_tiles_the_whole_image_adds_only_what_tiles_missed():
    """At its size, two small ones may look like one."""
    both = (WHOLE, {"boxes": torch.tensor([[100.0, 100, 200, 150], [700, 300, 740, 340]]),
                    "scores": torch.tensor([0.95, 0.4]), "labels": torch.tensor([1, 1])})
    small = [((100, 100, 145, 150), 0.8, 1), ((155, 100, 200, 150), 0.7, 1)]
    assert boxes(both, seen(LEFT, *small), seen(RIGHT)) == [
        [100, 100, 145, 150], [155, 100, 200, 150], [700, 300, 740, 340]]


def test_nothing_found_is_nothing():
    assert boxes(seen(WHOLE), seen(LEFT), seen(RIGHT)) == []


def test_every_object_is_found_once_wherever_it_lies():
    """Objects of one size at all places, in 3 x 2 tiles with the whole image."""
    parts = windows((1000, 600), (400, 400), 0.25)
    for x in range(0, 900, 53):
        for y in range(0, 520, 67):
            thing = ((x, y, x + 90, y + 75), 0.8, 1)
            found = merged([seen(part, thing) for part in parts], SIZE, LIMITS)
            assert found["boxes"].round().tolist() == [[x, y, x + 90, y + 75]]


def test_a_box_without_area_is_left_out_and_hides_nothing():
    flat = (LEFT, {"boxes": torch.tensor([[100.0, 100, 100, 200]]), "scores": torch.tensor([0.9]),
                   "labels": torch.tensor([1])})
    assert boxes(seen(WHOLE, ((700, 300, 740, 340), 0.4, 1)), flat, seen(RIGHT)) == [[700, 300, 740, 340]]


def random_scene(seed, size, tile, objects, noise, classes):
    """The parts of an image, each with its inexact views of random objects and with boxes of nothing; limits of the
    classes. Scores are rounded: many are the same."""
    draw = torch.Generator().manual_seed(seed)
    start = torch.rand(objects, 2, generator=draw) * torch.tensor(size)
    sides = 2 + 0.8 * tile * torch.rand(objects, 2, generator=draw) ** 2
    things, labels = torch.cat([start, start + sides], 1), torch.randint(classes, (objects,), generator=draw)
    parts = []
    for window in windows(size, (tile, tile), 0.25):
        left, top, right, bottom = window
        bounds, origin = torch.tensor([left, top, right, bottom]), torch.tensor([left, top, left, top])
        cut = torch.cat([things[:, :2].maximum(bounds[:2]), things[:, 2:].minimum(bounds[2:])], 1)
        visible = (cut[:, 2:] > cut[:, :2] + 1).all(1) & (torch.rand(objects, generator=draw) < 0.8)
        views = cut[visible] + torch.randn(int(visible.sum()), 4, generator=draw) - origin
        places = torch.rand(noise, 2, generator=draw) * tile
        blobs = torch.cat([places, places + tile / 3 * torch.rand(noise, 2, generator=draw)], 1)
        scores = 0.15 + 0.85 * torch.rand(len(views) + noise, generator=draw)
        parts.append((window, {
            "boxes": torch.cat([views, blobs]), "scores": (scores * 20).round() / 20,
            "labels": torch.cat([labels[visible], torch.randint(classes, (noise,), generator=draw)])}))
    return parts, 0.2 + 0.2 * torch.rand(classes, generator=draw)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("size, tile, objects, noise, classes", [
    ((1000, 600), 400, 40, 3, 2), ((1000, 600), 250, 15, 0, 1), ((900, 900), 200, 150, 5, 3)])
def test_boxes_are_merged_as_if_one_came_after_the_other(seed, size, tile, objects, noise, classes):
    parts, limits = random_scene(seed, size, tile, objects, noise, classes)
    found, wanted = merged(parts, size, limits), merged_one_by_one(parts, size, limits)
    assert len(wanted["scores"]) and all(found[name].equal(wanted[name]) for name in wanted)


@pytest.mark.parametrize("block", [1, 7])
def test_more_boxes_than_are_compared_at_once_are_merged_alike(block, monkeypatch):
    parts, limits = random_scene(0, (900, 900), 200, 150, 5, 2)
    wanted = merged(parts, (900, 900), limits)
    monkeypatch.setattr("inference.tiles.BLOCK", block)
    found = merged(parts, (900, 900), limits)
    assert all(found[name].equal(wanted[name]) for name in wanted)


@pytest.mark.parametrize("tiles", [0, 15, -640, (640,), (640, 640, 3), (640, 8), True, 640.0, "640"])
def test_tiles_that_are_none_are_told(tiles):
    with pytest.raises(UserError, match="tiles"):
        checked_tiles(tiles, 0.2)


def test_sides_and_overlap():
    assert checked_tiles(640, 0) == (640, 640) and checked_tiles([480, 640], 0.9) == (480, 640)
    for overlap in (-0.1, 0.95, float("nan"), "a", None, True):
        with pytest.raises(UserError, match="overlap"):
            checked_tiles(640, overlap)


def test_an_image_of_too_many_tiles_is_told():
    assert len(windows((8000, 6000), (640, 640), 0.5)) < 1000
    with pytest.raises(UserError, match="8000x6000 px has 10,266 tiles of 640x640 px"):
        windows((8000, 6000), (640, 640), 0.9)
