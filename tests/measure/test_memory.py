import os

import pytest
import torch

from measure.memory import measure_memory

CPU = torch.device("cpu")


@pytest.mark.skipif(not os.path.isfile("/proc/self/status"), reason="no /proc")
def test_memory_is_what_the_call_itself_needs():
    torch.ones(60 * 2**20)  # 240 MB that are gone before
    kept = torch.ones(10 * 2**20)
    extra, peak = measure_memory(lambda: torch.ones(25 * 2**20), CPU)
    assert 95 < extra < 130 and peak > extra + 40 and kept[0] == 1
