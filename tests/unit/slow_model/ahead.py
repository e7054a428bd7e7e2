"""Memory that is there before its first touch."""

from __future__ import annotations

from typing import Any

from tests.unit.slow_model.world import BLOCK, Mechanism, Page, Step

PAGES = {"4k": 1, "2m": BLOCK, "1g": BLOCK * BLOCK}


def region(world: Any, page: Page, pages: int) -> list[Page]:
    """The pages of the aligned region of a page, as far as any event names their blocks."""
    first = page.gfn - page.gfn % pages
    blocks = (world.blocks.get((page.vm, at // BLOCK)) for at in range(first, first + pages, BLOCK))
    return [one for block in blocks if block for one in block]


def mappable(mechanism: Mechanism, page: Page, pages: int) -> bool:
    """Whether KVM can map the region by one entry: one memslot holds it, addresses alike modulo its size."""
    first = page.gfn - page.gfn % pages
    if not mechanism.facts.slots:
        return True
    size = pages * 4096
    for slot in mechanism.facts.slots:
        begin, length = slot["gpa"] // 4096, slot["size_bytes"] // 4096
        inside = slot["vm"] == page.vm and begin <= first and first + pages <= begin + length
        if inside and slot["gpa"] % size == slot["hva"] % size:
            return True
    return False


class PreAlloc(Mechanism):
    """All of memory is populated before the start."""

    name, stage = "prealloc", 1

    def begin(self) -> None:
        self.size = PAGES[self.params["size"]]
        self.entries: set[tuple[int, int]] = set()
        memory = self.facts.memory_pages
        self.w.change("counterfactual", 0, len(self.w.everything()) if memory is None else memory)
        for page in self.w.everything():
            page.backed, page.owner = True, self.name
            page.host_only = self.params["via"] == "populate"

    def key(self, page: Page) -> tuple[int, int]:
        return page.vm, page.gfn // self.size

    def look(self, e: Step, page: Page) -> None:
        if page.host_only and page.owner == self.name and self.key(page) in self.entries:
            page.host_only = False

    def fault(self, e: Step, page: Page, verdict: str, service: int) -> tuple[str, int]:
        first = page.host_only and not page.there and not e.on_host and verdict != "skipped"
        if first and self.size > 1 and mappable(self, page, self.size):
            self.entries.add(self.key(page))
        return verdict, service


class HugePages(Mechanism):
    """The first fault of a region maps all of it."""

    name, stage = "hugepages", 1

    def begin(self) -> None:
        self.size = PAGES[self.params["size"]]
        self.level = {"2m": 2, "1g": 3}[self.params["size"]]
        self.begun: dict[tuple[int, int], str] = {}
        self.host_first: set[Page] = set()

    def key(self, page: Page) -> tuple[int, int]:
        return page.vm, page.gfn // self.size

    def on_host_first(self, e: Step, page: Page, verdict: str) -> tuple[str, int] | None:
        """The guest's fault on what a VMM thread touched first, or in a region that one began."""
        if e.on_host:
            if not page.there:
                self.host_first.add(page)
            return None
        first = page in self.host_first and page.there
        self.host_first.discard(page)
        state = self.begun.get(self.key(page))
        if verdict not in ("kept", "hit") or not (first or verdict == "hit"):
            return None
        if state == "on host" and (first or page.owner == self.name):
            self.begun[self.key(page)] = "huge"
            backed = round(self.facts.costs["ept_backed_4k"])
            return ("shortened", backed) if verdict == "hit" and backed < e.latency else ("kept", e.latency)
        return ("hit", 0) if first and state == "huge" and verdict == "kept" else None

    def fault(self, e: Step, page: Page, verdict: str, service: int) -> tuple[str, int]:
        if (said := self.on_host_first(e, page, verdict)) is not None:
            return said
        if verdict != "kept" or page.there or page.backed or self.key(page) in self.begun:
            return verdict, service
        pages = region(self.w, page, self.size)
        clear = not any(one.backed or one.on_device for one in pages)
        if e.level >= self.level or not mappable(self, page, self.size) or not clear:
            self.begun[self.key(page)] = "small"
            return verdict, service
        self.begun[self.key(page)] = "on host" if e.on_host else "huge"
        taker = "host" if e.on_host else "ept"
        cost = self.w.price[taker, self.level]
        first = page.gfn - page.gfn % self.size
        unseen = self.w.in_memory(page.vm, first, first + self.size)
        for one in pages:
            if self.w.in_memory(one.vm, one.gfn, one.gfn + 1):
                self.w.back(one, e.start + cost, self.name)
                unseen -= 1
        if unseen:
            self.w.change("counterfactual", e.start + cost, unseen)
        self.w.add_fault(self.name, "instead", taker, cost)
        return "repriced", cost

    def event(self, e: Step, page: Page) -> None:
        whole = len(e.pages) == BLOCK and page is e.pages[0]
        if e.what in ("drop", "swap_out") and whole and self.size == BLOCK:
            self.begun.pop(self.key(page), None)


class HotHint(Mechanism):
    """One worker backs hinted pages in order."""

    name, stage = "hot_hint", 1

    def begin(self) -> None:
        costs, workers = self.facts.costs, self.params["workers"]
        mapping = costs["map_ahead"] if self.params["via"] == "pre_fault" else 0
        self.per_4k = (costs["prefault_4k"] + mapping) / workers
        self.per_2m = (costs["prefault_2m"] + mapping) / workers
        self.call = int(costs["hypercall"])
        self.lead = int(self.params["lead_ms"] * 1e6)
        self.host_only = self.params["via"] == "populate"
        self.free_at, self.said = 0, 0
        self.given, self.up_at = 0, 0
        self.ready: dict[Page, int] = {}
        self.planned: dict[Page, int] = {}
        self.unseen: list[int] = []
        self.lanes: dict[Any, dict[str, Any]] = {}
        if self.params["policy"] == "previous":
            self.plan()

    def plan(self) -> None:
        """Lay out the earlier run's first touches; the worker takes them in order."""
        done = 0
        touches = self.params["touches"]
        for vm, gfn, start in touches:
            done = max(done, start - self.lead, 0) + int(self.per_4k)
            page = self.w.page(vm, gfn)
            if page is not None:
                self.planned[page] = done
            elif self.w.in_memory(vm, gfn, gfn + 1):
                self.unseen.append(done)
        self.w.count(self.name, "prefaults", len(touches))

    def time_of(self, e: Step) -> int:
        if e.major:
            return e.latency
        return int(self.per_2m if len(e.pages) == BLOCK else self.per_4k * len(e.pages))

    def say(self, e: Step) -> None:
        if self.said == 0:
            self.w.count(self.name, "hypercalls")
            self.w.advance(e.lane, e.vm, -self.call)
        self.said = (self.said + 1) % self.params["batch"]

    def awake(self, issued: int) -> int:
        """When the worker is up for a hint: each batch wakes it, unless it is busy."""
        if self.given % self.params["batch"] == 0:
            late = 0 if self.free_at > issued else round(self.facts.costs["worker_wake"])
            self.up_at = issued + late
        self.given += 1
        return max(issued, self.up_at)

    def prefault(self, pages: list[Page], issued: int, cost: int) -> None:
        done = self.free_at = max(issued, self.free_at) + cost
        if done - cost >= self.w.span:
            return
        for page in pages:
            if not page.backed:
                self.w.back(page, done, self.name)
                page.host_only = self.host_only
        self.ready[pages[0]] = done
        pages[0].unused = True

    def served(self, e: Step, page: Page, service: int) -> tuple[str, int]:
        ready = self.ready.get(page, 0)
        exits = page.host_only and not e.on_host
        if ready <= e.start and not exits:
            return "hit", 0
        if ready > e.start and ready - self.time_of(e) >= e.start:
            return "kept", service
        backed = round(self.facts.costs["ept_backed_4k"]) if exits else 0
        rest = max(ready - e.start, 0) + backed
        return ("kept", service) if rest >= service else ("shortened", rest)

    def look(self, e: Step, page: Page) -> None:
        due = self.planned.get(page)
        if due is None or page.backed or page.there or page.unused:
            return
        if due - int(self.per_4k) < e.start:
            del self.planned[page]
            self.w.back(page, due, self.name)
            page.unused, page.host_only = True, self.host_only
            self.ready[page] = due

    def fault(self, e: Step, page: Page, verdict: str, service: int) -> tuple[str, int]:
        if page.there:
            return verdict, service
        if verdict != "skipped" and page.backed and page.owner == self.name:
            return self.served(e, page, e.latency)
        self.planned.pop(page, None)
        if verdict != "kept" or page.backed:
            return verdict, service
        if self.params["policy"] == "oracle":
            issued = self.awake(max(e.start - self.lead, 0))
            if max(issued, self.free_at) >= e.start:
                return "kept", service
            self.say(e)
            self.prefault(e.pages, issued, self.time_of(e))
            return self.served(e, page, service)
        if self.params["policy"] == "stride":
            self.follow(e, page)
        return verdict, service

    def follow(self, e: Step, page: Page) -> None:
        lane = self.lanes.setdefault(e.lane, {"last": None, "step": 0, "next": None})
        step = 0 if lane["last"] is None else page.gfn - lane["last"]
        known, lane["last"] = lane["last"] is not None, page.gfn
        if lane["next"] != page.gfn:
            lane["next"] = None
            before, lane["step"] = lane["step"], step
            if not known or step == 0 or step != before or abs(step) > BLOCK:
                return
        step = lane["step"]
        for k in range(1, self.params["n"] + 1):
            gfn = page.gfn + step * k
            ahead = self.w.page(page.vm, gfn)
            if ahead is not None:
                if not ahead.backed and not ahead.there:
                    self.prefault([ahead], e.end, int(self.per_4k))
            elif gfn >= 0 and self.w.in_memory(page.vm, gfn, gfn + 1):
                self.free_at = max(e.end, self.free_at) + int(self.per_4k)
                if self.free_at - int(self.per_4k) < self.w.span:
                    self.w.count(self.name, "wasted")
                    self.w.change("counterfactual", self.free_at, 1)
        lane["next"] = page.gfn + step * (self.params["n"] + 1)

    def event(self, e: Step, page: Page) -> None:
        policy = self.params["policy"]
        wanted = policy == "on_alloc" and e.what == "page_alloc"
        if (wanted or (policy == "recorded" and e.what == "hint hot")) and not page.there and not page.backed:
            if policy == "on_alloc":
                self.say(e)
            self.prefault([page], self.awake(e.end), int(self.per_4k))

    def end(self) -> None:
        for due in self.unseen:
            if due <= self.w.latest:
                self.w.change("counterfactual", due, 1)
                self.w.count(self.name, "wasted")
        for page, due in self.planned.items():
            if not page.there and not page.backed and due <= self.w.latest:
                self.w.back(page, due, self.name)
                page.unused = True
