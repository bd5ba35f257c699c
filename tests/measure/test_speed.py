import pytest
import torch

from measure.speed import Speed, measure_speed


def test_images_per_second_and_percentiles():
    speed = Speed(4, [0.1 * i for i in range(1, 12)])  # 0.1 to 1.1 s
    assert speed.fps == pytest.approx(4 * 11 / 6.6)
    assert speed.percentile(50) == pytest.approx(600) and speed.percentile(95) == pytest.approx(1050)
    assert Speed(1, [0.25]).percentile(95) == 250


def test_batches_of_the_images_in_turn():
    given = []
    images = [torch.full((3, 8, 8), float(i)) for i in range(3)]
    speed = measure_speed(given.append, images, 4, torch.device("cpu"), seconds=0)
    assert speed.batch == 4 and speed.fps > 0
    assert speed.seconds == sorted(speed.seconds) and len(speed.seconds) == 3
    batches = [[int(image[0, 0, 0]) for image in batch] for batch in given]
    assert batches == [[0, 1, 2, 0]] * 2 + [[1, 2, 0, 1], [2, 0, 1, 2]]  # one of them to warm up


def test_it_takes_as_long_as_it_may():
    speed = measure_speed(lambda images: torch.rand(100, 100) @ torch.rand(100, 100), [torch.zeros(3, 8, 8)], 1,
                          torch.device("cpu"), seconds=0.05)
    assert sum(speed.seconds) >= 0.05 > sum(speed.seconds[:-1])
