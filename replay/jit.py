"""One source for compiled and plain Python: hot functions are plain functions that numba may compile.

`hot` marks a function that a kernel calls: it stays an ordinary Python function (the oracle runs it as
such) and is compiled into any kernel that calls it. `compiled` makes the kernel; the result is cached on
disk, so only the first replay on a machine pays for the compiler.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Final, TypeVar, cast

import numpy as np

__all__ = ["compiled", "compiled_for", "hot", "int64", "prefetch", "rare"]

F = TypeVar("F", bound=Callable[..., object])

_marked: list[tuple[Callable[..., object], bool]] = []
"""Functions marked by `hot` (True) or `rare` (False) that numba does not know yet: importing it takes a
quarter of a second."""

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
    _marked.append((function, True))
    return function


def rare(function: F) -> F:
    """Mark a function that kernels call now and then: like `hot`, but out of the way of what runs always."""
    _marked.append((function, False))
    return function


def compiled(function: F) -> F:
    """Return the compiled twin of a function; it releases the GIL and is cached on disk.

    Integers are int64 and wrap as in numpy; division by zero gives what numpy gives. The function and what
    it calls must not make arrays.
    """
    import numba
    from numba.extending import register_jitable

    _teach_prefetch()
    while _marked:
        one, inline = _marked.pop()
        register_jitable(forceinline=inline, **_OPTIONS)(one)
    # Under any other name (doctests see this package as `replay`) numba would leave kernels in the cache
    # whose argument types nobody else can load.
    own = function.__module__.startswith("tracekit.")
    return cast(F, numba.njit(cache=own, nogil=True, error_model="numpy", **_OPTIONS)(function))


PLAIN_STEPS: Final = 1 << 18


def compiled_for(steps: int, function: F) -> F:
    """Return the compiled twin of a function if it has so many steps to do that this is quicker."""
    return _twin(function) if steps > PLAIN_STEPS else function


@cache
def _twin(function: Any) -> Any:
    return compiled(function)


@hot
def int64(value: Any) -> Any:
    """Return a number as int64, whatever column it came from: one type for all that hooks see."""
    return np.int64(value)


def prefetch(array: Any, index: Any) -> None:
    """Call `array[index]` into the cache, if compiled; as plain Python it does nothing. Any index is safe."""


@cache
def _teach_prefetch() -> None:
    """Tell numba how to compile `prefetch`: one LLVM intrinsic (numba itself has none for it)."""
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic, overload

    byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
    head = ir.FunctionType(ir.VoidType(), [byte, word, word, word])

    def typed(typing: Any, array: Any, index: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            data = context.make_array(signature.args[0])(context, builder, args[0]).data
            at = builder.bitcast(builder.gep(data, [args[1]]), byte)
            function = builder.module.globals.get("llvm.prefetch.p0")
            if function is None:
                function = ir.Function(builder.module, head, "llvm.prefetch.p0")
            builder.call(function, [at, word(1), word(3), word(1)])  # for writing, keep close, data
            return context.get_dummy_value()

        return types.void(array, index), generate

    call: Any = intrinsic(typed)

    def compiled_prefetch(array: Any, index: Any) -> Any:
        def body(array: Any, index: Any) -> None:
            call(array, index)

        return body

    options: Any = {"forceinline": True, **_OPTIONS}
    overload(prefetch, jit_options=options)(compiled_prefetch)
