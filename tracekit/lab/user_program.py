"""A program for a Linux guest's user mode that touches what it is told to: a static ELF of about 200 bytes.

A guest of busybox has no program whose memory accesses one could count; this one has no others.
"""

from __future__ import annotations

import struct
from typing import Final

from tracekit.errors import UsageError
from tracekit.lab.assembler import Assembler, imm32, imm64

__all__ = ["toucher"]

_PAGE_BYTES: Final = 4096
_AT: Final = 0x400000
_ELF_HEADER: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM_HEADER: Final = struct.Struct("<IIQQQQQQ")
_WRITE, _MMAP, _EXIT = 1, 9, 60


def toucher(pages: int, *, passes: int = 1, think: int = 0, tell: bool = False) -> bytes:
    """Return a program that maps `pages` 4 KiB pages and writes each of them once a pass, in order.

    After each write it computes `think` loop turns. With one page it is a program that only computes. `tell`:
    a byte goes to its standard output after each pass.
    Raises `UsageError` where a number is out of range.
    """
    if pages < 1 or passes < 1 or not 0 <= think < 1 << 31:
        raise UsageError("a toucher needs a page, a pass, and less than 2^31 turns of thinking")
    code = Assembler()
    code.emit("b8", "mov eax, mmap", imm32(_MMAP))
    code.emit("31 ff", "xor edi, edi")
    code.emit("48 be", "mov rsi, size", imm64(pages * _PAGE_BYTES))
    code.emit("ba", "mov edx, PROT_READ | PROT_WRITE", imm32(3))
    code.emit("41 ba", "mov r10d, MAP_PRIVATE | MAP_ANONYMOUS", imm32(0x22))
    code.emit("49 c7 c0", "mov r8, -1", imm32(-1))
    code.emit("45 31 c9", "xor r9d, r9d")
    code.emit("0f 05", "syscall")
    code.emit("49 89 c4", "mov r12, rax")
    code.emit("49 bd", "mov r13, passes", imm64(passes))
    code.label("pass")
    code.emit("49 be", "mov r14, pages", imm64(pages))
    code.emit("4d 89 e7", "mov r15, r12")
    code.label("page")
    code.emit("4d 89 2f", "mov [r15], r13")  # without memory (mmap failed) this ends in SIGSEGV
    if think:
        code.emit("b9", "mov ecx, think", imm32(think))
        code.label("think")
        code.emit("ff c9", "dec ecx")
        code.jump("0f 85", "jne", "think")
    code.emit("49 81 c7", "add r15, 4096", imm32(_PAGE_BYTES))
    code.emit("49 ff ce", "dec r14")
    code.jump("0f 85", "jne", "page")
    if tell:
        code.emit("b8", "mov eax, write", imm32(_WRITE))
        code.emit("bf", "mov edi, stdout", imm32(1))
        code.emit("4c 89 e6", "mov rsi, r12")
        code.emit("ba", "mov edx, 1", imm32(1))
        code.emit("0f 05", "syscall")
    code.emit("49 ff cd", "dec r13")
    code.jump("0f 85", "jne", "pass")
    code.emit("b8", "mov eax, exit", imm32(_EXIT))
    code.emit("31 ff", "xor edi, edi")
    code.emit("0f 05", "syscall")
    text, _ = code.finish()
    headers = _ELF_HEADER.size + _PROGRAM_HEADER.size
    magic = b"\x7fELF\x02\x01\x01"  # 64 bits, little-endian, version 1
    executable, x86_64, loadable, read_execute = 2, 62, 1, 5
    size = headers + len(text)
    return (
        _ELF_HEADER.pack(magic, executable, x86_64, 1, _AT + headers, 64, 0, 0, 64, 56, 1, 0, 0, 0)
        + _PROGRAM_HEADER.pack(loadable, read_execute, 0, _AT, _AT, size, size, _PAGE_BYTES)
        + text
    )
