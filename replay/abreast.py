"""Which settings of a sweep go through the events together: one walk may answer several (`Abreast`)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tracekit.replay.chain import Chain, chain_of
from tracekit.replay.mechanisms import Abreast, Mechanism, Own, Setup

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
    for k, setting in enumerate(settings):
        family, order = (_family(setting, chain) if abreast else None) or (k, 0)
        families.setdefault(family, []).append((order, k))
    walks = []
    for places in families.values():
        members = tuple(k for _, k in sorted(places))
        names = list(settings[members[0]].contexts)
        if len(members) == 1:
            walks.append(Walk(members, chain))
            continue
        at = next(j for j, m in enumerate(chain.mechanisms) if m.name == names[0])
        how = chain.mechanisms[at].abreast
        assert how is not None
        others = chain_of(
            [*chain.mechanisms[:at], _stand_in(chain.mechanisms[at], how), *chain.mechanisms[at + 1 :]]
        )
        walks += [
            Walk(members[begin : begin + how.most], others, how, at)
            for begin in range(0, len(members), how.most)
        ]
    return sorted(walks, key=lambda walk: min(walk.members))


def _family(setting: Setting, chain: Chain) -> tuple[Hashable, int] | None:
    """Return what those have in common that a setting may go abreast with, and its place among them."""
    if setting.closed or len(setting.contexts) != 1:
        return None
    ((name, context),) = setting.contexts.items()
    how = next(m.abreast for m in chain.mechanisms if m.name == name)
    found = how.key(context) if how is not None else None
    if found is None:
        return None
    return (name, found[0], setting.costs.tobytes(), setting.around), found[1]


def _stand_in(mechanism: Mechanism, how: Abreast) -> Mechanism:
    """Return the mechanism with the hooks that answer many settings."""
    return replace(
        mechanism,
        fetch=how.fetch,
        look=how.look,
        fault=None,
        event=None,
        tick=None,
        begin=None,
        finish=None,
        abreast=None,
    )
