"""How each bundled trace is recorded: the command that is traced, what it needs, what it can tell."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

from tracekit.errors import FailedError

__all__ = ["RECIPES", "Recipe", "record"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """One recording: `tracekit record -o OUT -- COMMAND`, and what its data card says.

    `command` is traced with its children; its first word is `tracekit`, run by this very interpreter.
    """

    name: str
    title: str
    about: str
    command: tuple[str, ...]
    can_tell: tuple[str, ...]
    cannot_tell: tuple[str, ...]
    licence: str = "CC0-1.0"

    @property
    def record_again(self) -> str:
        """What a user types to record it anew."""
        return f"tracekit datasets make {self.name}"


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="small-guest-zero-then-use",
            title="a KVM guest that zeroes 256 MiB, then uses a quarter of it",
            about=(
                "A small 64-bit guest under KVM, one vCPU, 4 KiB backing. It clears all of its 65,644 pages"
                " in order, then writes one word in every fourth page in random order: a Windows-like boot in"
                " miniature. Host faults of the VMM's own memory (a Python interpreter) are in it too."
            ),
            command=(
                *("tracekit", "lab", "guest", "--pages", "16411", "--step", "16k"),
                *("--order", "random", "--seed", "7", "--zero-first"),
            ),
            can_tell=(
                "each first touch of guest memory: page, time, service time",
                "what skipping the guest's zeroing saves: faults, stall, resident memory",
                "what prefaulting, huge pages and preallocation would have changed",
            ),
            cannot_tell=(
                "which pages were used after the zeroing: they were mapped by then"
                " (the command says: every fourth, in random order)",
                "costs of EPT or NPT hardware: this host shadows page tables (PVM)",
            ),
        ),
    )
}
"""Every recipe by the name of its trace."""


def record(recipe: Recipe, path: Path, *, force: bool = False) -> None:
    """Record a recipe's trace to `path`.

    Raises FailedError (with what the recorder said) if it did not come to an end; needs what
    `tracekit record` needs: root, eBPF, and for guests under KVM /dev/kvm.
    """
    tracekit = [sys.executable, "-m", "tracekit"]
    command = [*tracekit, "record", *(["-f"] if force else []), "-o", str(path), "--"]
    command += [*tracekit, *recipe.command[1:]]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise FailedError(
            f"recording {recipe.name} failed: {said[0] if said else 'no message'}", hint="tracekit doctor"
        )
