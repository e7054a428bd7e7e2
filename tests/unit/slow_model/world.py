"""Pages, lanes and books of the slow model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

BLOCK = 512
ENGINE = "recorded"

FLAG_MAJOR, FLAG_ZEROED, FLAG_KERNEL, FLAG_UNWRITTEN = 1, 2, 16, 64
READ, WRITE, EXECUTE = 1, 2, 4
HYPERCALL_KINDS = {1: "cold", 2: "hot", 3: "cold-discard"}


@dataclass(eq=False)
class Page:
    """One 4 KiB page in both worlds."""

    vm: int
    gfn: int
    number: int
    # as recorded
    there: bool = False
    seen: bool = False
    discarded: bool = False
    # as it would have been
    backed: bool = False
    host_only: bool = False  # in the host's page table, not in the guest's
    on_device: bool = False
    read_at_once: bool = False
    taken: bool = False
    put_off: bool = False
    unused: bool = False
    owner: str = ENGINE
    # in the guest
    free: bool = False
    used: bool = False
    still_zero: bool = False

    @property
    def block(self) -> tuple[int, int]:
        return self.vm, self.gfn // BLOCK


@dataclass
class Step:
    """One event, or one 2 MiB block of it, as a mechanism sees it; times are counterfactual."""

    what: str
    vm: int
    lane: Any
    start: int
    end: int
    latency: int
    level: int
    access: int
    flags: int
    on_host: bool
    arg: int
    pages: list[Page]
    first: bool  # the first block of its event
    page: Page | None = None  # the one that is looked at
    further: bool = False  # not the very first page of its event

    @property
    def size(self) -> int:
        """How many pages are left in the block, from the one looked at."""
        return len(self.pages) - (self.pages.index(self.page) if self.page else 0)

    @property
    def major(self) -> bool:
        return bool(self.flags & FLAG_MAJOR)

    @property
    def kernel(self) -> bool:
        return bool(self.flags & FLAG_KERNEL)

    @property
    def guest_write(self) -> bool:
        return bool(self.access & WRITE) and not self.major and not self.on_host


@dataclass
class World:
    """Everything that changes while a trace is replayed."""

    price: Mapping[Any, int]
    closed: bool
    slots: list[tuple[int, int, int]]
    span: int
    blocks: dict[tuple[int, int], list[Page]] = field(default_factory=dict)
    lead: dict[Any, int] = field(default_factory=lambda: defaultdict(int))
    stalled_to: dict[Any, int] = field(default_factory=dict)
    changes: list[tuple[str, int, int]] = field(default_factory=list)
    resident: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    verdicts: list[tuple[str, str, int]] = field(default_factory=list)
    added: list[list[Any]] = field(default_factory=list)  # who, why, class, ns
    lengthened: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))  # who, why: ns
    tally: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    levels: bool = False
    spared: bool = False

    def in_memory(self, vm: int, first: int, end: int) -> int:
        """How many of the pages first..end are guest memory."""
        if not self.slots:
            return end - first
        return sum(max(0, min(b, end) - max(a, first)) for v, a, b in self.slots if v == vm)

    def page(self, vm: int, gfn: int) -> Page | None:
        """The page of a gfn, if any event names its block."""
        block = self.blocks.get((vm, gfn // BLOCK))
        return block[gfn % BLOCK] if block else None

    def everything(self) -> list[Page]:
        """All pages, in the order in which their blocks were first named."""
        return [page for block in self.blocks.values() for page in block]

    def change(self, world: str, t: int, n: int) -> None:
        self.changes.append((world, t, n))
        self.resident[world] += n

    def count(self, who: str, what: str, n: int = 1) -> None:
        self.tally[who, what] += n

    def advance(self, lane: Any, vm: int, gain: int) -> None:
        """Let a lane run ahead; its VM's own clock follows it. Nobody is later for what is on that itself."""
        if lane == ("clock", vm):
            return
        if self.closed:
            self.lead[lane] += gain
        self.lead["clock", vm] = self.lead[lane]

    def add_fault(self, who: str, why: str, cls: str, ns: int) -> None:
        self.added.append([who, why, cls, ns])

    def back(self, page: Page, t: int, who: str) -> None:
        if page.backed:
            return
        self.change("counterfactual", t, 1)
        page.backed, page.owner = True, who
        page.on_device = page.put_off = page.taken = page.unused = page.host_only = False

    def drop(self, page: Page, t: int, who: str) -> bool:
        if not page.backed:
            return False
        self.change("counterfactual", t, -1)
        page.backed = page.host_only = False
        page.owner = who
        if who != ENGINE:
            page.taken = True
        return True

    @property
    def latest(self) -> int:
        """The counterfactual end of the lane that ran ahead furthest."""
        return self.span - max([0, *self.lead.values()])


class Mechanism:
    """What the slow model asks of a mechanism; the hooks of docs/model.md with their times."""

    name = ""
    stage = 3

    def __init__(self, world: World, params: dict[str, Any], facts: Any) -> None:
        self.w, self.params, self.facts = world, params, facts

    def begin(self) -> None: ...
    def tick(self, now: int) -> None: ...
    def look(self, e: Step, page: Page) -> None: ...

    def fault(self, e: Step, page: Page, verdict: str, service: int) -> tuple[str, int]:
        return verdict, service

    def event(self, e: Step, page: Page) -> None: ...
    def after(self, e: Step, page: Page, added: list[list[Any]]) -> None: ...
    def end(self) -> None: ...
