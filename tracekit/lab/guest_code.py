"""The small guest's machine code: a loop per phase, built at run time, each instruction with its text.

Every phase is the same loop: the next index of the vCPU's share, its address, perhaps a hint, an access, then
`out` when done. Nothing but page tables, code, the pages of the calls and the touched pages is ever accessed.
Register contract, set by the VMM before each phase:

    rbp  address of the phase            r14  address of the share's page 0
    rsi  touches done (starts at 0)      r9   bytes from one page of the share to the next
    rbx  order state: counter or index   r10  pages in the share
    r12  stride: start of this round     r11  random: 2^k - 1        r13  stride in pages
    r15  the vCPU's call pages: input at +0, output at +4 KiB, stack from +12 KiB down

rax, rcx, rdx, rdi and r8 are scratch; calls take, as Hyper-V's do, rcx = code and count, rdx = input page,
r8 = output page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from tracekit.lab import hyperv
from tracekit.lab.assembler import Assembler, imm8, imm32, imm64
from tracekit.lab.visit_order import Mixer, Order

__all__ = ["CALL_PORT", "DONE_PORT", "Access", "Hint", "Loop", "Transport", "build"]

Access = Literal["write", "read", "zero"]
Transport = Literal["port", "hyperv"]

DONE_PORT: Final = 0x10
"""The I/O port whose `out` tells the VMM that a phase is over."""
CALL_PORT: Final = 0x11
"""The I/O port that makes a call where there are no Hyper-V hypercalls; registers and pages are the same."""

CALL_INPUT: Final = 0x0000
CALL_OUTPUT: Final = 0x1000
CALL_STACK: Final = 0x3000


@dataclass(frozen=True)
class Hint:
    """A heat hint every `batch` pages, about the batch `lead` batches ahead (behind, if negative)."""

    heat: hyperv.Heat
    batch: int
    lead: int


@dataclass(frozen=True)
class Loop:
    """A phase: visit the share in an order; `skip_zeroed` leaves out pages that call 0x8002 reported."""

    order: Order
    access: Access
    hint: Hint | None = None
    skip_zeroed: bool = False
    think: int = 0


def build(
    loops: Mapping[str, Loop],
    *,
    mixer: Mixer,
    step_bytes: int,
    transport: Transport | None = None,
    hypercall_page: int = 0,
) -> tuple[bytes, dict[str, int], list[tuple[int, bytes, str]]]:
    """Return (code, offset of each phase, listing) of a guest with these loops.

    With a transport, a phase "ask" comes first: it sets Hyper-V's hypercall page up where the transport needs
    it, asks for the capabilities (0x8001), and leaves the answer to 0x8002 in the vCPU's output page.
    """
    code = Assembler()
    if transport:
        code.label("ask")
        if transport == "hyperv":
            _write_msr(code, hyperv.MSR_GUEST_OS_ID, 0x8100 << 48)  # open source, no particular system
            _write_msr(code, hyperv.MSR_HYPERCALL, hypercall_page | 1)
        for call in (hyperv.QUERY_CAPABILITIES, hyperv.GET_BOOT_ZEROED):
            code.emit("48 b9", f"mov rcx, {call:#x}", imm64(call))
            code.jump("e8", "call", "hypervisor")
        code.jump("e9", "jmp", "done")
    for name, loop in loops.items():
        _loop(code, name, loop, mixer, step_bytes)
    code.label("done")
    code.emit("e6", f"out {DONE_PORT:#x}, al", imm8(DONE_PORT))
    code.emit("ff e5", "jmp rbp")  # the VMM resumes us here with the next phase in rbp
    if transport:
        _call_hypervisor(code, transport, hypercall_page)
    machine_code, labels = code.finish()
    return machine_code, labels, code.listing


def _loop(code: Assembler, name: str, loop: Loop, mixer: Mixer, step_bytes: int) -> None:
    code.label(name)
    if loop.hint:
        _hint(code, name, loop.hint, step_bytes)
    _next_index(code, name, loop.order, mixer)
    code.emit("49 0f af c1", "imul rax, r9")  # index -> byte offset in the share
    code.emit("4c 01 f0", "add rax, r14")  # -> guest address (virtual = physical)
    if loop.skip_zeroed:
        _skip_if_zeroed(code, name)
    _access(code, loop.access, step_bytes)
    code.label(f"{name}.next")
    if loop.think:
        code.emit("b9", f"mov ecx, {loop.think:#x}", imm32(loop.think))
        code.label(f"{name}.think")
        # Multiplications that wait for each other: a bare loop runs at half its speed for thousands of turns
        # after each way out of the guest (seen on AMD: the branch predictor has forgotten it).
        code.emit("48 0f af d2", "imul rdx, rdx")
        code.emit("ff c9", "dec ecx")
        code.jump("0f 85", "jne", f"{name}.think")
    code.emit("48 ff c6", "inc rsi")
    code.emit("4c 39 d6", "cmp rsi, r10")
    code.jump("0f 85", "jne", name)
    code.jump("e9", "jmp", "done")


def _next_index(code: Assembler, phase: str, order: Order, mixer: Mixer) -> None:
    """Emit: rax = the next page index of the share."""
    if order == "seq":
        code.emit("48 89 f0", "mov rax, rsi")
    elif order == "stride":
        code.emit("48 89 d8", "mov rax, rbx")
        code.emit("4c 01 eb", "add rbx, r13")
        code.emit("4c 39 d3", "cmp rbx, r10")
        code.jump("0f 82", "jb", f"{phase}.stride")
        code.emit("49 ff c4", "inc r12")  # past the end: the next round starts one page later
        code.emit("4c 89 e3", "mov rbx, r12")
        code.label(f"{phase}.stride")
    else:
        code.label(f"{phase}.random")
        code.emit("48 89 d8", "mov rax, rbx")
        code.emit("48 ff c3", "inc rbx")
        code.emit("48 ba", f"mov rdx, {mixer.offset:#x}", imm64(mixer.offset))
        code.emit("48 01 d0", "add rax, rdx")
        code.emit("4c 21 d8", "and rax, r11")
        for multiplier in mixer.multipliers:
            _xor_shift(code, mixer.shift)
            code.emit("ba", f"mov edx, {multiplier:#x}", imm32(multiplier))
            code.emit("48 0f af c2", "imul rax, rdx")
            code.emit("4c 21 d8", "and rax, r11")
        _xor_shift(code, mixer.shift)
        code.emit("4c 39 d0", "cmp rax, r10")
        code.jump("0f 83", "jae", f"{phase}.random")  # outside the share: take the next


def _xor_shift(code: Assembler, shift: int) -> None:
    code.emit("48 89 c2", "mov rdx, rax")
    code.emit("48 c1 ea", f"shr rdx, {shift}", imm8(shift))
    code.emit("48 31 d0", "xor rax, rdx")


def _access(code: Assembler, access: Access, step_bytes: int) -> None:
    """Emit the access to the page at rax."""
    if access == "write":
        # The page's content is its address and the touch's number: the VMM can check both.
        code.emit("48 89 00", "mov [rax], rax")
        code.emit("48 89 70 08", "mov [rax+8], rsi")
    elif access == "read":
        code.emit("48 8b 10", "mov rdx, [rax]")
    else:
        code.emit("48 89 c7", "mov rdi, rax")
        code.emit("b9", f"mov ecx, {step_bytes // 8:#x}", imm32(step_bytes // 8))
        code.emit("31 c0", "xor eax, eax")
        code.emit("f3 48 ab", "rep stosq")


def _skip_if_zeroed(code: Assembler, phase: str) -> None:
    """Emit: go on to the next page if the one at rax lies in a range of the output page (call 0x8002)."""
    code.emit("48 89 c2", "mov rdx, rax")
    code.emit("48 c1 ea", "shr rdx, 12", imm8(12))  # -> gfn
    code.emit("49 8b 8f", f"mov rcx, [r15+{CALL_OUTPUT:#x}]", imm32(CALL_OUTPUT))  # how many ranges
    code.emit("49 8d bf", f"lea rdi, [r15+{CALL_OUTPUT + 8:#x}]", imm32(CALL_OUTPUT + 8))
    code.label(f"{phase}.range")
    code.emit("48 85 c9", "test rcx, rcx")
    code.jump("0f 84", "je", f"{phase}.unknown")
    code.emit("49 89 d0", "mov r8, rdx")
    code.emit("4c 2b 07", "sub r8, [rdi]")  # gfn - first gfn of the range; below it wraps to huge
    code.emit("4c 3b 47 08", "cmp r8, [rdi+8]")
    code.jump("0f 82", "jb", f"{phase}.next")
    code.emit("48 83 c7", "add rdi, 16", imm8(16))
    code.emit("48 ff c9", "dec rcx")
    code.jump("e9", "jmp", f"{phase}.range")
    code.label(f"{phase}.unknown")


def _hint(code: Assembler, phase: str, hint: Hint, step_bytes: int) -> None:
    """Emit: at the start of every batch, hint the batch `lead` batches away, if that lies in the share."""
    distance = hint.lead * hint.batch
    code.emit("48 f7 c6", f"test rsi, {hint.batch - 1:#x}", imm32(hint.batch - 1))
    code.jump("0f 85", "jne", f"{phase}.hinted")
    code.emit("48 8d 86", f"lea rax, [rsi{distance:+#x}]", imm32(distance))
    code.emit("4c 39 d0", "cmp rax, r10")  # unsigned: before the start is past the end
    code.jump("0f 83", "jae", f"{phase}.hinted")
    code.emit("4c 89 d2", "mov rdx, r10")
    code.emit("48 29 c2", "sub rdx, rax")  # pages left in the share …
    code.emit("b9", f"mov ecx, {hint.batch:#x}", imm32(hint.batch))
    code.emit("48 39 ca", "cmp rdx, rcx")
    code.emit("48 0f 47 d1", "cmova rdx, rcx")  # … or the batch, whichever is less
    code.emit("48 ff ca", "dec rdx")  # a range says how many *more* pages than one
    code.emit("49 0f af c1", "imul rax, r9")
    code.emit("4c 01 f0", "add rax, r14")
    code.emit("48 09 d0", "or rax, rdx")  # descriptor = address, and in its low bits the count
    if step_bytes != 4096:
        code.emit("48 0d", "or rax, 0x800", imm32(1 << 11))  # in 2 MiB pages
    heat = hyperv.HEATS.index(hint.heat)
    code.emit("49 c7 07", f"mov qword ptr [r15], {heat}", imm32(heat))
    code.emit("49 89 47 08", "mov [r15+8], rax")
    control = hyperv.MEMORY_HEAT_HINT | 1 << 32  # one repetition: one range
    code.emit("48 b9", f"mov rcx, {control:#x}", imm64(control))
    code.jump("e8", "call", "hypervisor")
    code.label(f"{phase}.hinted")


def _write_msr(code: Assembler, msr: int, value: int) -> None:
    code.emit("b9", f"mov ecx, {msr:#x}", imm32(msr))
    code.emit("b8", f"mov eax, {value & 0xFFFFFFFF:#x}", imm32(value & 0xFFFFFFFF))
    code.emit("ba", f"mov edx, {value >> 32:#x}", imm32(value >> 32))
    code.emit("0f 30", "wrmsr")


def _call_hypervisor(code: Assembler, transport: Transport, hypercall_page: int) -> None:
    """Emit the subroutine: a call with the control word in rcx, on the vCPU's own pages."""
    code.label("hypervisor")
    code.emit("49 8d 97", f"lea rdx, [r15+{CALL_INPUT:#x}]", imm32(CALL_INPUT))
    code.emit("4d 8d 87", f"lea r8, [r15+{CALL_OUTPUT:#x}]", imm32(CALL_OUTPUT))
    if transport == "hyperv":
        code.emit("48 b8", f"mov rax, {hypercall_page:#x}", imm64(hypercall_page))
        code.emit("ff d0", "call rax")
    else:
        code.emit("e6", f"out {CALL_PORT:#x}, al", imm8(CALL_PORT))
    code.emit("c3", "ret")
