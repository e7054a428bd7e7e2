"""Zeroing that the guest need not do."""

from __future__ import annotations

from tests.unit.slow_model.world import FLAG_ZEROED, Mechanism, Page, Step


class Zeroing(Mechanism):
    """A page that came zeroed from the host is not zeroed by the guest."""

    name, stage = "zeroing", 0

    def begin(self) -> None:
        self.late: dict[Page, tuple[int, list[Page]]] = {}

    def fault(self, e: Step, page: Page, verdict: str, service: int) -> tuple[str, int]:
        until = self.params["until_ms"] * 1e6
        told = [one.split("-") for one in self.params["ranges"].split("/") if one]
        inside = not told or any(int(first) <= page.gfn < int(end) for first, end in told)
        if not e.guest_write or page.there or page.seen or (until and e.start > until) or not inside:
            return verdict, service
        self.w.count(self.name, "candidates", len(e.pages))
        if not page.free and (page.used or self.facts.guest_events):
            page.still_zero = True
            return verdict, service
        page.still_zero = False
        self.w.count(self.name, "zeroed", len(e.pages))
        if verdict == "hit" or (verdict != "kept" and not page.host_only):
            return verdict, service
        pages = [one for one in e.pages if not one.there]
        for one in pages:
            self.late[one] = service, pages
            one.put_off = True
        return "skipped", 0

    def event(self, e: Step, page: Page) -> None:
        if e.what != "page_alloc":
            return
        if page.still_zero and e.flags & FLAG_ZEROED:
            self.w.count(self.name, "zeroed")
            page.still_zero = False
        if page.put_off and page.there and (not page.backed or page.host_only):
            ns, pages = self.late[page]
            self.w.add_fault(self.name, "deferred", "ept", ns)
            self.w.advance(e.lane, e.vm, -ns)
            for one in pages:
                if one.put_off and one.there:
                    self.w.back(one, e.end + ns, "recorded")
                    one.put_off = one.host_only = False


class ZeroingAfterReuse(Mechanism):
    """So is one that the host took and gives back."""

    name, stage = "zeroing_after_reuse", 0

    def fresh(self, page: Page) -> bool:
        return (page.discarded and not page.there) or (page.taken and not page.backed)

    def fault(self, e: Step, page: Page, verdict: str, service: int) -> tuple[str, int]:
        if not self.facts.guest_events and e.guest_write and self.fresh(page):
            self.w.count(self.name, "candidates", len(e.pages))
            self.w.count(self.name, "zeroed", len(e.pages))
        return verdict, service

    def event(self, e: Step, page: Page) -> None:
        guest = self.facts.guest_events
        if guest and e.what == "page_alloc" and e.flags & FLAG_ZEROED and self.fresh(page):
            self.w.count(self.name, "candidates")
            self.w.count(self.name, "zeroed")
