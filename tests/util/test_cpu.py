import os

import pytest

from util.cpu import available_cpus


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system does not bind processes to processors")
def test_only_the_processors_that_a_process_may_use_count():
    allowed = os.sched_getaffinity(0)
    assert available_cpus() == len(allowed)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert available_cpus() == 1
    finally:
        os.sched_setaffinity(0, allowed)
