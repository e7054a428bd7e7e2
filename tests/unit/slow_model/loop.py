"""The slow model's loop: one recorded event after another, in both worlds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tests.unit.slow_model.ahead import HotHint, HugePages, PreAlloc
from tests.unit.slow_model.spared import Zeroing, ZeroingAfterReuse
from tests.unit.slow_model.taking import Balloon, ColdHint, FreePageReporting, Ksm
from tests.unit.slow_model.waiting import Epf, Swap
from tests.unit.slow_model.world import (
    BLOCK,
    ENGINE,
    FLAG_MAJOR,
    FLAG_UNWRITTEN,
    HYPERCALL_KINDS,
    Mechanism,
    Page,
    Step,
    World,
)

MECHANISMS: dict[str, type[Mechanism]] = {
    one.name: one
    for one in (
        Zeroing, ZeroingAfterReuse, HotHint, HugePages, PreAlloc, Epf, Balloon, ColdHint, FreePageReporting,
        Ksm, Swap,
    )
}  # fmt: skip

DROPS = {"balloon_inflate", "free_page_report"}
MADVISE = {4: "drop", 8: "drop", 9: "drop", 21: "swap_out", 22: "populate", 23: "populate"}
SIZES = {0: "4k", 1: "4k", 2: "2m", 3: "1g"}
PLAIN = {"unmap", "ksm_merge", "ksm_break", "swap_in", "swap_out", "page_alloc", "page_free"}


@dataclass(frozen=True)
class Facts:
    """What is known of the whole trace before it is replayed."""

    guest_events: bool
    rows: list[dict[str, Any]]
    uses: list[tuple[int, Page, bool]]
    memory_pages: int | None
    costs: Mapping[str, float]
    slots: list[dict[str, Any]]


def meaning(row: dict[str, Any]) -> str:
    """What an event does to its pages ("" = nothing)."""
    kind, arg = row["kind"], row.get("arg")
    if kind in ("ept_violation", "host_fault"):
        return "fault"
    if kind in DROPS or (kind == "fallocate" and (arg or 0) & 2):
        return "drop"
    if kind in ("madvise", "process_madvise"):
        return MADVISE.get(arg or 0, "")
    if kind == "hv_hypercall":
        return "hint" if (arg or 0) >> 16 else "hypercall"
    if kind == "access":
        return "" if arg == 0 else "access"
    return kind if kind in PLAIN else ""


def fault_class(row: dict[str, Any]) -> tuple[str, int]:
    taker = "host" if row["kind"] == "host_fault" else "ept"
    return taker + ("_major" if (row.get("flags") or 0) & FLAG_MAJOR else ""), min(row.get("level") or 0, 3)


def cost_name(taker: str, level: int) -> str:
    if taker == "host":
        taker = "host_minor"
    return f"{taker}_{'4k' if 'major' in taker else SIZES[level]}"


def prices(rows: Iterable[dict[str, Any]], costs: Mapping[str, float]) -> dict[Any, int]:
    """The price of each class: the mean of the recorded latencies, else the profile's."""
    recorded: dict[Any, list[int]] = {}
    for row in rows:
        if meaning(row) == "fault" and row.get("latency_ns") is not None:
            recorded.setdefault(fault_class(row), []).append(row["latency_ns"])
    found: dict[Any, int] = {}
    for taker in ("ept", "ept_major", "host", "host_major"):
        for level in range(4):
            mine = recorded.get((taker, level))
            found[taker, level] = round(sum(mine) / len(mine) if mine else costs[cost_name(taker, level)])
    return found


class Slow:
    """A replay of `trace` (rows as in `replay_kit`) with `chosen` mechanisms and their parameters."""

    def __init__(
        self,
        trace: Any,
        chosen: Mapping[str, dict[str, Any]],
        costs: Mapping[str, float],
        *,
        closed: bool = True,
    ) -> None:
        rows = sorted(trace.rows, key=lambda row: row["us"])
        self.rows = [row | {"t": round(row["us"] * 1000)} for row in rows]
        span = max([0, *(row["t"] for row in self.rows)])
        if trace.span_us is not None:
            span = max(span, trace.span_us * 1000)
        slots = [(vm, 0, trace.memory_pages) for vm in range(trace.vms)] if trace.memory_pages else []
        self.w = World({}, closed, slots, max(span, 1))
        self.w.levels = any(row["kind"] == "ept_violation" and row.get("level") for row in self.rows)
        self.cost_backed = round(costs["ept_backed_4k"])
        self.steps = [(row, self.pages_of(row)) for row in self.rows if meaning(row)]
        # A VMM thread's fault on memory that is not the guest's is not part of the model.
        self.steps = [(row, blocks) for row, blocks in self.steps if blocks != [[]] or not self.foreign(row)]
        self.w.price = prices((row for row, _ in self.steps), costs)
        swapped = "ept_major", 1
        known = any(fault_class(row) == swapped for row, _ in self.steps if meaning(row) == "fault")
        if "cold_hint" in chosen and not known:
            # Without the guest's way out and back, which no fault's latency holds.
            whole = costs[f"swap_in_{chosen['cold_hint']['device']}"]
            self.w.price[swapped] = round(max(0.0, whole - costs["exit"]))
        facts = self.facts(trace, costs)
        made = [MECHANISMS[name](self.w, params, facts) for name, params in chosen.items()]
        self.on = sorted(made, key=lambda one: (one.stage, one.name))
        for one in self.on:
            one.begin()
        for row, blocks in self.steps:
            for k, pages in enumerate(blocks):
                self.step(row, pages, k == 0)
        for one in self.on:
            one.end()

    def facts(self, trace: Any, costs: Mapping[str, float]) -> Facts:
        uses = []
        for row, blocks in self.steps:
            what = meaning(row)
            for page in (page for pages in blocks for page in pages):
                if what in ("fault", "access", "page_alloc", "populate", "swap_in"):
                    uses.append((row["t"], page, True))
                elif what in ("drop", "swap_out"):
                    uses.append((row["t"], page, False))
        memory = trace.memory_pages and trace.memory_pages * trace.vms
        guest = any(row["kind"] == "page_alloc" for row in self.rows)
        return Facts(guest, self.rows, uses, memory, costs, trace.memslots.to_dicts())

    def foreign(self, row: dict[str, Any]) -> bool:
        return bool(self.w.slots) and row["kind"] == "host_fault" and row.get("vcpu") is None

    def pages_of(self, row: dict[str, Any]) -> list[list[Page]]:
        """The known pages of an event, block by block; one empty block if it names none."""
        vm, gfn = row.get("vm") or 0, row.get("gfn")
        if gfn is None:
            return [[]]
        found: list[list[Page]] = []
        for at in range(gfn, gfn + max(row.get("pages") or 1, 1)):
            key = vm, at // BLOCK
            if key not in self.w.blocks:
                if not self.w.in_memory(vm, key[1] * BLOCK, (key[1] + 1) * BLOCK):
                    continue
                start = len(self.w.blocks) * BLOCK
                self.w.blocks[key] = [Page(vm, key[1] * BLOCK + k, start + k) for k in range(BLOCK)]
            page = self.w.blocks[key][at % BLOCK]
            if found and found[-1][-1].block == key:
                found[-1].append(page)
            else:
                found.append([page])
        return found or [[]]

    def lane(self, row: dict[str, Any], what: str) -> Any:
        vm, vcpu = row.get("vm") or 0, row.get("vcpu")
        if vcpu is not None:
            return "vcpu", vm, vcpu
        return ("thread", row.get("tid") or 0) if what == "fault" else ("clock", vm)

    def step(self, row: dict[str, Any], pages: list[Page], first: bool) -> None:
        what = meaning(row)
        lane, vm = self.lane(row, what), row.get("vm") or 0
        now = row["t"] - self.w.lead[lane]
        for one in self.on:
            one.tick(now)
        arg = row.get("arg") or 0
        e = Step(
            what, vm, lane, now, now, 0, row.get("level") or 0, row.get("access") or 0, row.get("flags") or 0,
            row["kind"] == "host_fault", arg, pages, first,
        )  # fmt: skip
        if what == "hint":
            e.what = "hint " + HYPERCALL_KINDS.get(arg >> 16, "cold")
        if what == "fault" and first:
            self.fault(row, e)
        else:
            self.other(row["t"], e)

    # -- faults

    def fault(self, row: dict[str, Any], e: Step) -> None:
        cls = fault_class(row)
        latency = row.get("latency_ns")
        e.latency = self.w.price[cls] if latency is None else latency
        e.start = e.end - e.latency
        verdict, who, service = "kept", ENGINE, e.latency
        maps = e.level > 0 or e.on_host or not self.w.levels
        self.w.spared = False
        if e.pages:
            head = e.page = e.pages[0]
            already = len(self.w.added)
            for one in self.on:
                one.look(e, head)
            if e.flags & 4 and not head.there:  # an entry was there: it is no first touch
                self.arrive(head, row["t"])
            if head.there:
                if head.taken:
                    self.use_anew(e, head)
            elif maps:
                verdict, who, service = self.first_touch(e, head)
            if maps or head.there:
                for one in self.on:
                    said, service = one.fault(e, head, verdict, service)
                    if said != verdict:
                        verdict, who = said, ENGINE if said == "kept" else one.name
                spared = self.w.spared = verdict == "skipped"
                done = e.end - e.latency + service
                head.unused = False
                self.touch(head, row["t"], done, spared)
                self.settle(e, head, already)
                for page in e.pages[1:]:
                    rest = replace(e, start=done, end=done, latency=0, page=page, further=True)
                    already = len(self.w.added)
                    for one in self.on:
                        one.look(rest, page)
                    self.touch(page, row["t"], done, spared)
                    self.settle(rest, page, already)
            else:
                self.settle(e, head, already)
        self.w.verdicts.append((verdict, who, service))
        self.run_ahead(e, row["t"], service)

    def settle(self, e: Step, page: Page, already: int) -> None:
        for one in self.on:
            one.after(e, page, self.w.added[already:])

    def first_touch(self, e: Step, page: Page) -> tuple[str, str, int]:
        if not page.backed:
            return "kept", ENGINE, e.latency
        if not page.host_only or e.on_host:
            return "hit", page.owner, 0
        if self.cost_backed < e.latency:
            return "shortened", page.owner, self.cost_backed
        return "kept", ENGINE, e.latency

    def arrive(self, page: Page, t: int) -> None:
        if not page.there:
            self.w.change("recorded", t, 1)
        page.there = page.seen = True
        page.discarded = False

    def touch(self, page: Page, t: int, done: int, spared: bool) -> None:
        self.arrive(page, t)
        if not spared:
            self.w.back(page, done, ENGINE)
            page.host_only = False

    def use_anew(self, e: Step, page: Page) -> None:
        """The recording has the page, the counterfactual does not: a fault that was not recorded."""
        cls = ("ept_major" if page.on_device else "ept", 1)
        why = "deferred" if page.put_off else "refault"
        ns = self.w.price[cls]
        self.w.add_fault(page.owner, why, cls[0], ns)
        self.w.advance(e.lane, e.vm, -ns)
        self.w.back(page, e.end + ns, ENGINE)

    def run_ahead(self, e: Step, t: int, service: int) -> None:
        gain = e.latency - service
        busy = self.w.stalled_to.get(e.lane)
        if gain > 0 and busy is not None:
            gain = min(gain, max(t - max(t - e.latency, busy), 0))
        if e.latency != service:  # by 0 too: its VM's clock follows whose stall changed last
            self.w.advance(e.lane, e.vm, gain)
        self.w.stalled_to[e.lane] = t if busy is None else max(busy, t)

    # -- everything else

    def other(self, t: int, e: Step) -> None:
        for k, page in enumerate(e.pages):
            e.page, e.further = page, k > 0 or not e.first
            already = len(self.w.added)
            for one in self.on:
                one.look(e, page)
            if e.what == "fault":
                if e.level > 0 or e.on_host or not self.w.levels or page.there:
                    self.touch(page, t, e.end, self.w.spared)
            else:
                for one in self.on:
                    one.event(e, page)
                self.recorded(t, e, page)
            self.settle(e, page, already)

    def recorded(self, t: int, e: Step, page: Page) -> None:
        match e.what:
            case "drop":
                self.take_away(t, e, page)
            case "swap_out":
                if page.there:
                    self.take_away(t, e, page)
                    page.on_device, page.discarded = True, False
                    page.read_at_once = bool(e.flags & FLAG_UNWRITTEN)
            case "populate" | "swap_in":
                self.arrive(page, t)
                self.w.back(page, e.end, ENGINE)
            case "page_alloc":
                page.used, page.free, page.still_zero = True, False, False
                if page.there and not page.backed:
                    self.use_anew(e, page)
            case "page_free":
                page.used, page.free, page.still_zero = False, True, False
            case "access":
                if page.there and not page.backed and page.taken:
                    self.use_anew(e, page)

    def take_away(self, t: int, e: Step, page: Page) -> None:
        if page.there:
            self.w.change("recorded", t, -1)
        if page.unused:
            self.w.count(page.owner, "wasted")
        self.w.drop(page, e.end, ENGINE)
        page.there = page.on_device = page.put_off = page.unused = page.taken = False
        page.discarded = True
