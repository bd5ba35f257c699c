import torch

from inference.backends.exported import ExportedBackend
from tests.inference.test_artifact import artifact


class Recorder(ExportedBackend):
    """One detection an image: its number of calls before, and the mean of its pixels as score."""

    def __init__(self, how):
        super().__init__(how)
        self.calls = []

    def run(self, images, orig_target_sizes):
        self.calls.append((images.shape, images.dtype))
        count = len(images)
        return (torch.full((count, 1), len(self.calls)), torch.cat([orig_target_sizes, orig_target_sizes], 1)[:, None],
                images.float().flatten(1).mean(1, keepdim=True))


def images(*sizes):
    return [torch.full((3, *size), 51 * (i + 1), dtype=torch.uint8) for i, size in enumerate(sizes)]


def test_images_of_one_size_are_one_call_and_come_back_in_their_order():
    backend = Recorder(artifact(batch=None))
    found = backend.detect(images((4, 6), (5, 5), (4, 6)), [(60, 40), (50, 50), (6, 4)])
    assert backend.calls == [((2, 3, 4, 6), torch.float32), ((1, 3, 5, 5), torch.float32)]
    assert [round(float(rows["scores"]), 4) for rows in found] == [0.2, 0.4, 0.6]
    assert [rows["boxes"][0, :2].tolist() for rows in found] == [[60, 40], [50, 50], [6, 4]]


def test_a_fixed_batch_is_filled_up():
    backend = Recorder(artifact(batch=2, uint8=True))
    found = backend.detect(images(*[(4, 6)] * 3), [(6, 4)] * 3)
    assert backend.calls == [((2, 3, 4, 6), torch.uint8)] * 2
    assert [float(rows["scores"]) for rows in found] == [51, 102, 153]
    assert [int(rows["labels"]) for rows in found] == [1, 1, 2]
