import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.util.loggers.entries import write_run
from util.loggers.board import BoardLogger
from util.loggers.protocol import Place


def written(folder):
    return EventAccumulator(str(folder / "tensorboard"), {"tensors": 0, "images": 0}).Reload()


def test_everything_is_in_the_event_files(tmp_path):
    write_run(BoardLogger(Place(tmp_path, "", 0)), tmp_path, [0, 1])
    board = written(tmp_path)
    assert [(event.step, event.value) for event in board.Scalars("coco/AP")] == [(0, 0), (1, pytest.approx(0.1))]
    texts = {name: board.Tensors(f"{name}/text_summary")[0].tensor_proto.string_val[0].decode()
             for name in ("config", "summary")}
    assert '"lr": 0.0001' in texts["config"] and texts["summary"] == "# Summary\nAP <50>"
    (image,) = board.Images("curves")
    assert (image.width, image.height, image.step) == (20, 10, 1)


def test_a_resumed_run_replaces_the_epochs_that_come_again(tmp_path, monkeypatch):
    # Files are read by name: time in seconds, process, and a number.
    numbers = iter(range(10_000, 10_100))
    monkeypatch.setattr("tensorboard.summary.writer.event_file_writer._global_uid.get", lambda: next(numbers))
    write_run(BoardLogger(Place(tmp_path, "", 0)), tmp_path, [0, 1, 2])
    write_run(BoardLogger(Place(tmp_path, "", 1)), tmp_path, [1])
    assert [event.step for event in written(tmp_path).Scalars("coco/AP")] == [0, 1]
