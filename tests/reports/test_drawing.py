"""Pictures are checked by the colours of their pixels, on a plain grey background."""
import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor, ImageFont

from reports.curves import METRICS, plot_log, read_log
from reports.drawing import PALETTE, detection_tensors, draw_closely, draw_detections, save_grid, truth_tensors
from util.errors import UserError

GREY = (120, 120, 120)
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
NAMES = {1: "ring", 2: "square"}


def truth(*boxes, crowd=False):
    return {"labels": torch.ones(len(boxes), dtype=torch.long), "boxes": torch.tensor(boxes).reshape(-1, 4).float(),
            "iscrowd": torch.full((len(boxes),), int(crowd))}


def found(*boxes, score=0.9, label=1):
    return {"scores": torch.full((len(boxes),), score), "labels": torch.full((len(boxes),), label),
            "boxes": torch.tensor(boxes).reshape(-1, 4).float()}


def grey(width=640, height=480):
    return Image.new("RGB", (width, height), GREY)


def count(pixels, colour):
    """Pixels of exactly that colour, in a picture or an array [..., 3]."""
    return int((np.asarray(pixels) == np.array(ImageColor.getrgb(colour) if isinstance(colour, str) else colour))
               .all(-1).sum())


def changed(picture):
    return (np.asarray(picture) != np.array(GREY)).any(-1)


def marks(line):
    """Runs of white along a line of pixels [n, 3]."""
    return int((np.diff((line == 255).all(-1).astype(int)) > 0).sum())


def record(epoch, **values):
    return {"epoch": epoch, "train_lr": 1e-4, "train_loss": 10.0 - epoch, **values}


def evaluated(epoch, ap):
    return record(epoch, test_loss=12.0 - epoch, test_coco_eval_bbox=[ap, ap * 1.5, ap * 1.1] + [ap] * 9)


def opened(path):
    with Image.open(path) as picture:
        return picture.convert("RGB")


def halves(path):
    pixels = np.asarray(opened(path))
    return np.split(pixels, [pixels.shape[1] // 2], axis=1)


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
    with pytest.raises(OSError, match="disk full"):
        save_grid([grey()], path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_log_is_read_in_order_and_the_later_line_of_an_epoch_counts(tmp_path):
    path = tmp_path / "log.txt"
    records = [record(1, run="first"), record(2), record(0), record(1, run="resumed")]
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    assert read_log(path) == [records[2], records[3], records[1]]


@pytest.mark.parametrize("rest", ['{"epoch": 1, "train_lo', '{"epoch": 1, "train_lo\n', "\n\n", ""])
def test_log_of_a_killed_run(tmp_path, rest):
    path = tmp_path / "log.txt"
    path.write_text(json.dumps(record(0)) + "\n" + rest)
    assert read_log(path) == [record(0)]


@pytest.mark.parametrize("line", ['{"epoch": 1, "train_lo', "3", '{"train_loss": 3.0}'])
def test_bad_line_inside_a_log_is_named(tmp_path, line):
    path = tmp_path / "log.txt"
    path.write_text("\n".join([json.dumps(record(0)), line, json.dumps(record(2))]))
    with pytest.raises(ValueError, match=r"log\.txt, line 2"):
        read_log(path)


def test_missing_log_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no training log at .*log.txt"):
        read_log(tmp_path / "log.txt")


def test_empty_log_reads_as_no_record_and_is_not_plotted(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text("")
    assert read_log(path) == []
    with pytest.raises(UserError, match="no finished epoch"):
        plot_log(path, tmp_path / "log.png")
    assert not (tmp_path / "log.png").exists()


def test_plot_has_losses_left_and_metrics_right(tmp_path):
    log = [evaluated(epoch, ap=0.1 * epoch) if epoch % 2 else record(epoch) for epoch in range(6)]
    path = tmp_path / "new" / "log.png"
    plot_log(log, path)
    left, right = halves(path)
    assert all(count(right, colour) > 200 for colour in METRICS.values())
    assert count(left, "#2563eb") > 200 and count(left, "#ea580c") > 200
    assert [file.name for file in path.parent.iterdir()] == ["log.png"]


def test_plot_reads_a_path(tmp_path):
    log = [evaluated(0, 0.2), evaluated(1, 0.3)]
    (tmp_path / "log.txt").write_text("\n".join(map(json.dumps, log)))
    plot_log(tmp_path / "log.txt", tmp_path / "from_path.png")
    plot_log(log, tmp_path / "from_list.png")
    assert opened(tmp_path / "from_path.png").tobytes() == opened(tmp_path / "from_list.png").tobytes()


def test_plot_of_one_epoch_shows_its_points(tmp_path):
    plot_log([evaluated(0, 0.2)], tmp_path / "log.png")
    left, right = halves(tmp_path / "log.png")
    centre = slice(left.shape[1] // 3, 3 * left.shape[1] // 4)  # away from legends and numbers
    assert count(left[:, centre], "#2563eb") > 10 and count(left[:, centre], "#ea580c") > 10
    assert all(count(right[:, centre], colour) > 10 for colour in METRICS.values())


@pytest.mark.parametrize("log", [[record(0), record(1)], [record(0, test_coco_eval_bbox=[-1.0] * 12), record(1)]])
def test_plot_without_average_precision_has_only_the_loss(tmp_path, log):
    plot_log(log, tmp_path / "log.png")
    left, right = halves(tmp_path / "log.png")
    assert count(left, "#2563eb") > 200 and count(left, "#ea580c") == 0
    assert not any(count(right, colour) for colour in METRICS.values())


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
