"""Kernel functions whose entry or return is an event, where a kernel has no tracepoint that tells it.

Functions change from kernel to kernel, so the kernel itself is asked: its type information (BTF) says whether
the arguments are the expected ones, and ftrace whether the function can be hooked. A program there (fentry,
fexit) gets the arguments as they are passed, like a raw tracepoint's.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from functools import cache
from typing import Final

from tracekit.probes import btf, tracefs
from tracekit.probes.raw import raw_tracepoint
from tracekit.probes.tracefs import Field, Tracepoint

__all__ = ["FUNCTION", "candidates", "function_point", "lookup", "plain"]

FUNCTION: Final = "function"
"""The category of events that are a function of the kernel, where tracepoints have theirs."""


@dataclass(frozen=True)
class _Function:
    """A function, the types of its first arguments, and what they are called in the C files."""

    name: str
    types: tuple[str, ...]
    fields: tuple[str, ...] = ("page",)
    at_return: bool = False


_PAGE: Final = ("struct page *",)
_FOLIO: Final = ("struct folio *",)
_ON_DEVICE: Final = ("struct block_device *", "sector_t", "struct page *")
_ON_DEVICE_NAMES: Final = ("device", "sector", "page")
_OF_MEMORY: Final = ("struct mm_struct *", "long unsigned int", "long unsigned int")
_OF_MEMORY_NAMES: Final = ("mm", "start", "end")

_PLACES: Final[dict[str, tuple[_Function, ...]]] = {
    "count_memcg_events": (
        _Function(
            "__count_memcg_events",
            ("struct mem_cgroup *", "vm_event_item", "long unsigned int"),
            ("memcg", "item", "val"),
        ),
    ),
    "swap_read": (_Function("swap_readpage", _PAGE), _Function("swap_read_folio", _FOLIO)),
    "swap_write": (_Function("__swap_writepage", _PAGE), _Function("__swap_writepage", _FOLIO)),
    # Whose memory it is that KVM is told of; both ageing ones lead to kvm:kvm_age_hva.
    "unmaps": (
        _Function("__mmu_notifier_invalidate_range_start", ("struct mmu_notifier_range *",), ("range",)),
    ),
    "ages": (_Function("__mmu_notifier_clear_flush_young", _OF_MEMORY, _OF_MEMORY_NAMES),),
    "ages_lightly": (_Function("__mmu_notifier_clear_young", _OF_MEMORY, _OF_MEMORY_NAMES),),
    # A device of memory (zram) may take a page at once, without a request: bdev_*_page, until Linux 6.2.
    "page_read_returns": (_Function("bdev_read_page", _ON_DEVICE, _ON_DEVICE_NAMES, at_return=True),),
    "page_write_returns": (_Function("bdev_write_page", _ON_DEVICE, _ON_DEVICE_NAMES, at_return=True),),
}

_FUNCTIONS: Final = _PLACES | {
    f"{name}_returns": tuple(replace(function, at_return=True) for function in _PLACES[name])
    for name in ("swap_read", "swap_write")
}
"""The functions of an event `function:NAME`, from older to newer kernels."""


def lookup(category: str, event: str) -> Tracepoint | None:
    """Return how this kernel tells an event: by a tracepoint, raw where that can be, or a function; or None.

    Raises CapabilityError where tracefs can't be read.
    """
    return raw_tracepoint(category, event) or plain(category, event)


def plain(category: str, event: str) -> Tracepoint | None:
    """Return what `lookup` does, but tracepoints never raw: what there is, quicker.

    Raises CapabilityError where tracefs can't be read.
    """
    return function_point(event) if category == FUNCTION else tracefs.tracepoint(category, event)


def function_point(event: str) -> Tracepoint | None:
    """Return the function of this kernel for an event `function:EVENT`; None where it has none that fits.

    >>> function_point("no_such_event") is None
    True
    """
    for function in _FUNCTIONS.get(event, ()):
        found = btf.function(function.name)
        known = len(function.types)
        if found is None or found.arguments[:known] != function.types or function.name not in _hookable():
            continue
        names = [*function.fields, *(f"_argument_{at}" for at in range(known, len(found.arguments)))]
        if function.at_return and found.returns != "void":
            names.append("ret")
        fields = tuple(Field(name, 8 * at, 8, signed=False) for at, name in enumerate(names))
        return Tracepoint(FUNCTION, event, fields, True, function.name, function.at_return)
    return None


def candidates(event: str) -> str:
    """Say which functions would serve for an event `function:EVENT`, for people.

    >>> candidates("swap_read")
    'function swap_readpage or swap_read_folio that can be hooked'
    """
    names = dict.fromkeys(function.name for function in _FUNCTIONS[event])
    return f"function {' or '.join(names)} that can be hooked"


@cache
def _hookable() -> frozenset[str]:
    """Return which of the functions ftrace has a place to hook in; none where the kernel has no ftrace."""
    wanted = {function.name for functions in _FUNCTIONS.values() for function in functions}
    listed = tracefs.tracefs_root() / "available_filter_functions"
    with contextlib.suppress(OSError), listed.open() as lines:
        return frozenset(wanted.intersection(line.split(maxsplit=1)[0] for line in lines))
    return frozenset()
