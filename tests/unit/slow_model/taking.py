"""Memory that a mechanism takes away."""

from __future__ import annotations

from collections import Counter

from tests.unit.slow_model.world import BLOCK, EXECUTE, READ, WRITE, Mechanism, Page, Step

USES = ("fault", "access", "page_alloc", "populate", "swap_in")


class Groups(Mechanism):
    """Aligned groups of pages; once a whole group has been free for a delay it is taken."""

    def begin(self) -> None:
        self.size = 1 << int(self.params["order"])
        self.free: set[Page] = set()
        self.due: dict[tuple[int, int], int] = {}

    @property
    def delay(self) -> int:
        raise NotImplementedError

    def members(self, page: Page) -> list[Page]:
        first = page.gfn % BLOCK - page.gfn % self.size % BLOCK
        return self.w.blocks[page.block][first : first + self.size]

    def key(self, page: Page) -> tuple[int, int]:
        return page.vm, page.gfn // self.size

    def freed(self, page: Page, end: int) -> None:
        if page in self.free:
            return
        self.free.add(page)
        if all(one in self.free for one in self.members(page)):
            self.due[self.key(page)] = end + self.delay

    def used(self, page: Page) -> None:
        if page in self.free:
            self.free.remove(page)
            self.due.pop(self.key(page), None)

    def take(self, page: Page) -> None:
        due = self.due.pop(self.key(page))
        for one in self.members(page):
            self.w.drop(one, due, self.name)
        self.w.count(self.name, "ranges")

    def look(self, e: Step, page: Page) -> None:
        if self.due.get(self.key(page), e.start + 1) <= e.start:
            self.take(page)

    def fault(self, e: Step, page: Page, verdict: str, service: int) -> tuple[str, int]:
        self.used(page)
        return verdict, service

    def event(self, e: Step, page: Page) -> None:
        if e.what == "page_free":
            self.freed(page, e.end)
        elif e.what == "page_alloc":
            self.used(page)

    def end(self) -> None:
        for page in self.w.everything():
            if self.due.get(self.key(page), self.w.latest + 1) <= self.w.latest:
                self.take(page)
        self.call()

    def call(self) -> None:
        ranges = self.w.tally[self.name, "ranges"]
        self.w.count(self.name, "hypercalls", -(-ranges // self.params["batch"]))


class FreePageReporting(Groups):
    """The guest reports free blocks."""

    name, stage = "free_page_reporting", 3

    def begin(self) -> None:
        super().begin()
        self.lists: list[Page] = []  # what CPUs keep to themselves, the oldest first
        self.idle: set[Page] = set()

    def freed(self, page: Page, end: int) -> None:
        if page.gfn < self.params["from_mib"] * 256:
            return
        self.idle.add(page)
        self.lists.append(page)
        if len(self.lists) > self.params["pcp_pages"]:
            oldest = self.lists.pop(0)
            if oldest in self.idle:
                super().freed(oldest, end)

    def event(self, e: Step, page: Page) -> None:
        super().event(e, page)
        if e.what == "page_alloc":
            self.idle.discard(page)

    @property
    def delay(self) -> int:
        return int(self.params["delay_s"] * 1e9)


class ColdHint(Groups):
    """The guest hints memory that it won't need soon."""

    name, stage = "cold_hint", 3

    def begin(self) -> None:
        super().begin()
        self.policy = self.params["policy"]
        self.last: dict[Page, int] = {}

    @property
    def delay(self) -> int:
        return int(self.params["delay_ms"] * 1e6)

    def look(self, e: Step, page: Page) -> None:
        if self.policy == "on_free":
            super().look(e, page)
            return
        idle = int(self.params["idle_s"] * 1e9)
        if self.policy == "idle" and page in self.last and page.backed and self.last[page] + idle <= e.start:
            self.w.drop(page, self.last[page] + idle, self.name)
            page.on_device = True
            self.w.count(self.name, "ranges")
        if e.what in USES:
            self.last[page] = max(e.end, 0)

    def fault(self, e: Step, page: Page, verdict: str, service: int) -> tuple[str, int]:
        if self.policy == "on_free":
            self.used(page)
        return verdict, service

    def event(self, e: Step, page: Page) -> None:
        if self.policy == "on_free":
            super().event(e, page)
        elif self.policy == "recorded" and e.what in ("hint cold", "hint cold-discard"):
            if not e.further:
                self.w.count(self.name, "ranges")
            if self.w.drop(page, e.end, self.name) and e.what == "hint cold":
                page.on_device = True

    def end(self) -> None:
        if self.policy == "on_free":
            super().end()
            return
        if self.policy == "recorded":
            return
        idle = int(self.params["idle_s"] * 1e9) if self.policy == "idle" else 0
        for page, last in self.last.items():
            if page.backed and last + idle <= self.w.latest:
                self.w.drop(page, last + idle, self.name)
                self.w.count(self.name, "ranges")
        self.call()


class Balloon(Mechanism):
    """A monitor moves a balloon towards its target."""

    name, stage = "balloon", 3

    def begin(self) -> None:
        self.size = BLOCK if self.params["page"] == "2m" else 1
        self.every = int(self.params["interval_s"] * 1e9)
        self.next = self.every
        self.monitor = self.params["policy"] == "monitor"
        self.free: set[Page] = set()
        self.count: Counter[tuple[int, int]] = Counter()
        self.waiting: list[list[Page]] = []  # groups that are free in the guest, longest first
        self.inflated: list[list[Page]] = []
        self.last: dict[Page, int] = {}
        self.waited: dict[object, int] = {}  # by vCPU: the sample it waited for last

    def group(self, page: Page) -> list[Page]:
        return self.w.blocks[page.block] if self.size == BLOCK else [page]

    def tick(self, now: int) -> None:
        while self.monitor and self.next <= now:
            self.sample(self.next)
            self.next += self.every

    def sample(self, at: int) -> None:
        step = (self.params["step_mib"] * 256 or 1 << 62) // self.size or 1
        if self.params["target_mib"]:
            balloon = (self.facts.memory_pages or 0) - int(self.params["target_mib"] * 256)
            wanted = balloon // self.size - len(self.inflated)
        else:
            wanted = len(self.waiting) - int(self.params["free_mib"] * 256) // self.size
        for _ in range(int(min(wanted, step, len(self.waiting)))):
            group = self.waiting.pop(-1 if self.params["target_mib"] else 0)
            self.inflated.append(group)
            for page in group:
                self.w.drop(page, at, self.name)
        for _ in range(int(min(-wanted, step, len(self.inflated)))):
            self.waiting.append(self.inflated.pop())

    def used(self, page: Page) -> bool:
        if page not in self.free:
            return False
        self.free.remove(page)
        group = self.group(page)
        if group in self.waiting:
            self.waiting.remove(group)
        elif group in self.inflated:
            self.inflated.remove(group)
            return True
        return False

    def look(self, e: Step, page: Page) -> None:
        if e.what in USES:
            self.last[page] = e.end

    def fault(self, e: Step, page: Page, verdict: str, service: int) -> tuple[str, int]:
        self.used(page)
        return verdict, service

    def event(self, e: Step, page: Page) -> None:
        if not self.monitor:
            if e.what == "drop":
                self.w.drop(page, max(self.last.get(page, 0), e.end - self.every // 2, 0), self.name)
        elif e.what == "page_free" and page not in self.free:
            self.free.add(page)
            if all(one in self.free for one in self.group(page)):
                self.waiting.append(self.group(page))
        elif e.what == "page_alloc":
            if not self.used(page):
                return
            waits = not self.waiting and self.waited.get((e.vm, e.lane)) != self.next
            if waits and page.there and not page.backed:
                self.waited[e.vm, e.lane] = self.next
                ns = self.w.price["ept", 1] + max(self.next - e.end, 0)
                self.w.add_fault(self.name, "refault", "ept", ns)
                self.w.advance(e.lane, e.vm, -ns)
                self.w.back(page, e.end + ns, "recorded")

    def end(self) -> None:
        self.tick(self.w.latest)


class Ksm(Mechanism):
    """Pages of equal content merge."""

    name, stage = "ksm", 3

    def begin(self) -> None:
        self.every = int(self.params["sleep_ms"] * 1e6)
        self.recorded = self.params["policy"] == "recorded"
        self.zero: set[Page] = set()
        self.looked_at: set[Page] = set()
        self.merged: dict[Page, object] = {}
        self.scanned_to, self.stands_at = 0, 0
        self.order = self.w.everything()

    def tick(self, now: int) -> None:
        while not self.recorded and self.scanned_to + self.every <= now:
            self.scanned_to += self.every
            if self.zero - self.merged.keys():
                self.scan(self.scanned_to)

    def scan(self, at: int) -> None:
        left = self.params["pages_to_scan"]
        for _ in range(max(len(self.order), BLOCK)):
            if not left:
                break
            page = self.order[self.stands_at % len(self.order)]
            self.stands_at = (self.stands_at + 1) % len(self.order)
            if page.backed and page not in self.merged:
                left -= 1
                if page in self.zero and page in self.looked_at:
                    self.merge(page, at, "zero")
                elif page in self.zero:
                    self.looked_at.add(page)

    def needed(self) -> int:
        """How many physical pages the merged ones still take: one for all that share it."""
        by_content = Counter(one for one in self.merged.values() if one is not None)
        return sum(-(-n // 256) if one == "zero" else 1 for one, n in by_content.items())

    def merge(self, page: Page, at: int, content: object) -> None:
        before = self.needed()
        self.merged[page] = content
        self.w.change("counterfactual", at, self.needed() - before - 1)

    def split(self, page: Page, at: int) -> bool:
        shared = page in self.merged
        if shared:
            before = self.needed()
            del self.merged[page]
            self.w.change("counterfactual", at, 1 + self.needed() - before)
        self.zero.discard(page)
        self.looked_at.discard(page)
        return shared

    def look(self, e: Step, page: Page) -> None:
        if not page.backed:
            self.split(page, e.start)
        rest = e.what == "fault" and e.further and not self.w.spared
        if (rest or e.what == "populate") and not page.there and not page.backed and not page.used:
            self.zero.add(page)

    def fault(self, e: Step, page: Page, verdict: str, service: int) -> tuple[str, int]:
        if e.access & WRITE or not (self.recorded or e.access & (READ | EXECUTE)):
            self.split(page, e.end)
        elif not page.there and verdict != "skipped":
            self.zero.add(page)
        return verdict, service

    def event(self, e: Step, page: Page) -> None:
        if e.what in ("drop", "swap_out"):
            self.split(page, e.end)
        elif self.recorded and e.what == "ksm_merge":
            if page.backed and (page not in self.merged or e.arg not in (0, self.merged[page])):
                self.split(page, e.end)
                self.merge(page, e.end, e.arg or None)
        elif self.recorded and e.what == "ksm_break":
            self.split(page, e.end)
        elif not self.recorded and e.what == "page_alloc" and self.split(page, e.end):
            ns = self.w.price["ept", 1]
            self.w.add_fault(self.name, "refault", "ept", ns)
            self.w.advance(e.lane, e.vm, -ns)

    def end(self) -> None:
        end = self.w.latest
        self.tick(end)
        for page in [one for one in self.merged if not one.backed]:
            self.split(page, end)
