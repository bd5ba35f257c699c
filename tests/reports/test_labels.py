import pytest

from reports.drawing import draw_detections
from tests.reports.pictures import BLACK, NAMES, count, found, grey, truth


@pytest.mark.parametrize("box", [(0, 0, 30, 30), (610, 0, 640, 30), (0, 450, 30, 480), (610, 450, 640, 480)])
def test_label_is_complete_in_every_corner(box):
    central = draw_detections(grey(), truth(), found((300, 200, 330, 230)), NAMES)
    assert count(draw_detections(grey(), truth(), found(box), NAMES), BLACK) == count(central, BLACK) > 20


def test_labels_of_equal_boxes_do_not_cover_each_other():
    box = (300, 200, 400, 300)
    one = draw_detections(grey(), truth(), found(box), NAMES)
    three = draw_detections(grey(), truth(), found(box, box, box), NAMES)
    assert count(three, BLACK) == 3 * count(one, BLACK)


def test_label_wider_than_the_picture_is_shortened_and_keeps_the_score():
    names, box = {1: "a name that is much too long for such a narrow picture"}, (10, 200, 70, 300)
    likely, unlikely = (draw_detections(grey(80, 480), truth(), found(box, score=score), names) for score in (0.9, 0.4))
    assert count(likely, BLACK) > 20
    assert likely.tobytes() != unlikely.tobytes()
