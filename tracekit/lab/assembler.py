"""Machine code under construction: bytes, a listing of what they mean, and labels for jumps."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Assembler", "imm8", "imm32", "imm64"]


def imm8(value: int) -> bytes:
    """Return a value as an instruction's 8-bit immediate."""
    return value.to_bytes(1, "little")


def imm32(value: int) -> bytes:
    """Return a value as an instruction's 32-bit immediate (two's complement for negative ones)."""
    return value.to_bytes(4, "little", signed=value < 0)


def imm64(value: int) -> bytes:
    """Return a value as an instruction's 64-bit immediate."""
    return value.to_bytes(8, "little")


@dataclass
class Assembler:
    """x86-64 instructions in their order; `emit` takes the opcode bytes in hex beside their meaning.

    >>> code = Assembler()
    >>> code.label("again")
    >>> code.emit("48 ff c9", "dec rcx")
    >>> code.jump("0f 85", "jne", "again")
    >>> code.finish()
    (b'H\\xff\\xc9\\x0f\\x85\\xf7\\xff\\xff\\xff', {'again': 0})
    """

    listing: list[tuple[int, bytes, str]] = field(default_factory=list)
    _code: bytearray = field(default_factory=bytearray)
    _labels: dict[str, int] = field(default_factory=dict)
    _jumps: list[tuple[int, str]] = field(default_factory=list)

    def emit(self, hex_bytes: str, text: str, immediate: bytes = b"") -> None:
        """Append one instruction: its opcode bytes in hex, what they mean, then its immediate."""
        instruction = bytes.fromhex(hex_bytes) + immediate
        self.listing.append((len(self._code), instruction, text))
        self._code += instruction

    def label(self, name: str) -> None:
        """Name the current position."""
        self._labels[name] = len(self._code)

    def jump(self, hex_bytes: str, text: str, target: str) -> None:
        """Append a jump or call with a 32-bit relative target, which `finish` fills in."""
        self.emit(hex_bytes, f"{text} {target}", bytes(4))
        self._jumps.append((len(self._code), target))

    def finish(self) -> tuple[bytes, dict[str, int]]:
        """Resolve the jumps; return (code, offset of each label)."""
        for end, target in self._jumps:
            self._code[end - 4 : end] = imm32(self._labels[target] - end)
        return bytes(self._code), dict(self._labels)
