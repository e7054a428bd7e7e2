"""Waits for a device: swapping under a limit, and what another thread makes of the wait."""

from __future__ import annotations

from typing import Any

from tests.unit.slow_model.world import Mechanism, Page, Step

USES = ("fault", "access", "page_alloc", "populate", "swap_in")


class Epf(Mechanism):
    """Another thread runs while a fault waits for I/O (KVM's asynchronous page faults)."""

    name, stage = "epf", 2
    AT_ONCE = 64

    def begin(self) -> None:
        cost = self.facts.costs
        self.handling = int(cost["epf_ready"])
        self.overhead = round(cost["epf_inject"] + 2 * cost["epf_switch"] + cost["epf_ready"])
        self.outstanding: dict[Any, list[int]] = {}
        self.delivered: dict[Any, int] = {}
        self.coming: dict[Page, tuple[int, Any]] = {}

    def deliver(self, lane: Any) -> int:
        """The next page-ready event, not before the one before was handled."""
        queue = self.outstanding[lane]
        there = min(queue)
        queue.remove(there)
        self.delivered[lane] = max(there, self.delivered.get(lane, 0) + self.handling)
        return self.delivered[lane]

    def overlapped(self, page: Page, lane: Any, start: int, wait: int) -> int | None:
        """How long a wait holds up its vCPU; None = it halts."""
        queue = self.outstanding.setdefault(lane, [])
        while queue and max(min(queue), self.delivered.get(lane, 0) + self.handling) <= start:
            self.deliver(lane)
        there, waiter = self.coming.get(page, (-1, None))
        if len(queue) >= self.AT_ONCE or (there > start and waiter == lane):
            return None
        others = len(queue) < self.params["runnable"]
        queue.append(start + wait)
        self.coming[page] = start + wait, lane
        return self.overhead if others else self.overhead + max(self.deliver(lane) - start, 0)

    def look(self, e: Step, page: Page) -> None:
        at_once = page.on_device and page.read_at_once
        self.may_wait = page.there and e.what in ("fault", "access") and self.takes_part(e) and not at_once

    def takes_part(self, e: Step) -> bool:
        return not e.on_host and (not e.kernel or self.params["mode"] == "any")

    def after(self, e: Step, page: Page, added: list[list[Any]]) -> None:
        if not self.may_wait:
            return
        by_owner: dict[str, list[list[Any]]] = {}
        for fault in added:
            if fault[1] == "refault" and fault[2] == "ept_major":
                by_owner.setdefault(fault[0], []).append(fault)
        for faults in by_owner.values():
            wait = sum(fault[3] for fault in faults)
            if not wait:
                continue
            service = self.overlapped(page, e.lane, e.start, wait)
            if service is not None:
                faults[0][3] += service - wait
                self.w.advance(e.lane, e.vm, wait - service)

    def fault(self, e: Step, page: Page, verdict: str, service: int) -> tuple[str, int]:
        if verdict != "kept" or not e.major or not self.takes_part(e):
            return verdict, service
        found = self.overlapped(page, e.lane, e.start, service)
        return (verdict, service) if found is None else ("overlapped", found)

    def end(self) -> None:
        for lane, queue in self.outstanding.items():
            late = max(queue, default=0) - (self.w.span - self.w.lead[lane])
            if late > 0:
                self.w.advance(lane, lane[1] if lane[0] == "vcpu" else 0, -late)


class Swap(Mechanism):
    """The host holds no more than a limit; `order` is what goes first: lru, fifo or min."""

    name, stage = "swap", 3

    def begin(self) -> None:
        self.limit = max(1, int(self.params["limit_mib"] * 256))
        self.ns = round(self.facts.costs["swap_in_" + self.params["device"]])
        device = "zram" if self.params["device"] == "zram" else "device"
        out = self.facts.costs["swap_out_" + device] + self.facts.costs["unmap_4k"]
        self.out_ns = round(out) if self.params["reclaim"] == "direct" else 0
        self.order = self.params.get("order", "lru")
        self.held: list[Page] = []  # what may be evicted: first comes first
        self.uses = 0
        self.first_used: dict[Page, int] = {}
        following: dict[Page, int | None] = {}
        self.next: list[int | None] = []
        numbered = [one for one in self.facts.uses if one[2]]
        self.next = [None] * len(numbered)
        number = len(numbered)
        for _, page, use in reversed(self.facts.uses):
            if use:
                number -= 1
                self.next[number] = following.get(page)
                following[page] = number
            else:
                following[page] = None
        self.next_use: dict[Page, int | None] = {}

    def forget(self, page: Page) -> None:
        if page in self.held:
            self.held.remove(page)

    def note(self, page: Page) -> None:
        self.next_use[page] = self.next[self.uses - 1]
        if self.order != "lru" and page in self.held:
            return
        self.forget(page)
        self.held.append(page)

    def furthest(self, page: Page) -> float:
        following = self.next_use[page]
        return float("inf") if following is None else following

    def room(self, page: Page, e: Step, *, earlier: bool = False) -> None:
        """Evict; a direct reclaim is work of the lane that faults, unless the page came before."""
        at, evicted = e.start, 0
        self.forget(page)
        while self.w.resident["counterfactual"] >= self.limit and self.held:
            goes = self.held[0]
            if self.order == "min":
                goes = max(self.held, key=self.furthest)
            self.held.remove(goes)
            if self.w.drop(goes, at, self.name):
                goes.on_device = True
                goes.read_at_once = self.params["device"] == "zram"
                evicted += 1
        refault = page.there and page.taken and page.owner == self.name
        if evicted * self.out_ns and (e.what == "fault" or refault) and not earlier:
            self.w.lengthened[self.name, "refault"] += evicted * self.out_ns
            self.w.advance(e.lane, e.vm, -evicted * self.out_ns)

    def look(self, e: Step, page: Page) -> None:
        if e.what not in USES:
            return
        self.uses += 1
        if page.backed:
            self.note(page)
        elif page.there and page.taken and page.owner == self.name:
            self.room(page, e)
            self.w.add_fault(self.name, "refault", "ept_major", self.ns)
            self.w.advance(e.lane, e.vm, -self.ns)
            self.w.back(page, e.start + self.ns, "recorded")
            page.read_at_once = False
            self.note(page)
        elif e.what == "fault" and e.page is e.pages[0] and e.first and not page.there:
            return
        elif (
            page.there
            or (e.what == "fault" and not self.w.spared and self.maps(e))
            or e.what in ("populate", "swap_in")
        ):
            self.room(page, e)
            self.note(page)

    def fault(self, e: Step, page: Page, verdict: str, service: int) -> tuple[str, int]:
        if verdict != "skipped":
            if not page.backed:
                self.room(page, e, earlier=not page.put_off and not self.maps(e))
            self.note(page)
        page.read_at_once = False
        return verdict, service

    def maps(self, e: Step) -> bool:
        """Whether a fault brings a page: one without a level found what was there, where levels are known."""
        return e.level > 0 or e.on_host or not self.w.levels

    def event(self, e: Step, page: Page) -> None:
        if e.what in ("drop", "swap_out"):
            self.forget(page)
            page.read_at_once = False
