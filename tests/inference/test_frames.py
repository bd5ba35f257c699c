import gc
import threading
import time

import pytest

from inference.frames import MOST_NAMED, Skipped, prefetched


def test_what_is_skipped_is_counted_and_the_first_are_named():
    messages = []
    skipped = Skipped(messages.append)
    for i in range(MOST_NAMED + 5):
        skipped.add(f"file {i}", f"cannot read {i}")
    assert skipped.count == MOST_NAMED + 5 and len(messages) == MOST_NAMED
    assert str(skipped).startswith("file 0, file 1") and str(skipped).endswith("and 5 more")
    assert str(Skipped(named=["a"], count=1)) == "a"


def test_all_items_come_in_their_order():
    assert list(prefetched(iter(range(100)), 3)) == list(range(100))
    assert list(prefetched(iter([]), 3)) == []


def test_no_more_wait_than_asked_for():
    made = []

    def items():
        for i in range(100):
            made.append(i)
            yield i

    reader = prefetched(items(), 3)
    assert next(reader) == 0
    time.sleep(0.2)
    assert len(made) <= 1 + 3 + 1  # read, waiting, in the thread's hand
    reader.close()


def test_an_error_in_the_thread_is_raised_where_the_items_are_read():
    def items():
        yield 1
        raise ValueError("broken")

    reader = prefetched(items(), 3)
    assert next(reader) == 1
    with pytest.raises(ValueError, match="broken"):
        next(reader)


def test_the_thread_ends_when_the_reader_does():
    closed = threading.Event()

    def items():
        try:
            while True:
                yield 1
        finally:
            closed.set()

    reader = prefetched(items(), 2)
    next(reader)
    reader.close()
    for _ in range(50):
        gc.collect()
        if closed.wait(0.1):
            break
    assert closed.is_set()
    assert not any(thread.name == "reads ahead" for thread in threading.enumerate())


def test_a_slow_reader_of_a_live_source_gets_the_newest_item():
    """The source goes on while the reader is busy."""
    made, go_on = threading.Event(), threading.Event()

    def items():
        yield 0
        go_on.wait(10)
        yield from range(1, 1000)
        made.set()
        time.sleep(0.2)

    reader = prefetched(items(), 5, newest=True)
    assert next(reader) == 0
    go_on.set()
    assert made.wait(10)
    time.sleep(0.05)
    assert list(reader) == [999]
