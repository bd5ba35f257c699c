"""A few kills, and a change of the number of processes."""
import random
import time

import pytest

from tools.soak_runs import change_processes, kill_runs
from tools.soaking import Soak, Workshop


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.parametrize("part", [kill_runs, change_processes])
def test_a_part_finds_nothing(part, tmp_path, capsys):
    soak = Soak("part", Workshop(tmp_path), random.Random(0), time.monotonic() + 120, kills=2)
    part(soak)
    assert soak.faults == 0
    assert ("kills (" if part is kill_runs else "2 to 1 processes: a training of ") in capsys.readouterr().out
