"""Asks a running QEMU where its guest's memory is, through its monitor."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Final

from tracekit.errors import FailedError

__all__ = ["ask_monitor", "memory_ranges", "parse_flat_view"]

_TIMEOUT_S: Final = 5.0
_MOST_BYTES: Final = 1 << 24
"""Of one answer; a memory tree of thousands of regions has a megabyte."""
_MOST_EVENTS: Final = 1000
"""That a monitor may tell of before it answers."""
_RAM: Final = re.compile(r"^\s+([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?\d+, (?:nv-)?ram\):")
_HVA: Final = re.compile(r" is (0x[0-9a-f]+)")


def ask_monitor(path: Path) -> Callable[[str], str]:
    """Return a function that runs one command of the human monitor through the QMP socket at `path`.

    Raises FailedError when nobody answers there.
    """

    def ask(command: str) -> str:
        request = {"execute": "human-monitor-command", "arguments": {"command-line": command}}
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(_TIMEOUT_S)
                connection.connect(str(path))
                lines = connection.makefile("rb")
                lines.readline(_MOST_BYTES)  # the greeting
                for message in ({"execute": "qmp_capabilities"}, request):
                    connection.sendall(json.dumps(message).encode() + b"\n")
                    answer = _answer(lines)
                    if "error" in answer:
                        raise FailedError(f"QEMU refused {command!r}: {answer['error']['desc']}")
                return str(answer["return"])
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise FailedError(
                f"QEMU's monitor at {path} does not answer: {error}",
                hint="start QEMU with -qmp unix:PATH,server,nowait",
            ) from error

    return ask


def _answer(lines: IO[bytes]) -> dict[str, Any]:
    """Return the next answer, past what QEMU tells on its own; ValueError where none comes."""
    for _ in range(_MOST_EVENTS):
        message = json.loads(lines.readline(_MOST_BYTES))
        if not isinstance(message, dict):
            raise ValueError("no QMP message")
        if "return" in message or "error" in message:
            return message
    raise ValueError("it talks and does not answer")


def parse_flat_view(text: str) -> list[tuple[int, int]]:
    """Return the (gpa, bytes) of RAM in the address space "memory" of `info mtree -f`.

    >>> parse_flat_view('''FlatView #0
    ...  AS "memory", root: system
    ...  Root memory region: system
    ...   0000000000000000-000000000009ffff (prio 0, ram): pc.ram
    ...   00000000000c0000-00000000000dffff (prio 1, rom): pc.rom''')
    [(0, 655360)]
    """
    for view in text.split("FlatView #"):
        if '"memory"' in view:
            spans = [(int(m[1], 16), int(m[2], 16)) for m in map(_RAM.match, view.splitlines()) if m]
            return [(first, last + 1 - first) for first, last in spans]
    return []


def memory_ranges(ask: Callable[[str], str]) -> list[tuple[int, int, int]]:
    """Return the guest's memory as (gpa, bytes, hva), by asking QEMU's human monitor."""
    found = []
    for gpa, size in parse_flat_view(ask("info mtree -f")):
        if match := _HVA.search(ask(f"gpa2hva {gpa:#x}")):
            found.append((gpa, size, int(match[1], 16)))
    return found
