import numpy as np
import pytest
import torch
from PIL import ImageColor, ImageFont

from reports.drawing import PALETTE, detection_tensors, draw_closely, draw_detections, draw_targets, truth_tensors
from tests.reports.pictures import BLACK, GREY, NAMES, WHITE, count, found, grey, truth


def changed(picture):
    return (np.asarray(picture) != np.array(GREY)).any(-1)


def marks(line):
    """Runs of white along a line of pixels [n, 3]."""
    return int((np.diff((line == 255).all(-1).astype(int)) > 0).sum())


def test_nothing_to_draw_leaves_the_picture_alone():
    image = grey()
    picture = draw_detections(image, truth(), found(), NAMES)
    assert picture is not image
    assert not changed(picture).any()


def test_prediction_is_solid_in_its_class_colour_along_its_edges_only():
    image = grey()
    picture = draw_detections(image, truth(), found((200, 100, 400, 300), label=2), NAMES)
    pixels, colour = np.asarray(picture), PALETTE[2]
    assert count(pixels[100:301, 200], colour) == count(pixels[100:301, 400], colour) == 201
    assert count(pixels[100, 200:401], colour) == count(pixels[300, 200:401], colour) == 201
    inside, below, right = pixels[110:290, 210:390], pixels[305:], pixels[:, 405:]
    assert not any(changed(part).any() for part in (inside, below, right))
    assert not changed(image).any()  # the input is not drawn on


def test_ground_truth_is_dashed_black_and_white():
    edge = np.asarray(draw_detections(grey(), truth((200, 100, 400, 300)), found(), NAMES))[100, 200:401]
    assert count(edge, BLACK) + count(edge, WHITE) == 201
    assert 80 < count(edge, WHITE) < 120


def test_ground_truth_and_a_prediction_of_the_same_box_are_both_visible():
    box = (200, 100, 400, 300)
    column = np.asarray(draw_detections(grey(), truth(box), found(box), NAMES))[200, 195:215]
    assert count(column, PALETTE[1]) > 0
    assert count(column, BLACK) + count(column, WHITE) > 0


def test_crowd_is_hatched_and_dotted():
    box = (200, 100, 400, 300)
    single = np.asarray(draw_detections(grey(), truth(box), found(), NAMES))
    crowd = np.asarray(draw_detections(grey(), truth(box, crowd=True), found(), NAMES))
    assert not changed(single[110:290, 210:390]).any()
    assert 0.02 < changed(crowd[110:290, 210:390]).mean() < 0.3
    assert marks(crowd[100, 200:400]) > 2 * marks(single[100, 200:400]) > 0


@pytest.mark.parametrize("score, drawn", [(0.25, False), (0.35, True)])
def test_low_scores_are_left_out(score, drawn):
    detections = found((200, 100, 400, 300), score=score)
    assert changed(draw_detections(grey(), truth(), detections, NAMES)).any() == drawn


@pytest.mark.parametrize("threshold, drawn", [(0.5, True), (0.51, False)])
def test_a_score_at_the_threshold_is_drawn(threshold, drawn):
    detections = found((200, 100, 400, 300), score=0.5)
    assert changed(draw_detections(grey(), truth(), detections, NAMES, threshold)).any() == drawn


def test_box_partly_outside_is_cut_at_the_border():
    pixels = np.asarray(draw_detections(grey(), truth(), found((-50, 300, 200, 700)), NAMES))
    assert count(pixels[300:, 0], PALETTE[1]) == 180
    assert count(pixels[479, :201], PALETTE[1]) == 201
    assert not changed(pixels[:, 205:]).any()


def test_class_without_a_name_is_called_by_its_id():
    box = (200, 100, 400, 300)
    unnamed = draw_detections(grey(), truth(), found(box, label=7), {})
    assert unnamed.tobytes() == draw_detections(grey(), truth(), found(box, label=7), {7: "class 7"}).tobytes()
    assert unnamed.tobytes() != draw_detections(grey(), truth(), found(box, label=7), {7: "class 8"}).tobytes()


def test_small_picture_is_enlarged_with_its_boxes():
    picture = draw_detections(grey(320, 240).convert("L"), truth(), found((100, 80, 200, 160)), NAMES)
    assert (picture.mode, picture.size) == ("RGB", (480, 360))
    assert count(np.asarray(picture)[120:241, 150], PALETTE[1]) == 121
    assert not changed(np.asarray(picture)[:, 310:]).any()


def test_large_picture_keeps_its_size():
    assert draw_detections(grey(900, 700), truth(), found(), NAMES).size == (900, 700)


# close-ups

@pytest.mark.parametrize("box, window", [
    ((100, 100, 140, 120), (80, 70, 160, 150)),  # a square of twice the longer side
    ((0, 0, 40, 40), (0, 0, 60, 60)), ((610, 450, 640, 480), (595, 435, 640, 480)),  # cut at the image's corners
    ((50, 50, 51, 51), (42, 42, 59, 59)),  # not too close
])
def test_close_ups_show_the_surroundings_of_a_detection(box, window):
    image = grey()
    left, top, right, bottom = window
    image.paste((10, 200, 10), (left, top, right, bottom))
    picture = draw_closely(image, truth(), found(box), NAMES)
    scale = picture.width / (right - left)
    assert picture.size == tuple(round(side * scale) for side in (right - left, bottom - top))
    assert count(picture, GREY) == 0  # nothing beyond the window
    rows, columns = np.nonzero((np.asarray(picture) == np.array(ImageColor.getrgb(PALETTE[1]))).all(-1))
    label = 2 * sum(ImageFont.load_default(max(picture.size) / 38).getmetrics())
    assert abs(columns.min() - (box[0] - left) * scale) <= 1 and abs(rows.max() - (box[3] - top) * scale) <= label


@pytest.mark.parametrize("box", [
    (float("nan"),) * 4, (0, 0, float("inf"), 10), (float("-inf"), 5, 9, 9), (700, 500, 710, 510), (-60, -50, -50, -40),
    (30, 30, 20, 20), (0, 0, 1e30, 1e30),
])
def test_close_ups_of_boxes_that_are_none(box):
    assert min(draw_closely(grey(), truth((10, 10, 20, 20)), found(box), NAMES).size) > 0


def test_close_ups_show_the_ground_truth_that_is_near():
    near, far = draw_closely(grey(), truth((150, 100, 190, 140)), found((100, 100, 140, 140)), NAMES), draw_closely(
        grey(), truth((300, 300, 340, 340)), found((100, 100, 140, 140)), NAMES)
    assert count(near, WHITE) > count(far, WHITE)
    assert count(far, WHITE) == count(draw_closely(grey(), truth(), found((100, 100, 140, 140)), NAMES), WHITE)


def test_coco_rows_as_tensors():
    rows = [{"bbox": [1, 2, 3, 4], "category_id": 7, "iscrowd": 1, "score": 0.5}]
    assert truth_tensors(rows)["boxes"].tolist() == detection_tensors(rows)["boxes"].tolist() == [[1, 2, 4, 6]]
    assert truth_tensors(rows)["iscrowd"].tolist() == [1] and detection_tensors(rows)["scores"].tolist() == [0.5]
    for tensors in (truth_tensors([]), detection_tensors([])):
        assert tensors["boxes"].shape == (0, 4) and tensors["labels"].shape == (0,)


def test_targets_are_drawn_in_the_colours_of_their_classes():
    boxes = torch.tensor([[50.0, 50, 150, 150], [300, 300, 400, 400]])
    pixels = np.asarray(draw_targets(grey(), torch.tensor([1, 2]), boxes, NAMES))
    assert count(pixels[50:151, 50], PALETTE[1]) == count(pixels[300:401, 300], PALETTE[2]) == 101
