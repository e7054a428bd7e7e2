"""From bytes to numbers: finds who, where, when and which event in each line, and reads the event's fields.

All tools write `WHO [CPU] … TIME: EVENT: TEXT`. WHO ends in the thread's number: after a space (perf, which
may put the process before it: PID/TID) or after a dash (ftrace, trace-cmd, with the process in parentheses
where they know it). Compiled: some 3 million lines a second and core.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from tracekit.datasets.importers.layouts import Slot
from tracekit.datasets.importers.program import (
    FNV_PRIME,
    FNV_START,
    STEP_ANY,
    STEP_DECIMAL,
    STEP_HEX,
    STEP_REST,
    STEP_SEARCH,
    STEP_TEXT,
    program,
)
from tracekit.replay.jit import compiled, hot

__all__ = ["BAD_HEADER", "BAD_TEXT", "EVENT", "OTHER_EVENT", "QUIET", "Scanned", "scan"]

EVENT: Final = 0  # an event of the table, read
OTHER_EVENT: Final = 1  # an event that is not in the table
BAD_TEXT: Final = 2  # an event of the table in no layout that we know
BAD_HEADER: Final = 3  # not an event line
QUIET: Final = 4  # empty, a comment, or a line of a call chain

SLOTS: Final = len(Slot)
_VCPU: Final = int(Slot.VCPU)
_NEWLINE, _SPACE, _TAB, _CR = 10, 32, 9, 13
_DASH, _SLASH, _DOT, _COLON, _OPEN, _CLOSE = 45, 47, 46, 58, 40, 41
_LEFT, _RIGHT, _GREATER, _HASH, _ZERO, _X = 91, 93, 62, 35, 48, 120
_NANO_DIGITS: Final = 9


class Scanned(NamedTuple):
    """One row per line: `status`, where it begins and ends in the block, and for events all the rest.

    pid and values are -1 where the line has none (values: of vCPU only; other slots are 0).
    """

    status: npt.NDArray[np.uint8]
    begin: npt.NDArray[np.int64]
    end: npt.NDArray[np.int64]
    ts_ns: npt.NDArray[np.int64]
    tid: npt.NDArray[np.int64]
    pid: npt.NDArray[np.int64]
    cpu: npt.NDArray[np.int64]
    name_begin: npt.NDArray[np.int64]
    name_end: npt.NDArray[np.int64]
    name: npt.NDArray[np.int64]  # hash
    layout: npt.NDArray[np.int64]
    values: npt.NDArray[np.int64]  # [line, slot]; u64 as its two's complement


_INTEGERS: Final = ("ts_ns", "tid", "pid", "cpu", "name_begin", "name_end", "name", "layout")


def scan(block: bytes) -> Scanned:
    """Read a block of lines.

    >>> line = b"  CPU 0/KVM 18822 [001]  2321.527335: kvmmmu:kvm_mmu_spte_requested: gfn 1f pfn 10 level 1"
    >>> # A cached kernel remembers its module's name, so it is called by the name that users import.
    >>> from tracekit.datasets.importers.scan import scan
    >>> got = scan(line)
    >>> int(got.status[0]) == EVENT, int(got.ts_ns[0]), int(got.tid[0]), int(got.values[0, Slot.GFN])
    (True, 2321527335000, 18822, 31)
    """
    data = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(data == _NEWLINE)
    if data.size and (not ends.size or ends[-1] != data.size - 1):
        ends = np.append(ends, data.size)
    lines = ends.size
    out = Scanned(
        status=np.zeros(lines, np.uint8),
        begin=np.concatenate(([0], ends[:-1] + 1)).astype(np.int64)[:lines],
        end=ends.astype(np.int64),
        values=np.zeros((lines, SLOTS), np.int64),
        **{name: np.zeros(lines, np.int64) for name in _INTEGERS},
    )
    # Plain tuples: a cached kernel must not depend on the name this module was imported under.
    _scan_lines(data, tuple(out), tuple(program()))
    return out


@hot
def _is_digit(byte: int) -> bool:
    return 48 <= byte <= 57


@hot
def _hex_value(byte: int) -> int:
    if 48 <= byte <= 57:
        return byte - 48
    if 97 <= byte <= 102:
        return byte - 87
    if 65 <= byte <= 70:
        return byte - 55
    return -1


@hot
def _skip_spaces(data: np.ndarray, at: int, end: int) -> int:
    while at < end and (data[at] == _SPACE or data[at] == _TAB):
        at += 1
    return at


@hot
def _number_before(data: np.ndarray, begin: int, at: int) -> tuple[int, int]:
    """Read the decimal digits that end before `at`; returns where they begin, and their value or -1."""
    value, scale, first = 0, 1, at
    while first > begin and _is_digit(data[first - 1]) and at - first < 18:
        first -= 1
        value += (int(data[first]) - 48) * scale
        scale *= 10
    return first, value if first < at else -1


@hot
def _left(data: np.ndarray, begin: int, at: int) -> tuple[int, int, int]:
    """Read WHO before the bracket at `at`; returns (tid or -1, pid or -1, vcpu or -1)."""
    while at > begin and data[at - 1] == _SPACE:
        at -= 1
    pid = -1
    if at > begin and data[at - 1] == _CLOSE:
        _, pid = _number_before(data, begin, at - 1)
        while at > begin and data[at - 1] != _OPEN:
            at -= 1
        at -= 1
        while at > begin and data[at - 1] == _SPACE:
            at -= 1
    at, tid = _number_before(data, begin, at)
    if tid < 0:
        return -1, -1, -1
    if at > begin and data[at - 1] == _SLASH:
        at, pid = _number_before(data, begin, at - 1)
    # The comm's end: "CPU 3/KVM" is what QEMU calls the thread of a vCPU.
    if at > begin and (data[at - 1] == _DASH or data[at - 1] == _SPACE):
        at -= 1
    elif at > begin:
        return -1, -1, -1
    while at > begin and data[at - 1] == _SPACE:
        at -= 1
    vcpu = -1
    if at - begin >= 9 and data[at - 4] == _SLASH and data[at - 3] == 75 and data[at - 1] == 77:
        first, vcpu = _number_before(data, begin, at - 4)
        if not (first - begin >= 4 and data[first - 2] == 85 and data[first - 4] == 67):
            vcpu = -1
    return tid, pid, vcpu


@hot
def _time(data: np.ndarray, at: int, end: int) -> tuple[int, int]:
    """Read `seconds.fraction:` at `at`; returns (where it ends or -1, ns)."""
    seconds, digits = 0, 0
    while at < end and _is_digit(data[at]) and digits < 10:
        seconds = seconds * 10 + int(data[at]) - 48
        at += 1
        digits += 1
    if digits == 0 or at >= end or data[at] != _DOT:
        return -1, 0
    at += 1
    fraction, digits = 0, 0
    while at < end and _is_digit(data[at]) and digits < _NANO_DIGITS:
        fraction = fraction * 10 + int(data[at]) - 48
        at += 1
        digits += 1
    if digits == 0 or at >= end or data[at] != _COLON:
        return -1, 0
    for _ in range(_NANO_DIGITS - digits):
        fraction *= 10
    return at + 1, seconds * 1_000_000_000 + fraction


@hot
def _right(data: np.ndarray, at: int, end: int) -> tuple[int, int]:
    """After `[CPU]`: skip ftrace's flags, read the time; returns (where it ends or -1, ns)."""
    for _ in range(3):
        at = _skip_spaces(data, at, end)
        after, ts_ns = _time(data, at, end)
        if after >= 0:
            return after, ts_ns
        while at < end and data[at] != _SPACE:
            at += 1
    return -1, 0


@hot
def _name(data: np.ndarray, at: int, end: int) -> tuple[int, int, int]:
    """Read `[period] [system:]name` and what follows; returns (begin, end, where its text begins)."""
    at = _skip_spaces(data, at, end)
    begin = at
    while at < end and _is_digit(data[at]):
        at += 1
    counted = at > begin and at < end and data[at] == _SPACE  # perf's period, before the name
    begin = at = _skip_spaces(data, at, end) if counted else begin
    while at < end and data[at] != _SPACE and data[at] != _OPEN:
        if data[at] == _COLON and at + 1 < end and data[at + 1] != _SPACE:
            begin = at + 1
        at += 1
    last = at
    if last > begin and data[last - 1] == _COLON:
        last -= 1
    elif at < end and data[at] == _OPEN:
        last, at = at + 1, at + 1
    elif at + 3 < end and data[at + 1] == _DASH and data[at + 2] == _GREATER:
        at += 3
    return begin, last, at


@hot
def _text(
    data: np.ndarray, at: int, end: int, values: np.ndarray, p: tuple[np.ndarray, ...], first: int, last: int
) -> bool:
    """Run the steps of one layout over the text; fills `values`; returns whether all of it fits."""
    steps, slots, text_at, text_end, text = p[4], p[5], p[6], p[7], p[8]
    for s in range(first, last):
        step = steps[s]
        if step == STEP_REST:
            return True
        if step == STEP_TEXT:
            for t in range(text_at[s], text_end[s]):
                want = text[t]
                if at >= end or data[at] != want:
                    return False
                at += 1
                if want == _SPACE:
                    at = _skip_spaces(data, at, end)
        elif step == STEP_ANY:
            begin = at
            while at < end and data[at] != _SPACE:
                at += 1
            if at == begin:
                return False
        elif step == STEP_SEARCH:
            size = text_end[s] - text_at[s]
            found = 0
            for start in range(at, end - size + 1):
                same = True
                for t in range(size):
                    if data[start + t] != text[text_at[s] + t]:
                        same = False
                        break
                if same:
                    found = 1
                    break
            values[slots[s]] = found
            return True
        else:
            prefixed = at + 1 < end and data[at] == _ZERO and data[at + 1] == _X
            hexadecimal = step == STEP_HEX or (step != STEP_DECIMAL and prefixed)
            if hexadecimal and prefixed:
                at += 2
            value, begin = 0, at
            while at < end:
                digit = _hex_value(data[at])
                if digit < 0 or (digit > 9 and not hexadecimal):
                    break
                value = value * 16 + digit if hexadecimal else value * 10 + digit
                at += 1
            if at == begin or at - begin > 20:
                return False
            values[slots[s]] = value
    return _skip_spaces(data, at, end) == end


@hot
def _is_chain(data: np.ndarray, begin: int, end: int) -> bool:
    """Say whether a line is of a call chain: spaces, an address, a space."""
    at = _skip_spaces(data, begin, end)
    if at == begin:
        return False
    first = at
    while at < end and _hex_value(data[at]) >= 0:
        at += 1
    return at - first >= 4 and at < end and data[at] == _SPACE


@compiled
def _scan_lines(data: np.ndarray, out: tuple[np.ndarray, ...], p: tuple[np.ndarray, ...]) -> None:
    (statuses, begins, ends, times, tids, pids, cpus, name_begins, name_ends, names, layouts, all_values) = (
        out
    )
    known, first_layout, layout_of, first_step = p[0], p[1], p[2], p[3]
    for line in range(begins.size):
        begin, end = begins[line], ends[line]
        while end > begin and (data[end - 1] == _CR or data[end - 1] == _SPACE):
            end -= 1
        ends[line] = end
        if end == begin or data[begin] == _HASH:
            statuses[line] = QUIET
            continue
        statuses[line] = BAD_HEADER
        for bracket in range(begin, end - 2):
            if data[bracket] != _LEFT or not _is_digit(data[bracket + 1]):
                continue
            at = bracket + 1
            cpu = 0
            while at < end and _is_digit(data[at]) and at - bracket < 10:
                cpu = cpu * 10 + int(data[at]) - 48
                at += 1
            if at >= end or data[at] != _RIGHT:
                continue
            tid, pid, vcpu = _left(data, begin, bracket)
            if tid < 0 or tid >= 1 << 32:
                continue
            at, ts_ns = _right(data, at + 1, end)
            if at < 0:
                continue
            name_begin, name_end, at = _name(data, at, end)
            times[line], tids[line], pids[line], cpus[line] = ts_ns, tid, pid, cpu
            name_begins[line], name_ends[line] = name_begin, name_end
            name = FNV_START
            for i in range(name_begin, name_end):
                name = (name ^ int(data[i])) * FNV_PRIME
            if at - name_end == 3 and data[name_end] == _SPACE:  # "name -> …"
                name = (name ^ _GREATER) * FNV_PRIME
            names[line] = name
            event = np.searchsorted(known, name)
            if event == known.size or known[event] != name:
                statuses[line] = OTHER_EVENT
                break
            statuses[line] = BAD_TEXT
            at = _skip_spaces(data, at, end)
            for n in range(first_layout[event], first_layout[event + 1]):
                values = all_values[line]
                values[:] = 0
                values[_VCPU] = vcpu
                if _text(data, at, end, values, p, first_step[n], first_step[n + 1]):
                    layouts[line] = layout_of[n]
                    statuses[line] = EVENT
                    break
            break
        if statuses[line] == BAD_HEADER and _is_chain(data, begin, end):
            statuses[line] = QUIET
