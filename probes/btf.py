"""What the kernel's own type information (BTF) says of its structures: field offsets and enum values.

Read through libbpf, which comes with bcc; the kernel's headers, which may be of another version, are not
asked. Everything here answers None where the kernel has no BTF or no such type.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

__all__ = ["Function", "enum_value", "field_offset", "function", "prototype"]

_POINTER: Final = 2
_STRUCT: Final = 4
_UNION: Final = 5
_ENUM: Final = 6
_TYPEDEF: Final = 8
_FUNCTION: Final = 12
_PROTOTYPE: Final = 13
_BITFIELD_OFFSET: Final = 0xFFFFFF
_MODULES: Final = Path("/sys/kernel/btf")


class _Type(ctypes.Structure):
    _fields_ = [("name", ctypes.c_uint32), ("info", ctypes.c_uint32), ("size", ctypes.c_uint32)]


class _Member(ctypes.Structure):
    _fields_ = [("name", ctypes.c_uint32), ("type", ctypes.c_uint32), ("offset", ctypes.c_uint32)]


class _Parameter(ctypes.Structure):
    _fields_ = [("name", ctypes.c_uint32), ("type", ctypes.c_uint32)]


class _Enumerator(ctypes.Structure):
    _fields_ = [("name", ctypes.c_uint32), ("value", ctypes.c_int32)]


class Function(NamedTuple):
    """A function of the kernel: the types of its arguments, and of what it returns."""

    arguments: tuple[str, ...]
    returns: str


@cache
def field_offset(structure: str, field: str, module: str = "") -> int | None:
    """Return where a field lies in a structure, in bytes; fields of unnamed parts of it count as its own.

    The structure may be one of this module, if the kernel has it as such.
    """
    for name, member in _entries(structure, _STRUCT, _Member, module):
        if (found := _within(name, member, field, module)) is not None:
            return found
    return None


def _within(name: str, member: Any, field: str, module: str) -> int | None:
    at = int(member.offset & _BITFIELD_OFFSET) // 8
    if name == field:
        return at
    if name or _kind(member.type, module) not in (_STRUCT, _UNION):
        return None
    for inner_name, inner in _entries_of(member.type, _Member, module):
        if (found := _within(inner_name, inner, field, module)) is not None:
            return at + found
    return None


@cache
def enum_value(enum: str, name: str) -> int | None:
    """Return the value of an enumerator."""
    for entry, enumerator in _entries(enum, _ENUM, _Enumerator):
        if entry == name:
            return int(enumerator.value)
    return None


@cache
def prototype(typedef: str) -> tuple[str, ...] | None:
    """Return the types of the arguments of a typedef for a pointer to a function.

    >>> prototype("no_such_type") is None
    True
    """
    lib, btf = _kernel()
    if not btf:
        return None
    number = lib.btf__find_by_name_kind(btf, typedef.encode(), _TYPEDEF)
    for kind in (_TYPEDEF, _POINTER):
        if number < 0 or _kind(number) != kind:
            return None
        number = _referred(number)
    return _signature(number).arguments if _kind(number) == _PROTOTYPE else None


@cache
def function(name: str) -> Function | None:
    """Return the types of a function of the kernel itself (not of a module).

    >>> function("no_such_function") is None
    True
    """
    lib, btf = _kernel()
    number = lib.btf__find_by_name_kind(btf, name.encode(), _FUNCTION) if btf else -1
    return _signature(_referred(number)) if number > 0 else None


def _signature(number: int) -> Function:
    lib, btf = _kernel()
    address = lib.btf__type_by_id(btf, number)
    count = _Type.from_address(address).info & 0xFFFF
    parameters = (_Parameter * count).from_address(address + ctypes.sizeof(_Type))
    return Function(tuple(_type_name(one.type) for one in parameters), _type_name(_referred(number)))


def _referred(number: int) -> int:
    """Return the type that a pointer, a typedef or a function refers to; of a prototype, what it returns."""
    lib, btf = _kernel()
    return int(_Type.from_address(lib.btf__type_by_id(btf, number)).size)


def _kind(number: int, module: str = "") -> int:
    lib, btf = _types(module)
    return int(_Type.from_address(lib.btf__type_by_id(btf, number)).info >> 24 & 0x1F) if number else 0


def _type_name(number: int) -> str:
    """Return the name of a type; only pointers and structures have more than a name here."""
    lib, btf = _kernel()
    if not number:
        return "void"
    found = _Type.from_address(lib.btf__type_by_id(btf, number))
    if _kind(number) == _POINTER:
        return f"{_type_name(found.size)} *"
    name = str(lib.btf__name_by_offset(btf, found.name).decode())
    return f"struct {name}" if _kind(number) == _STRUCT else name


def _entries(
    type_name: str, kind: int, layout: type[ctypes.Structure], module: str = ""
) -> Iterator[tuple[str, Any]]:
    """Yield the members of a structure or an enum; a type is followed by `vlen` of them in memory."""
    lib, btf = _types(module)
    if not btf:
        return
    number = lib.btf__find_by_name_kind(btf, type_name.encode(), kind)
    if number >= 0:
        yield from _entries_of(number, layout, module)


def _entries_of(number: int, layout: type[ctypes.Structure], module: str = "") -> Iterator[tuple[str, Any]]:
    lib, btf = _types(module)
    address = lib.btf__type_by_id(btf, number)
    count = _Type.from_address(address).info & 0xFFFF
    for entry in (layout * count).from_address(address + ctypes.sizeof(_Type)):
        yield lib.btf__name_by_offset(btf, entry.name).decode(), entry


@cache
def _types(module: str) -> tuple[Any, int | None]:
    """Return the types of a module with the kernel's; the kernel's alone where it has no such module."""
    lib, btf = _kernel()
    if not module or not btf or not (_MODULES / module).exists():
        return lib, btf
    lib.btf__load_module_btf.restype = ctypes.c_void_p
    lib.btf__load_module_btf.argtypes = [ctypes.c_char_p, ctypes.c_void_p]
    return lib, lib.btf__load_module_btf(module.encode(), btf) or btf


@cache
def _kernel() -> tuple[Any, int | None]:
    try:
        lib = ctypes.CDLL("libbpf.so.1")
    except OSError:
        return None, None
    for function in (lib.btf__load_vmlinux_btf, lib.btf__type_by_id):
        function.restype = ctypes.c_void_p
    lib.btf__name_by_offset.restype = ctypes.c_char_p
    lib.btf__find_by_name_kind.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint32]
    lib.btf__type_by_id.argtypes = lib.btf__name_by_offset.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    lib.libbpf_set_print(None)
    btf = lib.btf__load_vmlinux_btf()
    return lib, btf or None
