"""The small guest's machine code: a loop per phase, built at run time, each instruction with its text.

Every phase is the same loop: the next index of the vCPU's share, its address, an access, `out` when done.
Nothing but the page tables, the code and the touched pages is ever accessed: the random order is computed
(a bijection on k bits that skips what lies outside), so no table of addresses disturbs the count.

Register contract, set by the VMM before each phase:

    rbp  address of the phase            r8   address of the share's page 0
    rsi  touches done (starts at 0)      r9   bytes from one page of the share to the next
    rbx  order state: counter or index   r10  pages in the share
    r12  stride: start of this round     r11  random: 2^k - 1        r13  stride in pages
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

__all__ = ["DONE_PORT", "Access", "GuestCode", "Order", "build", "order_indices", "random_bits"]

Order = Literal["seq", "random", "stride"]
Access = Literal["write", "read", "zero"]

DONE_PORT: Final = 0x10
"""The I/O port whose `out` tells the VMM that a phase is over."""


@dataclass
class GuestCode:
    """Machine code under construction: bytes, a listing of them, and labels for 32-bit relative jumps."""

    code: bytearray = field(default_factory=bytearray)
    listing: list[tuple[int, bytes, str]] = field(default_factory=list)
    _labels: dict[str, int] = field(default_factory=dict)
    _jumps: list[tuple[int, str]] = field(default_factory=list)

    def emit(self, hex_bytes: str, text: str, *immediate: bytes) -> None:
        """Append one instruction: its opcode bytes in hex, what they mean, then immediate bytes."""
        instruction = bytes.fromhex(hex_bytes) + b"".join(immediate)
        self.listing.append((len(self.code), instruction, text))
        self.code += instruction

    def label(self, name: str) -> None:
        """Name the current position."""
        self._labels[name] = len(self.code)

    def jump(self, hex_bytes: str, text: str, target: str) -> None:
        """Append a jump with a 32-bit relative target; `finish` fills it in."""
        self.emit(hex_bytes, f"{text} {target}", bytes(4))
        self._jumps.append((len(self.code), target))

    def finish(self) -> tuple[bytes, dict[str, int]]:
        """Resolve the jumps and return (code, offset of each label)."""
        for end, target in self._jumps:
            self.code[end - 4 : end] = (self._labels[target] - end).to_bytes(4, "little", signed=True)
        return bytes(self.code), dict(self._labels)


@dataclass(frozen=True)
class Mixer:
    """A bijection on k-bit numbers: xor-shift, odd multiply, twice; its constants come from a seed.

    >>> mixer = Mixer.from_seed(7, bits=4)
    >>> sorted(mixer.mix(i) for i in range(16)) == list(range(16))
    True
    """

    bits: int
    shift: int
    multipliers: tuple[int, int]
    offset: int

    @classmethod
    def from_seed(cls, seed: int, *, bits: int) -> Mixer:
        """Return the mixer of a seed."""
        source = random.Random(seed)  # noqa: S311 - a reproducible order, not a secret
        first, second = (source.getrandbits(31) | 1 for _ in range(2))
        return cls(bits, max(1, bits // 2), (first, second), source.getrandbits(bits))

    def mix(self, counter: int) -> int:
        """Return the image of a counter, as the guest computes it."""
        mask = (1 << self.bits) - 1
        value = (counter + self.offset) & mask
        for multiplier in self.multipliers:
            value ^= value >> self.shift
            value = value * multiplier & mask
        return value ^ value >> self.shift


def random_bits(pages: int) -> int:
    """Return k, the bits of the random order's bijection: the least with 2^k >= pages.

    >>> [random_bits(n) for n in (1, 2, 3, 1024, 1025)]
    [1, 1, 2, 10, 11]
    """
    return max(1, (pages - 1).bit_length())


def order_indices(order: Order, pages: int, *, seed: int, stride: int, bits: int) -> Iterator[int]:
    """Yield a share's page indices in the order the guest visits them: the reference for its machine code.

    >>> list(order_indices("stride", 5, seed=0, stride=2, bits=3))
    [0, 2, 4, 1, 3]
    >>> sorted(order_indices("random", 5, seed=1, stride=1, bits=3))
    [0, 1, 2, 3, 4]
    """
    if order == "seq":
        yield from range(pages)
    elif order == "stride":
        for start in range(min(stride, pages)):
            yield from range(start, pages, stride)
    else:
        mixer = Mixer.from_seed(seed, bits=bits)
        yield from (value for value in map(mixer.mix, range(1 << bits)) if value < pages)


def build(
    phases: dict[str, tuple[Order, Access]], *, seed: int, bits: int, step_bytes: int
) -> tuple[bytes, dict[str, int], list[tuple[int, bytes, str]]]:
    """Return (code, offset of each phase, listing) of a guest with these phases.

    `bits` sizes the random order (see `random_bits`); `zero` clears `step_bytes` from the page's start.
    """
    guest = GuestCode()
    for name, (order, access) in phases.items():
        guest.label(name)
        _next_index(guest, name, order, seed=seed, bits=bits)
        guest.emit("49 0f af c1", "imul rax, r9")  # index -> byte offset in the share
        guest.emit("4c 01 c0", "add rax, r8")  # -> guest address (virtual = physical)
        _access(guest, access, step_bytes)
        guest.emit("48 ff c6", "inc rsi")
        guest.emit("4c 39 d6", "cmp rsi, r10")
        guest.jump("0f 85", "jne", name)
        guest.jump("e9", "jmp", "done")
    guest.label("done")
    guest.emit("e6", f"out {DONE_PORT:#x}, al", bytes([DONE_PORT]))
    guest.emit("ff e5", "jmp rbp")  # the VMM resumes us here with the next phase in rbp
    code, labels = guest.finish()
    return code, labels, guest.listing


def _next_index(guest: GuestCode, phase: str, order: Order, *, seed: int, bits: int) -> None:
    """Emit: rax = the next page index of the share."""
    if order == "seq":
        guest.emit("48 89 f0", "mov rax, rsi")
    elif order == "stride":
        guest.emit("48 89 d8", "mov rax, rbx")
        guest.emit("4c 01 eb", "add rbx, r13")
        guest.emit("4c 39 d3", "cmp rbx, r10")
        guest.jump("0f 82", "jb", f"{phase}.stride")
        guest.emit("49 ff c4", "inc r12")  # past the end: the next round starts one page later
        guest.emit("4c 89 e3", "mov rbx, r12")
        guest.label(f"{phase}.stride")
    else:
        mixer = Mixer.from_seed(seed, bits=bits)
        shift = bytes([mixer.shift])
        guest.label(f"{phase}.random")
        guest.emit("48 89 d8", "mov rax, rbx")
        guest.emit("48 ff c3", "inc rbx")
        guest.emit("48 ba", f"mov rdx, {mixer.offset:#x}", mixer.offset.to_bytes(8, "little"))
        guest.emit("48 01 d0", "add rax, rdx")
        guest.emit("4c 21 d8", "and rax, r11")
        for multiplier in mixer.multipliers:
            _xor_shift(guest, shift)
            guest.emit("ba", f"mov edx, {multiplier:#x}", multiplier.to_bytes(4, "little"))
            guest.emit("48 0f af c2", "imul rax, rdx")
            guest.emit("4c 21 d8", "and rax, r11")
        _xor_shift(guest, shift)
        guest.emit("4c 39 d0", "cmp rax, r10")
        guest.jump("0f 83", "jae", f"{phase}.random")  # outside the share: take the next


def _xor_shift(guest: GuestCode, shift: bytes) -> None:
    guest.emit("48 89 c2", "mov rdx, rax")
    guest.emit("48 c1 ea", f"shr rdx, {shift[0]}", shift)
    guest.emit("48 31 d0", "xor rax, rdx")


def _access(guest: GuestCode, access: Access, step_bytes: int) -> None:
    """Emit the access to the page at rax."""
    if access == "write":
        # The page's content is its address and the touch's number: the VMM can check both.
        guest.emit("48 89 00", "mov [rax], rax")
        guest.emit("48 89 70 08", "mov [rax+8], rsi")
    elif access == "read":
        guest.emit("48 8b 10", "mov rdx, [rax]")
    else:
        guest.emit("48 89 c7", "mov rdi, rax")
        guest.emit("b9", f"mov ecx, {step_bytes // 8:#x}", (step_bytes // 8).to_bytes(4, "little"))
        guest.emit("31 c0", "xor eax, eax")
        guest.emit("f3 48 ab", "rep stosq")
