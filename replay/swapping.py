"""Where swapped pages are: what each device costs, and how a page there is marked."""

from __future__ import annotations

from typing import Final

from tracekit.replay.pages import C_READ_AT_ONCE, C_SWAPPED

__all__ = ["DEVICES", "mark_of", "page_out_cost", "swap_in_cost", "swap_out_cost"]

DEVICES: Final = ("zram", "nvme", "hdd", "file")
_SYNCHRONOUS: Final = ("zram",)


def mark_of(device: str) -> int:
    """Return the bits of a page whose contents are on a device (FACTS B3: zram is read at once)."""
    return C_SWAPPED | (C_READ_AT_ONCE if device in _SYNCHRONOUS else 0)


def swap_in_cost(device: str) -> str:
    """Return the cost of one swap-in by name; it holds the way out of the guest and back.

    >>> swap_in_cost("zram")
    'swap_in_zram'
    """
    return f"swap_in_{device}"


def page_out_cost(device: str) -> str:
    """Return the cost of paging one page out that the host was told of, by name."""
    return "page_out_zram" if device == "zram" else "swap_out_device"


def swap_out_cost(device: str) -> str:
    """Return the cost of one eviction under a limit, by name.

    >>> swap_out_cost("file")
    'swap_out_device'
    """
    return "swap_out_zram" if device == "zram" else "swap_out_device"
