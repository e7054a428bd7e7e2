"""Which settings of a sweep go through the events together: one walk may answer several (`Abreast`)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tracekit.replay.chain import Chain, chain_of
from tracekit.replay.mechanisms import Abreast, Own, Setup

if TYPE_CHECKING:
    from tracekit.replay.pages import World
    from tracekit.replay.state import Setting

__all__ = ["Walk", "walks_of"]


@dataclass(frozen=True)
class Walk:
    """Goes through the events once, for one setting or (with `how`) for several: their numbers, in order.

    `at`: the number of the mechanism that goes abreast.
    """

    members: tuple[int, ...]
    chain: Chain
    how: Abreast | None = None
    at: int = 0

    @property
    def name(self) -> str:
        """Name of the one that goes abreast."""
        return self.chain.mechanisms[self.at].name

    def setups(self, settings: Sequence[Setting]) -> Mapping[str, Setup]:
        """Return what stands in for the mechanism's own set-up."""
        if self.how is None:
            return {}
        return {self.name: self.how.setup([settings[k].contexts[self.name] for k in self.members])}

    def worlds(self, world: World, own: Sequence[Own]) -> list[World]:
        """Return the world of each setting so far."""
        if self.how is None:
            return [world]
        return [self.how.one_of(world, own[self.at], self.at + 1, k) for k in range(len(self.members))]

    def ends(self, settings: Sequence[Setting], world: World, own: Sequence[Own]) -> list[World]:
        """Do what is due after the last event; return the world of each setting."""
        if self.how is None:
            contexts = settings[self.members[0]].contexts
            for k, m in enumerate(self.chain.mechanisms):
                if m.name in contexts and m.finish is not None:
                    m.finish(contexts[m.name], world, own[k], k + 1)
            return [world]
        self.how.finish(world, own[self.at], self.at + 1)
        worlds = self.worlds(world, own)
        for k, one in zip(self.members, worlds, strict=True):
            self.how.tally(settings[k].contexts[self.name], one, self.at + 1)
        return worlds


def walks_of(settings: Sequence[Setting], chain: Chain, *, abreast: bool) -> list[Walk]:
    """Return the walks that answer these settings; each alone unless `abreast`."""
    families: dict[Hashable, list[tuple[int, int]]] = {}
    ways: dict[Hashable, tuple[Abreast, int]] = {}
    for k, setting in enumerate(settings):
        family: Hashable = k
        order = 0
        if abreast and not setting.closed and len(setting.contexts) == 1:
            ((name, context),) = setting.contexts.items()
            at = next(j for j, m in enumerate(chain.mechanisms) if m.name == name)
            found = chain.mechanisms[at].abreast(context)
            if found is not None:
                how, alike, order = found
                family = (at, how, alike, setting.costs.tobytes(), setting.around)
                ways[family] = how, at
        families.setdefault(family, []).append((order, k))
    walks = []
    for family, places in families.items():
        members = tuple(k for _, k in sorted(places))
        if len(members) == 1:
            walks.append(Walk(members, chain))
            continue
        how, at = ways[family]
        standing_in = replace(
            chain.mechanisms[at],
            page_words=how.page_words,
            fetch=how.fetch,
            look=how.look,
            fault=how.fault,
            event=how.event,
            calm=how.calm,
            tick=None,
            begin=None,
        )
        others = chain_of([*chain.mechanisms[:at], standing_in, *chain.mechanisms[at + 1 :]])
        for begin in range(0, len(members), how.most):
            walks.append(Walk(members[begin : begin + how.most], others, how, at))
    return sorted(walks, key=lambda walk: min(walk.members))
