"""Reads on in another thread while what was read is being used."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

__all__ = ["ahead"]

T = TypeVar("T")

_END: Final[Any] = object()


def ahead(items: Iterator[T], depth: int = 1) -> Generator[T]:
    """Yield what `items` yields, made in another thread, up to `depth` items before they are asked for.

    What `items` raises is raised here. The thread ends with this iterator, and `items` with it where it is a
    generator. Worth it where making an item releases the GIL.

    >>> list(ahead(iter("abc"), depth=2))
    ['a', 'b', 'c']
    """
    with ThreadPoolExecutor(1, thread_name_prefix="tracekit-ahead") as other:
        coming = deque(other.submit(next, items, _END) for _ in range(depth))
        try:
            while (item := coming.popleft().result()) is not _END:
                coming.append(other.submit(next, items, _END))
                yield item
        finally:
            other.shutdown(cancel_futures=True)
            if isinstance(items, Generator):
                items.close()
