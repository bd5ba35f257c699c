import time

import torch

from measure.clock import CallCounter, Clock


def test_parts_within_parts_count_once():
    clock = Clock(torch.device("cpu"))
    with clock.part("outer"):
        time.sleep(0.02)
        with clock.part("inner"):
            time.sleep(0.05)
    assert clock.spent["inner"] >= 0.05 > clock.spent["outer"] >= 0.02


def test_calls_count_for_the_current_part_without_views():
    clock = Clock(torch.device("cpu"))
    with CallCounter(clock) as counter, clock.part("sum"):
        torch.ones(4).view(2, 2).sum()
    assert counter.calls == {"sum": 2}  # ones and sum


def test_a_wrapped_method_is_a_part():
    class Work:
        def run(self, x):
            return x + 1

    clock, work = Clock(torch.device("cpu")), Work()
    clock.wrap(work, "run", "work")
    assert work.run(1) == 2 and clock.spent["work"] > 0
