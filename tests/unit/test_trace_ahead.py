"""Reading ahead in another thread: the same items, bounded, errors where they are asked for, no leftovers."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from tracekit.trace.ahead import ahead


def until(condition: object) -> None:
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:  # type: ignore[operator]
        time.sleep(0.001)
    assert condition()  # type: ignore[operator]


@pytest.mark.parametrize("depth", [1, 3, 50])
def test_every_item_once_in_order(depth: int) -> None:
    assert list(ahead(iter(range(20)), depth)) == list(range(20))
    assert list(ahead(iter(()), depth)) == []


def test_no_more_than_so_many_are_made_before_they_are_asked_for() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            yield number

    reading = ahead(items(), 4)
    assert next(reading) == 0
    until(lambda: len(made) == 5)
    time.sleep(0.05)
    assert made == [0, 1, 2, 3, 4]
    reading.close()


def test_an_error_is_raised_by_who_asks_behind_all_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("broken here")

    reading = ahead(items(), 8)
    assert [next(reading), next(reading)] == [1, 2]
    with pytest.raises(ValueError, match="broken here"):
        next(reading)
    assert list(reading) == []


def test_the_thread_and_what_it_reads_end_with_the_iterator() -> None:
    ended = threading.Event()

    def items() -> Iterator[int]:
        try:
            yield from range(1_000_000)
        finally:
            ended.set()

    def readers() -> int:
        return sum(one.name.startswith("tracekit-ahead") for one in threading.enumerate())

    assert readers() == 0
    reading = ahead(items(), 2)
    assert next(reading) == 0
    assert readers() == 1
    reading.close()
    assert ended.is_set()
    assert readers() == 0
