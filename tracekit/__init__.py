"""tracekit: record what a VM's memory really did, then replay it through an enlightened-memory model.

>>> import tracekit as tk
>>> t = tk.open("x.trace")                              # doctest: +SKIP
>>> t.events                                            # doctest: +SKIP
>>> tk.what_if(t, ["zeroing", "hot_hint,lead_ms=5"])    # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracekit.api import open, scan, what_if  # noqa: A004

__all__ = ["open", "scan", "what_if"]


def __getattr__(name: str) -> object:
    """Import the API on first use, so that `import tracekit` stays light."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tracekit import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
