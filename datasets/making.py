"""Makes a dataset by its name: `synthetic:NAME` generates, a bundled trace's name records it anew."""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path
from typing import Any

from tracekit.datasets.synthetic import GENERATORS
from tracekit.datasets.synthetic.generator import Generator
from tracekit.errors import UsageError

__all__ = ["PREFIX", "describe_generator", "generator_type", "make"]

PREFIX = "synthetic:"


def generator_type(name: str) -> type[Generator]:
    """Return a generator by its name, with or without the prefix; UsageError names the nearest.

    >>> generator_type("synthetic:scan").NAME
    'scan'
    """
    short = name.removeprefix(PREFIX)
    if short not in GENERATORS:
        near = difflib.get_close_matches(short, GENERATORS, 1)
        raise UsageError(
            f"no generator is called {short!r}",
            hint=f"{PREFIX}{near[0]}" if near else "tracekit datasets list",
        )
    return GENERATORS[short]


def describe_generator(name: str) -> dict[str, Any]:
    """Return what `datasets show` prints of a generator: name, about, documentation, parameters."""
    kind = generator_type(name)
    return {
        "name": PREFIX + kind.NAME,
        "source": "synthetic",
        "about": kind.ABOUT,
        "documentation": (kind.__doc__ or "").strip(),
        "parameters": [
            {"name": f.name, "default": f.default, "about": f.metadata["about"]}
            for f in dataclasses.fields(kind)
        ],
    }


def make(name: str, path: Path | None, values: list[str], *, force: bool = False) -> dict[str, Any]:
    """Make the trace folder `path` (default NAME.trace here) and say what it holds: path, source, events.

    `values` are `k=v` parameters of a generator. Raises UsageError for an unknown name or parameter, a
    value out of range, and an existing `path`; CapabilityError where this host cannot record what is asked.
    """
    if name.startswith(PREFIX):
        pairs = [value.partition("=") for value in values]
        for key, equals, _ in pairs:
            if not equals:
                raise UsageError(f"{key!r} is not a parameter", hint=f"{key}=VALUE")
        from tracekit.datasets.synthetic.make import make_trace

        generator = generator_type(name).from_text({key: text for key, _, text in pairs})
        path = path or Path(f"{generator.NAME}.trace")
        meta = make_trace(generator, path, force=force)
        return {"name": name, "path": str(path), "source": meta.source, "events": meta.rows}
    if values:
        raise UsageError(f"{name} is recorded and has no parameters", hint=f"tracekit datasets make {name}")
    from tracekit.datasets.recipes import RECIPES, record
    from tracekit.trace import open_trace

    if name not in RECIPES:
        near = difflib.get_close_matches(name, [*RECIPES, *(PREFIX + known for known in GENERATORS)], 1)
        raise UsageError(
            f"no dataset is called {name!r}",
            hint=f"tracekit datasets make {near[0]}" if near else "tracekit datasets list",
        )
    path = path or Path(f"{name}.trace")
    record(RECIPES[name], path, force=force)
    trace = open_trace(path)
    return {"name": name, "path": str(path), "source": trace.meta.source, "events": trace.rows}
