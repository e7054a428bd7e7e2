"""The VMM's side of the memory enlightenments: it answers a guest's calls and acts on its hints.

Capabilities (0x8001), memory that is zeroed (0x8002), heat hints (0x8003): hot ranges are prefaulted by a
thread beside the guest, cold ones paged out, discarded ones dropped. The same code serves Hyper-V's
hypercalls and the small guest's call port.
"""

from __future__ import annotations

import queue
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self

from tracekit.lab import hyperv
from tracekit.lab.guest_memory import MADV_DONTNEED, MADV_PAGEOUT, MADV_POPULATE_WRITE, GuestMemory

__all__ = ["Backing", "Enlightenment"]

_CAPABILITIES: Final = (
    hyperv.CAPABILITY_BOOT_ZEROED | hyperv.CAPABILITY_HEAT_HINT | hyperv.CAPABILITY_COLD_DISCARD
)


@dataclass
class Backing:
    """A memslot's memory; `fresh` until the guest has run with it, so what it holds is zeroes."""

    gpa: int
    memory: GuestMemory
    fresh: bool = True


class Enlightenment:
    """Answers calls for these backings; the prefault thread ends with the with block, its queue dropped.

    `map_pages(gpa, bytes)` also maps prefaulted memory into the guest, where the host has a call for that.
    Unless `answers`, every call is refused as unknown: a VMM without the enlightenments. `waits_ns`: how long
    each hot hint waited until the thread began on it.
    """

    def __init__(
        self,
        backings: list[Backing],
        *,
        answers: bool = True,
        map_pages: Callable[[int, int], None] | None = None,
    ) -> None:
        self._backings = backings
        self._answers = answers
        self._map_pages = map_pages
        self._hot: queue.SimpleQueue[tuple[int, int, int] | None] = queue.SimpleQueue()
        self.waits_ns: list[int] = []
        self._counts: Counter[str] = Counter()
        self._failure: BaseException | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._prefault, name="prefault")

    def call(self, control: int, input_page: bytes) -> tuple[int, bytes]:
        """Answer a call: (Hyper-V status with the repetitions done in bits 32-43, output page or b"")."""
        code, repetitions = control & 0xFFFF, control >> 32 & 0xFFF
        self._counts[f"call_{code:#x}"] += 1
        if not self._answers:
            return hyperv.STATUS_INVALID_CODE, b""
        if code == hyperv.QUERY_CAPABILITIES:
            return 0, struct.pack("<Q", _CAPABILITIES).ljust(4096, b"\0")
        if code == hyperv.GET_BOOT_ZEROED:
            fresh = [(one.gpa >> 12, one.memory.size_bytes >> 12) for one in self._backings if one.fresh]
            return 0, hyperv.boot_zeroed_page(fresh)
        if code != hyperv.MEMORY_HEAT_HINT:
            return hyperv.STATUS_INVALID_CODE, b""
        try:
            heat, ranges = hyperv.decode_heat_hint(input_page, repetitions)
            for gpa, length in ranges:
                self._hint(heat, gpa, length)
        except ValueError:
            return hyperv.STATUS_INVALID_PARAMETER, b""
        return repetitions << 32, b""

    def used(self) -> None:
        """Note that the guest has run on all memory there is: nothing is known to be zero any more."""
        for backing in self._backings:
            backing.fresh = False

    def counts(self) -> dict[str, int]:
        """Return the counts: calls by code, pages by heat, the prefault thread's pages and busy time."""
        return dict(sorted(self._counts.items()))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        self._closing = True
        self._hot.put(None)
        self._thread.join()
        if self._failure and not failed:
            raise self._failure

    def _hint(self, heat: hyperv.Heat, gpa: int, length: int) -> None:
        backing, offset = self._find(gpa, length)
        self._counts[f"{heat}_pages"] += length >> 12
        if heat == "hot":
            self._hot.put((gpa, length, time.perf_counter_ns()))
        else:
            backing.memory.advise(MADV_DONTNEED if heat == "discard" else MADV_PAGEOUT, offset, length)

    def _find(self, gpa: int, length: int) -> tuple[Backing, int]:
        for backing in self._backings:
            offset = gpa - backing.gpa
            if offset >= 0 and offset + length <= backing.memory.size_bytes:
                return backing, offset
        raise ValueError(f"no memory at {gpa:#x}")

    def _prefault(self) -> None:
        while (hot := self._hot.get()) is not None:
            if self._failure or self._closing:
                continue
            gpa, length, hinted = hot
            started = time.perf_counter_ns()
            self.waits_ns.append(started - hinted)
            try:
                backing, offset = self._find(gpa, length)
                backing.memory.advise(MADV_POPULATE_WRITE, offset, length)
                if self._map_pages:
                    self._map_pages(gpa, length)
            except BaseException as error:  # raised at the end of the with block
                self._failure = error
            self._counts["prefaulted_pages"] += length >> 12
            self._counts["prefault_ns"] += time.perf_counter_ns() - started
