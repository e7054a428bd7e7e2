"""Edits of a small good trace, spelled by the fuzzer's bytes; on request every checksum is made right again.

A stranger can compute checksums too, so damage under right checksums is the interesting half.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable
from typing import Any

import pyarrow as pa

__all__ = ["Cursor", "edited", "resealed"]

_SEAL = re.compile(rb"crc32:[0-9a-f]{8}")
_NUMBERS = (
    0,
    1,
    -1,
    255,
    1 << 15,
    (1 << 16) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 40,
    1 << 62,
    (1 << 63) - 1,
    -(1 << 63),
)
_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1 << 31, 1 << 63, 1 << 64, 10**40, -(10**30), 1e308, 0.5, "", "x", "\x1b[2J\n",
    "9" * 400,
    "../../etc/passwd", "00000.arrow", "99999999.arrow", [], {}, [[]], [{}], {"a": []}, [None], [1 << 70],
    {"pid": -1, "argv": 7, "vcpus": "many"}, {"name": None}, "\ud800",
)  # fmt: skip
_OPS = 13


class Cursor:
    """Reads the fuzzer's bytes from front to back; past their end everything is 0."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, count: int) -> bytes:
        taken = self._data[self._at : self._at + count]
        self._at += count
        return taken.ljust(count, b"\0")

    def number(self, size: int = 1) -> int:
        return int.from_bytes(self.take(size), "little")

    def pick(self, options: Any) -> Any:
        return options[self.number(1 if len(options) <= 256 else 2) % len(options)]


def edited(seed: dict[str, bytes], data: bytes) -> tuple[dict[str, bytes], bool]:
    """Return the files of a trace after the edits in `data`, and whether the checksums were made right."""
    cursor = Cursor(data)
    seal = bool(cursor.number() & 1)
    files = dict(seed)
    while cursor.left > 0 and files:
        name = cursor.pick(sorted(files))
        changed = _edit(name, files[name], cursor)
        if changed is None:
            del files[name]
        else:
            files[name] = changed
    return (resealed(files) if seal else files), seal


def _edit(name: str, content: bytes, cursor: Cursor) -> bytes | None:
    op = cursor.number() % _OPS
    at = cursor.number(4) % (len(content) + 1)
    if op == 0:
        return content[:at] + cursor.take(1) + content[at + 1 :]
    if op == 1:
        return (
            content[:at]
            + bytes([content[at] ^ 1 << cursor.number() % 8] if at < len(content) else [])
            + content[at + 1 :]
        )
    if op == 2:
        return content[:at] + content[at + cursor.number() :]
    if op == 3:
        return content[:at] + cursor.take(cursor.number() % 32) + content[at:]
    if op == 4:
        return content[:at]
    if op in (5, 6):
        size = 8 if op == 5 else 4
        number = cursor.pick(_NUMBERS) & ((1 << 8 * size) - 1)
        at -= at % 4
        return content[:at] + number.to_bytes(size, "little") + content[at + size :]
    if op == 7:
        start = cursor.number(4) % (len(content) + 1)
        piece = content[start : start + cursor.number()]
        return content[:at] + piece + content[at + len(piece) :]
    if op == 8:
        return None if cursor.number() % 4 == 0 else content
    if op == 9 and name.endswith((".arrow", ".part", ".parquet")):
        return content[:at] + bytes(cursor.number(2) % 4096) + content[at:]
    if name.endswith(("json", "jsonl")):
        return _edit_json(name, content, cursor)
    return content[:at] + cursor.take(4) + content[at + 4 :]


def _edit_json(name: str, content: bytes, cursor: Cursor) -> bytes:
    """Put another value at some place of some document of the file."""
    lines = content.split(b"\n") if name.endswith(("jsonl", "ndjson")) else [content]
    at = cursor.number() % len(lines)
    prefix, text = lines[at][:9], lines[at][9:]
    if name != "journal.ndjson":
        prefix, text = b"", lines[at]
    try:
        document = json.loads(text)
    except ValueError:
        return content
    places = list(_places(document))
    if places:
        cursor.pick(places)(cursor.pick(_VALUES))
    lines[at] = prefix + json.dumps(document).encode()
    if cursor.number() % 4 == 0:
        lines.insert(at, lines[at])
    return b"\n".join(lines)


def _places(document: Any) -> list[Callable[[Any], None]]:
    found: list[Callable[[Any], None]] = []
    items: Any = ()
    if isinstance(document, dict):
        items = list(document.items())
    elif isinstance(document, list):
        items = list(enumerate(document))
    for key, value in items:
        found.append(lambda new, key=key: document.__setitem__(key, new))  # type: ignore[misc]
        found += _places(value)
    return found


def resealed(files: dict[str, bytes]) -> dict[str, bytes]:
    """Return the files with every checksum and size that tracekit writes computed anew."""
    out = {name: sealed_part(content) if _is_part(name) else content for name, content in files.items()}
    if "manifest.jsonl" in out:
        out["manifest.jsonl"] = b"\n".join(
            _sealed_line(line, out) for line in out["manifest.jsonl"].split(b"\n")
        )
    if "journal.ndjson" in out:
        lines = out["journal.ndjson"].split(b"\n")
        out["journal.ndjson"] = b"\n".join(
            b"%08x %s" % (zlib.crc32(t := line[9:]), t) if line else b"" for line in lines
        )
    if "meta.json" in out:
        out["meta.json"] = _sealed_meta(out)
    return out


def _is_part(name: str) -> bool:
    return name.startswith("events/") and ".arrow" in name


def sealed_part(content: bytes) -> bytes:
    """Return an Arrow part with the checksum of every frame that can still be found made right."""
    out = bytearray(content)
    stream = pa.BufferReader(content)
    start = at = 0
    try:
        stream.seek(8)
        while True:
            header_at = stream.tell()
            message = pa.ipc.read_message(stream)
            at = stream.tell()
            if message.type != "record batch":
                continue
            found = _SEAL.search(out, header_at, header_at + 8 + message.metadata.size)
            if found:
                digits = found.end() - 8
                out[digits : found.end()] = b"00000000"
                out[digits : found.end()] = b"%08x" % zlib.crc32(memoryview(out)[start:at])
            start = at
    except (pa.ArrowException, OSError, EOFError, ValueError):
        return bytes(out)


def _sealed_line(line: bytes, files: dict[str, bytes]) -> bytes:
    try:
        values = json.loads(line)
        values.pop("line_crc32", None)
        if (content := files.get(f"events/{values['part']}")) is not None and isinstance(values["part"], str):
            values |= {"bytes": len(content), "crc32": f"{zlib.crc32(content):08x}"}
        values["line_crc32"] = f"{zlib.crc32(json.dumps(values).encode()):08x}"
        return json.dumps(values).encode()
    except (ValueError, KeyError, TypeError, AttributeError):
        return line


def _sealed_meta(files: dict[str, bytes]) -> bytes:
    try:
        meta = json.loads(files["meta.json"])
        for name, table in meta["tables"].items():
            table |= {"bytes": len(files[name]), "crc32": f"{zlib.crc32(files[name]):08x}"}
        return json.dumps(meta).encode()
    except (ValueError, KeyError, TypeError, AttributeError):
        return files["meta.json"]
