import os
import queue
import signal
import threading

import pytest

from util.signals import StopRequest, ignore_in_worker


@pytest.fixture(autouse=True)
def keep_handlers():
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_remembered(number):
    stop = StopRequest()
    assert not stop.requested
    os.kill(os.getpid(), number)
    assert stop.requested and stop.exit_code == 128 + number


def test_an_immediate_repetition_changes_nothing_a_later_ctrl_c_interrupts(monkeypatch):
    stop = StopRequest()
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
    monkeypatch.setattr("time.monotonic", lambda: stop._since + 3)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_between_two_items_ends_them_after_the_one_in_progress():
    stop, seen = StopRequest(), []
    for item in stop.until(iter(range(5))):
        seen.append(item)
        if item == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            seen.append("done")
    assert seen == [0, 1, "done"] and stop.exit_code == 128 + signal.SIGTERM
    assert list(StopRequest().until(iter(range(3)))) == [0, 1, 2]


def test_a_signal_ends_the_wait_for_an_item_that_never_comes():
    closed = []

    def items():
        try:
            yield 0
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
            queue.Queue().get()
        finally:
            closed.append(True)

    stop = StopRequest()
    assert list(stop.until(items())) == [0] and stop.requested and closed == [True]


def test_workers_leave_the_signals_to_their_parent():
    ignore_in_worker(0)
    os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
