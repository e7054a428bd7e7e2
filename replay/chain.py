"""Joins the hooks of several mechanisms into one chain that numba can compile and cache.

The chain's few lines are written here as source, one call per hook, and put in a module named after a hash
of all sources it rests on: the compiled kernel is found again on disk, and never stale.
"""

from __future__ import annotations

import hashlib
import inspect
import linecache
import sys
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tracekit.replay.engine import make_drive
from tracekit.replay.jit import compiled, hot
from tracekit.replay.mechanisms import Mechanism

__all__ = ["Chain", "chain_of"]

_ENGINE = ("accounts", "delays", "engine", "events", "freeing", "group_delays", "index", "jit", "pages")
HOOKS = ("fetch", "look", "fault", "event", "tick")
_HEADS = {
    "fetch": "def fetch(page, on, own):",
    "look": "def look(s, e, w, on, own):",
    "fault": "def fault(s, e, w, verdict, who, service, on, own):",
    "event": "def event(s, e, w, on, own):",
    "tick": "def tick(s, now, on, own):",
}
_CALLS = {
    "fetch": "{name}(page, own[{k}])",
    "look": "w = {name}(s, e, w, own[{k}], {me})",
    "fault": "w, now, service = {name}(s, e, w, verdict, service, own[{k}], {me})\n"
    "if now != verdict:\n"
    "    verdict = now\n"
    "    who = 0 if now == 0 else {me}",
    "event": "w = {name}(s, e, w, own[{k}], {me})",
    "tick": "{name}(s, now, own[{k}], {me})",
}
_TAILS = {
    "fetch": "return None",
    "look": "return w",
    "fault": "return w, verdict, who, service",
    "event": "return w",
    "tick": "return None",
}


@dataclass(frozen=True)
class Chain:
    """An ordered set of mechanisms, for which `kernel` gives the event loop."""

    mechanisms: tuple[Mechanism, ...]

    def kernel(
        self, on: int, *, plain: bool = False, special: bool = False, by_block: bool = False
    ) -> Callable[..., None]:
        """Return the event loop where the mechanisms of `on` are on (bit k: mechanism k).

        It is compiled unless `plain`. A `special` one holds only what is on: quicker, after a compile of its
        own. `by_block`: for batches sorted by block.
        """
        make = _plain if plain else _compiled
        return make(self.mechanisms, on if special else None, not by_block)


def chain_of(mechanisms: Iterable[Mechanism]) -> Chain:
    """Return the chain of the mechanisms, in the order of their stages, then of their names."""
    return Chain(tuple(sorted(mechanisms, key=lambda m: (m.stage, m.name))))


@cache
def _compiled(ordered: tuple[Mechanism, ...], only: int | None, in_order: bool) -> Callable[..., None]:
    return compiled(_plain(ordered, only, in_order))


@cache
def _plain(ordered: tuple[Mechanism, ...], only: int | None, in_order: bool) -> Callable[..., None]:
    """Return the event loop over the joined hooks of the mechanisms.

    Without `only`, each call asks first whether its mechanism is on.
    """
    chosen = {k: m for k, m in enumerate(ordered) if only is None or only >> k & 1}
    hooks = {
        (hook, k): function
        for hook in HOOKS
        for k, m in chosen.items()
        if (function := getattr(m, hook)) is not None
    }
    lines: list[str] = []
    for hook in HOOKS:
        lines.append(_HEADS[hook])
        for name, k in hooks:
            if name != hook:
                continue
            call = _CALLS[hook].format(name=f"{hook}_{k}", k=k, me=k + 1)
            lines += (
                _indented(call, 1) if only is not None else [f"    if on & {1 << k}:", *_indented(call, 2)]
            )
        lines += [*_indented(_TAILS[hook], 1), ""]
    source = "\n".join(lines)
    digest = hashlib.sha256(source.encode())
    digest.update(_own_sources())
    for mechanism in chosen.values():
        digest.update(_source_of(mechanism))
    module = types.ModuleType(f"tracekit_chain_{digest.hexdigest()[:24]}")
    module.__dict__.update({f"{hook}_{k}": function for (hook, k), function in hooks.items()})
    filename = f"<{module.__name__}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    exec(compile(source, filename, "exec"), module.__dict__)  # noqa: S102  (our own few lines, shown above)
    # By name from a registered module is how numba's cache key can name the hooks.
    sys.modules[module.__name__] = module
    return make_drive(*(hot(getattr(module, hook)) for hook in HOOKS), in_order=in_order)


def _indented(text: str, steps: int) -> list[str]:
    return ["    " * steps + line for line in text.split("\n")]


@cache
def _own_sources() -> bytes:
    """Return a hash of the engine: numba's cache does not notice edits in files that a kernel calls.

    All mechanisms of the package belong to it, for one's hooks may call another's functions.
    """
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for path in [*(here / f"{name}.py" for name in _ENGINE), *sorted((here / "mechanisms").glob("*.py"))]:
        digest.update(path.read_bytes())
    return digest.digest()


def _source_of(mechanism: Mechanism) -> bytes:
    """Return what the hooks of a mechanism are made of: the file it stands in, else its code."""
    hooks = [function for name in HOOKS if (function := getattr(mechanism, name)) is not None]
    found = []
    for function in hooks:
        try:
            found.append(Path(inspect.getfile(function)).read_bytes())
        except (OSError, TypeError):  # typed at a prompt
            found.append(repr((function.__code__.co_code, function.__code__.co_consts)).encode())
    return b"".join(dict.fromkeys(found))
