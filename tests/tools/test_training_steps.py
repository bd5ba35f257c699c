import torch
from torch import nn

from tools.training_steps import Recipe, TimedBatches


def test_memory_format_follows_the_recipe(tiny_config, tmp_path):
    tiny_config.dump(tmp_path / "config.py")
    for channels_last in (True, False):
        model, _ = Recipe(str(tmp_path / "config.py"), channels_last=channels_last).build()
        weight = next(m.weight for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3))
        assert weight.is_contiguous(memory_format=torch.channels_last) == channels_last


def test_batches_come_again_and_are_timed():
    batches = TimedBatches(["a", "b"], 3, torch.device("cpu"))
    assert list(batches) == ["a", "b", "a"] and len(batches) == 3 and len(batches.stamps) == 4
