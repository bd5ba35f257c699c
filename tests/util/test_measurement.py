import os

import pytest
import torch

from util.measurement import measure_memory, number, table

CPU = torch.device("cpu")


@pytest.mark.skipif(not os.path.isfile("/proc/self/status"), reason="no /proc")
def test_memory_is_what_the_call_itself_needs():
    torch.ones(60 * 2**20)  # 240 MB that are gone before
    kept = torch.ones(10 * 2**20)
    extra, peak = measure_memory(lambda: torch.ones(25 * 2**20), CPU)
    assert 95 < extra < 130 and peak > extra + 40 and kept[0] == 1


def test_tables_align_numbers_to_the_right():
    assert table(["name", "ms"], [["2 boxes", "1.5"], ["x", "-"]]).splitlines() == [
        "| name    |  ms |", "| ------- | --: |", "| 2 boxes | 1.5 |", "| x       |   - |"]
    assert [number(x) for x in (0.01234, 1.5, 12.34, 123.4, 1234.5, 0.0, None)] == [
        "0.0123", "1.50", "12.3", "123", "1234", "0", "-"]
