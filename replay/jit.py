"""One source for compiled and plain Python: hot functions are plain functions that numba may compile.

`hot` marks a function that a kernel calls: it stays an ordinary Python function (the oracle runs it as
such) and is compiled into any kernel that calls it. `compiled` makes the kernel; the result is cached on
disk, so only the first replay on a machine pays for the compiler.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np

__all__ = ["compiled", "hot", "int64"]

F = TypeVar("F", bound=Callable[..., object])

_marked: list[Callable[..., object]] = []
"""Functions marked by `hot` that numba does not know yet: importing numba takes a quarter of a second."""

_OPTIONS: Any = {"_nrt": False}
"""The kernels never allocate, so reference counting is off: with it, each call in a loop counts all arrays of
a world up and down, 20 times slower."""


def hot(function: F) -> F:
    """Mark a function as callable from compiled kernels; it stays callable from Python.

    >>> @hot
    ... def double(x: int) -> int:
    ...     return 2 * x
    >>> double(21)
    42
    """
    _marked.append(function)
    return function


def compiled(function: F) -> F:
    """Return the compiled twin of a function; it releases the GIL and is cached on disk.

    Integers are int64 and wrap as in numpy; division by zero gives what numpy gives. The function and what
    it calls must not make arrays.
    """
    import numba
    from numba.extending import register_jitable

    while _marked:
        register_jitable(forceinline=True, **_OPTIONS)(_marked.pop())
    return cast(F, numba.njit(cache=True, nogil=True, error_model="numpy", **_OPTIONS)(function))


@hot
def int64(value: Any) -> Any:
    """Return a number as int64, whatever column it came from: one type for all that hooks see."""
    return np.int64(value)
