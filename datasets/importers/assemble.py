"""From lines to records: what begins with one line and ends with another becomes one record with its latency.

The rules are those of the recorder's BPF programs (probes/bpf/fault_shadow.c, fault_tdp.c, reclaim.c), and
the records are theirs too, so that an imported trace means the same as a recorded one. What a text lacks
is null: without kvm_exit and kvm_entry lines a fault has no latency.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from tracekit.datasets.importers.layouts import LAYOUTS, Op, Slot
from tracekit.datasets.importers.scan import EVENT, Scanned
from tracekit.probes.wire import RECORD, VALID
from tracekit.replay.jit import compiled, hot
from tracekit.trace.schema import FLAG_ZEROED, KIND_CODE

__all__ = ["Assembler"]

_OP: Final = np.array([layout.op for layout in LAYOUTS], np.int64)
_KIND: Final = np.array([layout.kind_code for layout in LAYOUTS], np.int64)

_ADDRESS, _SIZE, _END = int(Slot.ADDRESS), int(Slot.SIZE), int(Slot.END)
_GFN, _LEVEL, _ERROR = int(Slot.GFN), int(Slot.LEVEL), int(Slot.ERROR)
_RIP, _ARG, _VCPU, _LATENCY = int(Slot.RIP), int(Slot.ARG), int(Slot.VCPU), int(Slot.LATENCY)
_ORDER, _FLAG, _RET = int(Slot.ORDER), int(Slot.FLAG), int(Slot.RET)
_ROW, _EXIT_EPT, _EXIT_NPF, _PAGE_FAULT = int(Op.ROW), int(Op.EXIT_EPT), int(Op.EXIT_NPF), int(Op.PAGE_FAULT)
_REQUESTED, _SET_SPTE, _TDP_CHANGED = int(Op.REQUESTED), int(Op.SET_SPTE), int(Op.TDP_CHANGED)
_ENTRY, _USERSPACE_EXIT, _WALK = int(Op.ENTRY), int(Op.USERSPACE_EXIT), int(Op.WALK)
_LOST = int(Op.LOST)
_CALL, _CALL_DONE, _TRY_ASYNC = int(Op.CALL), int(Op.CALL_DONE), int(Op.TRY_ASYNC)

_FAULT, _MAP, _UNMAP = KIND_CODE["ept_violation"], KIND_CODE["map"], KIND_CODE["unmap"]
_HOST_FAULT, _FALLOCATE, _AGE = KIND_CODE["host_fault"], KIND_CODE["fallocate"], KIND_CODE["age"]
_NOT_PRESENT, _READY = KIND_CODE["apf_not_present"], KIND_CODE["apf_ready"]
_COMPLETED, _ALLOC, _FREE = KIND_CODE["apf_completed"], KIND_CODE["page_alloc"], KIND_CODE["page_free"]
_ACCESS, _BLOCK, _WAKE = KIND_CODE["access"], KIND_CODE["vcpu_block"], KIND_CODE["vcpu_wake"]
_HAS_VCPU, _HAS_GFN, _HAS_HVA, _HAS_GVA = VALID["vcpu"], VALID["gfn"], VALID["hva"], VALID["gva"]
_HAS_LEVEL, _HAS_LATENCY, _HAS_RIP, _HAS_ARG = VALID["level"], VALID["latency_ns"], VALID["rip"], VALID["arg"]

# State of a thread, a column each: the fault and the call that it is in.
_S_START, _S_PENDING, _S_SEEN, _S_ADDRESS, _S_GFN, _S_LEVEL, _S_ERROR, _S_RIP, _S_VCPU = range(9)
_S_CALL, _S_CALL_START, _S_CALL_ADDRESS, _S_CALL_SIZE, _S_CALL_ARG, _S_TRY_GVA, _S_TRY_GFN = range(9, 16)
_STATE_COLUMNS: Final = 16
_FIRST_THREADS: Final = 64


class Assembler:
    """Carries each thread's state from block to block.

    `mode` is how KVM maps guest memory: ept, npt, shadow, or "" as long as no line told it.
    """

    def __init__(self, mode: str = "") -> None:
        self.mode = mode
        self.pids: list[int] = []
        self._fixed = bool(mode)
        self._threads: dict[int, int] = {}
        self._vm_of: list[int] = []
        self._state = np.zeros((_FIRST_THREADS, _STATE_COLUMNS), np.int64)

    def feed(self, lines: Scanned) -> npt.NDArray[np.void]:
        """Take in a block; returns the records that are complete (dtype RECORD, in file order)."""
        rows = np.flatnonzero(lines.status == EVENT)
        op = _OP[lines.layout[rows]]
        self._learn_mode(op)
        # A line about losses is of no thread.
        of_thread = np.flatnonzero(op != Op.LOST)
        threads = np.zeros(rows.size, np.int64)
        tids, first, inverse = np.unique(lines.tid[rows[of_thread]], return_index=True, return_inverse=True)
        pids = lines.pid[rows[of_thread[first]]]
        known = [self._thread(int(tid), int(pid)) for tid, pid in zip(tids, pids, strict=True)]
        threads[of_thread] = np.array(known, np.int64)[inverse]
        records = np.zeros(2 * rows.size, RECORD)
        count = _assemble(
            rows,
            op,
            _KIND[lines.layout[rows]],
            threads,
            lines.values,
            lines.ts_ns,
            self._state,
            self.mode == "shadow",
            records,
        )
        return self._named(records[:count])

    def finish(self) -> npt.NDArray[np.void]:
        """Return the faults whose end was not in the file."""
        records = np.zeros(len(self._threads), RECORD)
        count = _flush(self._state[: len(self._threads)], records, self.mode == "shadow")
        return self._named(records[:count])

    def _learn_mode(self, op: npt.NDArray[np.int64]) -> None:
        if self._fixed:
            return
        for ops, mode in (((Op.EXIT_EPT,), "ept"), ((Op.EXIT_NPF,), "npt"), ((Op.WALK,), "shadow")):
            # Walks are also done for nested guests and the emulator: exits tell more.
            if np.isin(op, ops).any() and (mode != "shadow" or not self.mode):
                self.mode = mode
                return

    def _thread(self, tid: int, pid: int) -> int:
        """Return the index of a thread; `tid` and `pid` (-1 = not known) are kept with it."""
        if tid not in self._threads:
            index = self._threads[tid] = len(self._threads)
            if index == len(self._state):
                self._state = np.concatenate((self._state, np.zeros_like(self._state)))
            self._state[index, _S_VCPU] = -1
            if pid not in self.pids:
                self.pids.append(pid)
            self._vm_of.append(self.pids.index(pid))
        return self._threads[tid]

    def _named(self, records: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
        """Put tid and vm in the place of the thread's index; drop error codes that no mode explains."""
        thread = records["tid"].astype(np.int64)
        tids = np.fromiter(self._threads, np.uint32, len(self._threads))
        records["tid"] = tids[thread]
        records["vm"] = np.array(self._vm_of, np.uint16)[thread]
        if not self.mode:
            faults = records["kind"] == _FAULT
            records["valid"][faults] &= ~np.uint8(_HAS_ARG)
        return records


@hot
def _same_page(a: int, b: int, level: int) -> bool:
    shift = 9 * (level - 1)
    return a >> shift == b >> shift


@hot
def _put(out: np.ndarray, n: int, thread: int, kind: int, ts_ns: int, vcpu: int, valid: int) -> int:
    out[n].tid = thread
    out[n].kind = kind
    out[n].ts_ns = ts_ns
    out[n].pages = 1
    out[n].valid = valid
    if vcpu >= 0:
        out[n].vcpu = vcpu
        out[n].valid = valid | _HAS_VCPU
    return n + 1


@hot
def _put_fault(
    out: np.ndarray, n: int, thread: int, s: np.ndarray, ts_ns: int, shadow: bool, ends: bool
) -> int:
    """Write the pending fault of a thread and forget it; `ends` = its end was seen, at `ts_ns`."""
    valid = _HAS_GFN | _HAS_ARG
    out[n].gfn = s[_S_GFN]
    out[n].arg = s[_S_ERROR]
    if s[_S_LEVEL] > 0:
        valid |= _HAS_LEVEL
        out[n].level = s[_S_LEVEL]
    if s[_S_START] > 0 and ends:
        valid |= _HAS_LATENCY
        out[n].latency_ns = ts_ns - s[_S_START]
    if shadow and s[_S_START] > 0:
        valid |= _HAS_GVA
        out[n].gva = s[_S_ADDRESS]
    if s[_S_RIP] != 0:
        valid |= _HAS_RIP
        out[n].rip = s[_S_RIP]
    s[_S_PENDING] = 0
    s[_S_START] = 0
    s[_S_RIP] = 0
    return _put(out, n, thread, _FAULT, ts_ns if ends else s[_S_SEEN], s[_S_VCPU], valid)


@hot
def _is_leaf(spte: int, level: int) -> bool:
    """Say whether a TDP entry maps memory: the rule of probes/bpf/fault_tdp.c."""
    return spte & 1 != 0 and (level == 1 or spte & 0x80 != 0) and (spte >> 51 & 1 == 0 or spte & 0x800 != 0)


@hot
def _put_row(
    out: np.ndarray, n: int, thread: int, kind: int, ts_ns: int, v: np.ndarray, s: np.ndarray
) -> int:
    """Write the record of an event that is complete in one line."""
    valid = 0
    pages = 1
    if kind in (_HOST_FAULT, _UNMAP, _AGE):
        valid = _HAS_HVA
        out[n].hva = v[_ADDRESS]
        if kind == _HOST_FAULT:
            valid |= _HAS_ARG
            out[n].arg = v[_ERROR]
            if v[_RIP] != 0:
                valid |= _HAS_RIP
                out[n].rip = v[_RIP]
        elif v[_END] > v[_ADDRESS]:
            pages = (v[_END] - v[_ADDRESS] + 4095) >> 12
        if v[_GFN] != 0:
            valid |= _HAS_GFN
            out[n].gfn = v[_GFN]
    elif kind in (_NOT_PRESENT, _READY, _COMPLETED):
        valid = _HAS_GVA
        out[n].gva = v[_ADDRESS]
        if kind == _COMPLETED:
            valid |= _HAS_HVA
            out[n].hva = v[_END]
        else:
            valid |= _HAS_ARG
            out[n].arg = v[_ARG]
        if kind == _NOT_PRESENT and s[_S_TRY_GVA] == v[_ADDRESS]:
            valid |= _HAS_GFN
            out[n].gfn = s[_S_TRY_GFN]
    elif kind in (_ALLOC, _FREE):
        valid = _HAS_GFN
        out[n].gfn = v[_GFN]
        pages = 1 << v[_ORDER]
        if v[_FLAG] != 0:
            out[n].flags = FLAG_ZEROED
    elif kind == _ACCESS:
        valid = _HAS_GFN | _HAS_ARG
        out[n].gfn = v[_ADDRESS] >> 12
        out[n].arg = v[_ARG]
        pages = (v[_END] - v[_ADDRESS] + 4095) >> 12
    elif kind in (_BLOCK, _WAKE):
        valid = _HAS_LATENCY
        out[n].latency_ns = v[_LATENCY]
    else:
        valid = _HAS_ARG
        out[n].arg = v[_ARG]
    after = _put(out, n, thread, kind, ts_ns, s[_S_VCPU], valid)
    out[n].pages = pages
    return after


@hot
def _fault_step(
    out: np.ndarray, n: int, thread: int, op: int, now: int, v: np.ndarray, s: np.ndarray, shadow: bool
) -> int:
    """Take a step in the life of a guest fault; returns how many records there are then."""
    if op in (_EXIT_EPT, _EXIT_NPF):
        s[_S_START], s[_S_RIP] = now, v[_RIP]
    elif op == _PAGE_FAULT and not shadow:
        if s[_S_PENDING]:
            n = _put_fault(out, n, thread, s, now, shadow, False)
        s[_S_PENDING], s[_S_SEEN], s[_S_LEVEL] = 1, now, 0
        s[_S_ADDRESS], s[_S_GFN], s[_S_ERROR] = v[_ADDRESS], v[_ADDRESS] >> 12, v[_ERROR]
        if v[_RIP] != 0:
            s[_S_RIP] = v[_RIP]
    elif op == _WALK and shadow:
        if s[_S_PENDING]:
            n = _put_fault(out, n, thread, s, s[_S_SEEN], shadow, True)
        s[_S_START], s[_S_ADDRESS], s[_S_ERROR] = now, v[_ADDRESS], v[_ERROR]
    elif op == _REQUESTED and not shadow:
        if s[_S_PENDING]:
            s[_S_LEVEL] = v[_LEVEL]
    elif op == _REQUESTED:
        if s[_S_PENDING]:
            n = _put_fault(out, n, thread, s, s[_S_SEEN], shadow, True)
        s[_S_PENDING], s[_S_SEEN], s[_S_GFN], s[_S_LEVEL] = 1, now, v[_GFN], v[_LEVEL]
    elif op in (_ENTRY, _USERSPACE_EXIT):
        if s[_S_PENDING]:
            # A shadow fault ended when its entry was asked for; a nested one when the guest goes on.
            n = _put_fault(out, n, thread, s, s[_S_SEEN] if shadow else now, shadow, True)
        s[_S_START] = 0
    return n


@hot
def _entry_step(
    out: np.ndarray, n: int, thread: int, now: int, v: np.ndarray, s: np.ndarray, shadow: bool
) -> int:
    """A leaf entry was set: the end of this thread's shadow fault, a nested fault's level, or a map row."""
    level = v[_LEVEL]
    mine = s[_S_PENDING] != 0 and _same_page(s[_S_GFN], v[_GFN], level)
    if mine and shadow and s[_S_LEVEL] == level:
        return _put_fault(out, n, thread, s, now, shadow, True)
    if mine and not shadow:
        s[_S_LEVEL] = level
        return n
    out[n].gfn = v[_GFN]
    out[n].level = level
    return _put(out, n, thread, _MAP, now, -1, _HAS_GFN | _HAS_LEVEL)


@hot
def _call_done(
    out: np.ndarray, n: int, thread: int, kind: int, now: int, v: np.ndarray, s: np.ndarray
) -> int:
    """Write the call that a thread was in, if it succeeded: as the recorder does."""
    if s[_S_CALL] != kind:
        return n
    s[_S_CALL] = 0
    if v[_RET] != 0:
        return n
    valid = _HAS_LATENCY | _HAS_ARG
    out[n].latency_ns = now - s[_S_CALL_START]
    out[n].arg = s[_S_CALL_ARG]
    if kind != _FALLOCATE:  # that one has an offset in a file
        valid |= _HAS_HVA
        out[n].hva = s[_S_CALL_ADDRESS]
    after = _put(out, n, thread, kind, now, s[_S_VCPU], valid)
    out[n].pages = (s[_S_CALL_SIZE] + 4095) >> 12
    return after


@compiled
def _assemble(
    rows: np.ndarray,
    op: np.ndarray,
    kind: np.ndarray,
    threads: np.ndarray,
    values: np.ndarray,
    times: np.ndarray,
    state: np.ndarray,
    shadow: bool,
    out: np.ndarray,
) -> int:
    n = 0
    for i in range(rows.size):
        row, o, thread = rows[i], op[i], threads[i]
        v, s, now = values[row], state[thread], times[row]
        if o == _LOST:
            # What began before may have ended in what is lost: no latency across it.
            state[:, _S_START] = 0
            state[:, _S_CALL] = 0
            continue
        if v[_VCPU] >= 0:
            s[_S_VCPU] = v[_VCPU]
        if o == _ROW:
            n = _put_row(out, n, thread, kind[i], now, v, s)
        elif o == _CALL:
            s[_S_CALL], s[_S_CALL_START] = kind[i], now
            s[_S_CALL_ADDRESS], s[_S_CALL_SIZE], s[_S_CALL_ARG] = v[_ADDRESS], v[_SIZE], v[_ARG]
        elif o == _CALL_DONE:
            n = _call_done(out, n, thread, kind[i], now, v, s)
        elif o == _TRY_ASYNC:
            s[_S_TRY_GVA], s[_S_TRY_GFN] = v[_ADDRESS], v[_GFN]
        elif o == _SET_SPTE or (o == _TDP_CHANGED and _is_leaf(v[_ARG], v[_LEVEL])):
            n = _entry_step(out, n, thread, now, v, s, shadow)
        else:
            n = _fault_step(out, n, thread, o, now, v, s, shadow)
    return n


@compiled
def _flush(state: np.ndarray, out: np.ndarray, shadow: bool) -> int:
    n = 0
    for thread in range(state.shape[0]):
        if state[thread][_S_PENDING] != 0:
            n = _put_fault(out, n, thread, state[thread], state[thread][_S_SEEN], shadow, shadow)
    return n
