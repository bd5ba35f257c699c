"""A cut link, the operator under AddressSanitizer, and what a process uses."""
import os
import random
import threading
import time

import pytest

from tools import soak_machine
from tools.soak_machine import check_operator, cut_links, find_leaks
from tools.soaking import Soak, Workshop


def test_what_a_process_uses():
    memory, files, threads = soak_machine._usage(os.getpid())
    assert memory > 50 and threads >= 1
    hold, done = [open(os.devnull, encoding="utf-8") for _ in range(5)], threading.Event()
    waiting = threading.Thread(target=done.wait)
    waiting.start()
    more = soak_machine._usage(os.getpid())
    done.set()
    waiting.join()
    for file in hold:
        file.close()
    assert more[1] == files + 5 and more[2] == threads + 1
    assert soak_machine._usage(2**22 + 1) is None


@pytest.mark.parametrize("part, missing", [(cut_links, "ip"), (check_operator, "g++")])
def test_a_part_that_cannot_run_here_says_so(part, missing, tmp_path, monkeypatch, capsys):
    class Workshop:
        folder, start, run = tmp_path, None, None

    monkeypatch.setattr("shutil.which", lambda name: None if name == missing else f"/bin/{name}")
    soak = Soak("part", Workshop, random.Random(0), time.monotonic())
    part(soak)
    assert "part: skipped: " in capsys.readouterr().out and soak.faults == 0


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.parametrize("part, said", [(cut_links, "2 cuts"), (check_operator, "portable kernels: "),
                                        (find_leaks, "file descriptors")])
def test_a_part_finds_nothing(part, said, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(soak_machine, "STEPS", 200)
    monkeypatch.setattr(soak_machine, "STEPS_PER_EPOCH", 20)
    soak = Soak("part", Workshop(tmp_path), random.Random(0), time.monotonic() + 10)
    part(soak)
    output = capsys.readouterr().out
    if "part: skipped" in output:
        pytest.skip(output)
    assert said in output
    faults = [line for line in output.splitlines() if "FAULT" in line]
    # So short a run tells no slope.
    assert [line for line in faults if part is not find_leaks or "more every 1,000 steps" not in line] == [], output
