"""Kernel samepage merging: its settings for a while, what it has merged, and when it has been through."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tracekit.errors import CapabilityError

__all__ = ["Sharing", "ksm_counter", "ksm_settings", "merged_pages"]

_KSM: Final = Path("/sys/kernel/mm/ksm")
_QUIET_SCANS: Final = 4
"""Scans of all memory without a change: ksmd remembers a page in one and merges it in the next."""

_STILL_S: Final = 0.5
"""Time that nothing changes before a sample is taken: a curve of memory has 512 points for a whole trace."""


@contextlib.contextmanager
def ksm_settings(**settings: int) -> Iterator[None]:
    """Set files of /sys/kernel/mm/ksm for the block, and put back what they held.

    Raises `CapabilityError` where this kernel has no KSM or we may not set it.
    """
    before: dict[str, str] = {}
    try:
        for name, value in settings.items():
            before[name] = (_KSM / name).read_text().strip()
            (_KSM / name).write_text(str(value))
        yield
    except PermissionError as error:
        raise CapabilityError(f"cannot write {error.filename}: not root", hint="run it as root") from None
    except FileNotFoundError as error:
        raise CapabilityError(f"this kernel has no KSM ({error.filename})") from None
    finally:
        for name, held in reversed(before.items()):
            (_KSM / name).write_text(held)


def ksm_counter(name: str) -> int:
    """Return a number of /sys/kernel/mm/ksm, such as pages_sharing (of the whole machine)."""
    return int((_KSM / name).read_text())


def merged_pages(process: int | str = "self") -> int:
    """Return how many of a process's pages are merged (Linux 6.1)."""
    words = Path(f"/proc/{process}/ksm_stat").read_text().split()
    return int(words[words.index("ksm_merging_pages") + 1]) if "ksm_merging_pages" in words else 0


class Sharing:
    """A process whose memory is open to KSM; `samples` says what ksmd had made of it at some moments.

    Other processes' memory may be open to KSM too (QEMU's is), so the machine's counts say nothing of this
    one's. What it saves is Rss - Pss of the mappings that are open to it (Pss counts a page by its share in
    those that map it, and is cut to KiB: so in whole pages).
    """

    def __init__(self, process: int | str = "self") -> None:
        self._process = process
        self.samples: dict[str, dict[str, int]] = {}

    def sample(self, name: str) -> None:
        """Where ksmd runs, wait until it finds nothing more; note when, and how many bytes are saved.

        Raises `CapabilityError` where it does not get round.
        """
        if _KSM.exists() and ksm_counter("run") == 1:
            _wait_for_ksmd(self._process)
            time.sleep(_STILL_S)
            self.samples[name] = {"ts_ns": time.monotonic_ns(), "bytes": self._shared_bytes()}

    def _shared_bytes(self) -> int:
        total_kib = 0
        resident = proportional = 0
        for line in Path(f"/proc/{self._process}/smaps").read_text().splitlines():
            head, *words = line.split()
            if head == "Rss:":
                resident = int(words[0])
            elif head == "Pss:":
                proportional = int(words[0])
            elif head == "VmFlags:" and "mg" in words:  # the last line of a mapping
                total_kib += resident - proportional
        return total_kib // 4 * 4096


def _wait_for_ksmd(process: int | str, patience_s: float = 120.0) -> None:
    """Return when ksmd has scanned all memory some times without a change in what the process shares."""
    deadline = time.monotonic() + patience_s
    before, since = -1, ksm_counter("full_scans")
    while ksm_counter("full_scans") < since + _QUIET_SCANS:
        if time.monotonic() > deadline:
            raise CapabilityError(f"ksmd did not get round in {patience_s:.0f} s", hint="an idler machine")
        time.sleep(0.005)
        if (now := merged_pages(process)) != before:
            before, since = now, ksm_counter("full_scans")
