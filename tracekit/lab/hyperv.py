"""Hyper-V's memory enlightenments as numbers and pages: hypercall codes, CPUID leaves, range formats.

Sources: Microsoft's Hypervisor Top-Level Functional Specification (calls 0x8001 and 0x8002, CPUID leaves,
MSRs) and, for the input of 0x8003, the Linux header include/hyperv/hvgdk_ext.h (v6.17).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final, Literal

__all__ = [
    "GET_BOOT_ZEROED",
    "HEATS",
    "MEMORY_HEAT_HINT",
    "MSR_GUEST_OS_ID",
    "MSR_HYPERCALL",
    "QUERY_CAPABILITIES",
    "STATUS_INVALID_CODE",
    "STATUS_INVALID_PARAMETER",
    "Heat",
    "boot_zeroed_page",
    "decode_heat_hint",
    "with_hyperv_leaves",
]

Heat = Literal["cold", "hot", "discard"]

QUERY_CAPABILITIES: Final = 0x8001
GET_BOOT_ZEROED: Final = 0x8002
MEMORY_HEAT_HINT: Final = 0x8003

CAPABILITY_BOOT_ZEROED: Final = 1 << 0
CAPABILITY_HEAT_HINT: Final = 1 << 1
CAPABILITY_COLD_DISCARD: Final = 1 << 8  # Linux asks for this bit; Microsoft's table calls it reserved

HEATS: Final[tuple[Heat, ...]] = ("cold", "hot", "discard")
"""Heat types by their number in the input page."""

MSR_GUEST_OS_ID: Final = 0x40000000
MSR_HYPERCALL: Final = 0x40000001

STATUS_INVALID_CODE: Final = 2
STATUS_INVALID_PARAMETER: Final = 5

MOST_BOOT_ZEROED_RANGES: Final = 255
MOST_UNITS_OF_A_RANGE: Final = 2048

_LARGE: Final = 1 << 11  # a range in large pages …
_GIB_PAGES: Final = 1 << 12  # … of 1 GiB rather than 2 MiB
_CPUID_ENTRY: Final = struct.Struct("<10I")  # function, index, flags, eax, ebx, ecx, edx, padding[3]
_ENABLE_EXTENDED_HYPERCALLS: Final = 1 << 20
_ACCESS_HYPERCALL_MSRS: Final = 1 << 5


def with_hyperv_leaves(cpuid: bytes | bytearray) -> bytearray:
    """Return struct kvm_cpuid2 with Hyper-V's leaves in place of KVM's own at 0x40000000."""
    leaves = [entry for entry in _CPUID_ENTRY.iter_unpack(cpuid[8:]) if entry[0] >> 8 != 0x400000]
    vendor = struct.unpack("<3I", b"Microsoft Hv")
    leaves += [
        (0x40000000, 0, 0, 0x40000005, *vendor, 0, 0, 0),
        (0x40000001, 0, 0, struct.unpack("<I", b"Hv#1")[0], *(0,) * 6),
        (0x40000002, *(0,) * 9),
        (0x40000003, 0, 0, _ACCESS_HYPERCALL_MSRS, _ENABLE_EXTENDED_HYPERCALLS, *(0,) * 5),
        (0x40000004, *(0,) * 9),
        (0x40000005, *(0,) * 9),
    ]
    return bytearray(
        struct.pack("<2I", len(leaves), 0) + b"".join(_CPUID_ENTRY.pack(*leaf) for leaf in leaves)
    )


def boot_zeroed_page(ranges: Iterable[tuple[int, int]]) -> bytes:
    """Return the output page of call 0x8002 for (first gfn, pages) ranges, the biggest 255 of them.

    >>> boot_zeroed_page([(512, 7)])[:24].hex()
    '010000000000000000020000000000000700000000000000'
    """
    biggest = sorted(ranges, key=lambda one: one[1], reverse=True)[:MOST_BOOT_ZEROED_RANGES]
    words = [len(biggest), *(word for one in biggest for word in one)]
    return struct.pack(f"<{len(words)}Q", *words).ljust(4096, b"\0")


def decode_heat_hint(page: bytes, ranges: int) -> tuple[Heat, list[tuple[int, int]]]:
    """Return (heat, [(gpa, bytes), …]) of an input page of call 0x8003 with so many ranges.

    Raises `ValueError` for a heat type or a count of ranges that the format does not have.

    >>> page = struct.pack("<3Q", 1, 0x200000 | 3, 0x400000 | 1 << 11 | 1)
    >>> decode_heat_hint(page, 2)
    ('hot', [(2097152, 16384), (4194304, 4194304)])
    """
    heat, *descriptors = struct.unpack_from(f"<{1 + ranges}Q", page)
    if heat >= len(HEATS):
        raise ValueError(f"no heat type {heat}")
    return HEATS[heat], [_decode_range(descriptor) for descriptor in descriptors]


def _decode_range(descriptor: int) -> tuple[int, int]:
    units = (descriptor & 0x7FF) + 1
    if not descriptor & _LARGE:
        return descriptor >> 12 << 12, units << 12
    shift = 30 if descriptor & _GIB_PAGES else 21
    return descriptor >> 21 << 21, units << shift
