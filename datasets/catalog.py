"""The bundled traces: real recordings that come with tracekit, each with a data card beside it."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any

from tracekit.errors import DamagedError, UsageError

__all__ = ["DATA", "Card", "card", "cards", "trace_path", "trace_sha256"]

DATA = Path(__file__).parent / "data"
"""Where bundled traces are: NAME.trace and NAME.card.toml."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """What one needs to know before trusting a bundled trace.

    `record_again` is the command that makes it anew; `sha256` is over the trace folder
    (`trace_sha256`); `can_tell` and `cannot_tell` say which questions it answers.
    """

    name: str
    title: str
    about: str
    source: str
    licence: str
    date: str
    command: str
    record_again: str
    kernel: str
    cpu: str
    kvm_module: str
    mmu_mode: str
    tool_version: str
    events: int
    lost: int
    span_s: float
    size_bytes: int
    sha256: str
    can_tell: list[str]
    cannot_tell: list[str]

    @property
    def path(self) -> Path:
        """The trace folder."""
        return DATA / f"{self.name}.trace"

    def to_toml(self) -> str:
        """Return the text of the card file; strings, numbers and lists of strings in JSON form are TOML."""
        lines = []
        for key, value in dataclasses.asdict(self).items():
            if isinstance(value, list):
                items = "".join(f"    {json.dumps(item, ensure_ascii=False)},\n" for item in value)
                lines.append(f"{key} = [\n{items}]\n")
            else:
                lines.append(f"{key} = {json.dumps(value, ensure_ascii=False)}\n")
        return "".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, with the path."""
        return {**dataclasses.asdict(self), "path": str(self.path)}

    @classmethod
    def from_file(cls, path: Path) -> Card:
        """Read a card; DamagedError when a field is missing or unknown."""
        try:
            return cls(**tomllib.loads(path.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, TypeError) as error:
            raise DamagedError(
                f"{path.name} is not a data card: {error}", hint="reinstall tracekit"
            ) from None


def cards() -> list[Card]:
    """Return the card of every bundled trace, by name.

    >>> all(card.path.is_dir() for card in cards())
    True
    """
    return [Card.from_file(path) for path in sorted(DATA.glob("*.card.toml"))]


def card(name: str) -> Card:
    """Return one card; UsageError names the nearest when there is none.

    >>> card("boot")
    Traceback (most recent call last):
    tracekit.errors.UsageError: no bundled trace is called 'boot'
    """
    known = {item.name: item for item in cards()}
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        raise UsageError(
            f"no bundled trace is called {name!r}",
            hint=f"tracekit datasets show {near[0]}" if near else "tracekit datasets list",
        )
    return known[name]


def trace_path(name: str) -> Path:
    """Return the folder of a bundled trace after comparing it with its card's sha256 (DamagedError)."""
    wanted = card(name)
    if not wanted.path.is_dir() or trace_sha256(wanted.path) != wanted.sha256:
        raise DamagedError(f"the bundled trace {name} is not what its card says", hint="reinstall tracekit")
    return wanted.path


def trace_sha256(path: Path) -> str:
    """Return the sha256 of a trace folder: every file's relative name, length and content, in order."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file():
            content = file.read_bytes()
            digest.update(f"{file.relative_to(path).as_posix()}\0{len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()
