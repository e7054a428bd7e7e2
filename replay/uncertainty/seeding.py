"""Random numbers that depend on the seed and on what they are for, never on who draws first."""

from __future__ import annotations

import hashlib

import numpy as np

__all__ = ["generator"]


def generator(seed: int, *names: str) -> np.random.Generator:
    """Return the generator of one figure, named by its scenario, metric and so on.

    The same seed and names give the same stream whatever the order or the number of jobs in which
    figures are computed; different names give independent streams (SeedSequence with the names' SHA-256
    as spawn key).

    >>> a, b = generator(7, "zeroing", "faults"), generator(7, "zeroing", "faults")
    >>> bool(a.random() == b.random()), bool(a.random() == generator(7, "zeroing", "stall").random())
    (True, False)
    """
    digest = hashlib.sha256("\0".join(names).encode()).digest()
    words = tuple(int.from_bytes(digest[i : i + 4], "little") for i in range(0, 32, 4))
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=words))
