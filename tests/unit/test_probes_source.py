"""The generated C: arguments where each kernel's `format` file puts them, for old and new layouts."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from tracekit.probes import btf, functions, source
from tracekit.probes.catalogue import GUEST_PROBES, HOST_PROBES
from tracekit.probes.raw import raw_tracepoint
from tracekit.probes.tracefs import Field, Tracepoint, parse_format
from tracekit.probes.wire import LOST
from tracekit.trace.schema import KIND_CODE, KINDS

# The arguments of kvm_page_fault up to 6.0 and from 6.1 on (commits faa03b39722a, bff0adc40c00).
OLD_PAGE_FAULT = """name: kvm_page_fault
ID: 1234
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;
\tfield:unsigned char common_preempt_count;\toffset:3;\tsize:1;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

\tfield:unsigned long fault_address;\toffset:8;\tsize:8;\tsigned:0;
\tfield:unsigned int error_code;\toffset:16;\tsize:4;\tsigned:0;

print fmt: "address %lx error_code %x", REC->fault_address, REC->error_code
"""
NEW_PAGE_FAULT = """name: kvm_page_fault
ID: 60
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

\tfield:unsigned int vcpu_id;\toffset:8;\tsize:4;\tsigned:0;
\tfield:unsigned long guest_rip;\toffset:16;\tsize:8;\tsigned:0;
\tfield:u64 fault_address;\toffset:24;\tsize:8;\tsigned:0;
\tfield:u64 error_code;\toffset:32;\tsize:8;\tsigned:0;

print fmt: "vcpu %u rip 0x%lx address 0x%016llx error_code 0x%llx", REC->vcpu_id, REC->guest_rip
"""


ALL = (*HOST_PROBES, *GUEST_PROBES)


def everything(category: str, event: str) -> Tracepoint:
    """A kernel that has every tracepoint, with every field that any probe reads."""
    text = "".join((source.BPF_FOLDER / f"{probe.name}.c").read_text() for probe in ALL)
    names = sorted(set(re.findall(r"args->(\w+)", text)))
    return Tracepoint(category, event, tuple(Field(n, 8 + 8 * i, 8, False) for i, n in enumerate(names)))


SWAPPING = ("memcg", "memcg_function", "swap_io", "written_out")
CONSTANTS = {name for probe in ALL for name in probe.constants}


@pytest.mark.parametrize(
    ("lacks", "unknown", "needed"),
    [
        ((), (), ["memcg"]),
        (("memcg",), (), ["memcg_function", "swap_io"]),
        # These are left to be refused by name: nothing tells what they would.
        (("memcg", "function"), (), ["memcg_function", "swap_io", "written_out"]),
        ((), ("ITEM_PSWPIN",), ["memcg_function", "swap_io"]),
        ((), ("ITEM_PSWPIN", "PAGE_MEMCG_OFFSET"), ["memcg_function", "swap_io", "written_out"]),
    ],
)
def test_a_probe_stands_in_only_for_one_that_cannot_run(
    lacks: tuple[str, ...], unknown: tuple[str, ...], needed: list[str]
) -> None:
    def lookup(category: str, event: str) -> Tracepoint | None:
        return None if category in lacks else everything(category, event)

    found = [probe.name for probe in source.needed(HOST_PROBES, lookup, CONSTANTS - {*unknown})]
    assert [name for name in found if name in SWAPPING] == needed
    assert [name for name in found if name not in SWAPPING] == [
        probe.name for probe in HOST_PROBES if probe.name not in SWAPPING
    ]


# Signatures as the kernels' BTF has them: Debian's 6.1.192 and 6.12.117, and 6.18.
MEMCG = btf.Function(("struct mem_cgroup *", "vm_event_item", "long unsigned int"), "void")
DEVICE = ("struct block_device *", "sector_t", "struct page *")
OF_MEMORY = btf.Function(("struct mm_struct *", "long unsigned int", "long unsigned int"), "int")
NOTIFIERS = {  # of all three
    "__mmu_notifier_invalidate_range_start": btf.Function(("struct mmu_notifier_range *",), "int"),
    "__mmu_notifier_clear_flush_young": OF_MEMORY,
    "__mmu_notifier_clear_young": OF_MEMORY,
}
SIGNATURES = {
    "6.1": {
        "__count_memcg_events": MEMCG,
        "swap_readpage": btf.Function(("struct page *", "bool", "struct swap_iocb * *"), "int"),
        "__swap_writepage": btf.Function(("struct page *", "struct writeback_control *"), "int"),
        "bdev_read_page": btf.Function(DEVICE, "int"),
        "bdev_write_page": btf.Function((*DEVICE, "struct writeback_control *"), "int"),
    },
    "6.12": {
        "__count_memcg_events": MEMCG,
        "swap_read_folio": btf.Function(("struct folio *", "struct swap_iocb * *"), "void"),
        "__swap_writepage": btf.Function(("struct folio *", "struct writeback_control *"), "void"),
    },
    "6.18": {
        "count_memcg_events": MEMCG,
        "swap_read_folio": btf.Function(("struct folio *", "struct swap_iocb * *"), "void"),
        "__swap_writepage": btf.Function(("struct folio *", "struct swap_iocb * *"), "void"),
    },
}


def hooks(
    monkeypatch: pytest.MonkeyPatch, signatures: dict[str, btf.Function], hookable: Iterable[str]
) -> dict[str, Tracepoint]:
    """Every function that the probes hook on a kernel with these functions."""
    monkeypatch.setattr(btf, "function", signatures.get)
    monkeypatch.setattr(functions, "_hookable", lambda: frozenset(hookable))
    events = {
        event for probe in ALL for category, event in source.tracepoints_of(probe) if category == "function"
    }
    found = {event: functions.plain("function", event) for event in events}
    return {event: point for event, point in found.items() if point is not None}


@pytest.mark.parametrize(
    ("kernel", "read", "devices"), [("6.1", "swap_readpage", 2), ("6.12", "swap_read_folio", 0)]
)
def test_functions_of_both_ages_are_hooked_with_their_arguments(
    monkeypatch: pytest.MonkeyPatch, kernel: str, read: str, devices: int
) -> None:
    found = hooks(monkeypatch, SIGNATURES[kernel], SIGNATURES[kernel])
    places = {(point.function, point.at_return) for point in found.values()}
    assert {(name, end) for name in (read, "__swap_writepage") for end in (False, True)} <= places
    assert [(field.name, field.offset) for field in found["count_memcg_events"].fields] == [
        ("memcg", 0),
        ("item", 8),
        ("val", 16),
    ]
    assert len([event for event in found if event.startswith("page_")]) == devices
    if devices:
        # What a function returns lies behind all its arguments, known ones or not.
        assert found["page_read_returns"].fields[-1] == Field("ret", 24, 8, signed=False)
        assert found["page_write_returns"].fields[-1] == Field("ret", 32, 8, signed=False)

    def lookup(category: str, event: str) -> Tracepoint | None:
        return found.get(event) if category == "function" else everything(category, event)

    (probe,) = [probe for probe in HOST_PROBES if probe.name == "swap_io"]
    built = source.build([probe], lookup, ring_pages=16, defines={})
    programs = {program.hook for program in built.programs if program.hook}
    assert {f"kfunc__{read}", f"kretfunc__{read}", "kfunc____swap_writepage"} <= programs
    assert len(programs) == 4 + devices
    for program in programs:
        assert built.text.count(f"int {program}(struct function__") == 1
    assert source.functions_of(probe, lookup)[:2] == [read, "__swap_writepage"]


@pytest.mark.parametrize("event", ["count_memcg_events", "swap_read", "swap_write", "page_read_returns"])
def test_a_function_is_hooked_only_where_it_is_the_expected_one_and_can_be(
    monkeypatch: pytest.MonkeyPatch, event: str
) -> None:
    known = SIGNATURES["6.1"]
    assert event in hooks(monkeypatch, known, known)
    assert event not in hooks(monkeypatch, known, ())
    other = {name: btf.Function(("int", *one.arguments), one.returns) for name, one in known.items()}
    assert event not in hooks(monkeypatch, other, other)


def test_whose_memory_it_is_is_told_by_functions_where_they_can_be_hooked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = hooks(monkeypatch, NOTIFIERS, NOTIFIERS)
    (notifier,) = [probe for probe in HOST_PROBES if probe.name == "notifier"]
    for those, count in ((found, 3), ({"ages": found["ages"]}, 1), ({}, 0)):

        def lookup(category: str, event: str, those: dict[str, Tracepoint] = those) -> Tracepoint | None:
            return those.get(event) if category == "function" else everything(category, event)

        built = source.build([notifier], lookup, ring_pages=16, defines={})
        hooked = {program.hook for program in built.programs if program.hook}
        assert hooked == {f"kfunc__{point.function}" for point in those.values()}
        assert len(hooked) == count
        assert source.missing(notifier, lookup) == ()
    (point,) = (one for one in found.values() if one.event == "unmaps")
    assert [field.name for field in point.fields] == ["range"]


def test_a_tracepoint_serves_where_there_is_one_and_no_function_is_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "count_memcg_events" not in hooks(monkeypatch, SIGNATURES["6.18"], SIGNATURES["6.18"])


def test_formats_of_both_ages_give_their_own_fields_and_offsets() -> None:
    old, new = parse_format("kvm", OLD_PAGE_FAULT), parse_format("kvm", NEW_PAGE_FAULT)
    assert [(f.name, f.offset, f.size) for f in old.fields] == [
        ("fault_address", 8, 8),
        ("error_code", 16, 4),
    ]
    assert [(f.name, f.offset) for f in new.fields] == [
        ("vcpu_id", 8),
        ("guest_rip", 16),
        ("fault_address", 24),
        ("error_code", 32),
    ]


def test_arrays_pointers_and_signs_are_understood() -> None:
    point = parse_format(
        "x",
        "name: x\n"
        "\tfield:__data_loc char[] parent_comm;\toffset:8;\tsize:4;\tsigned:0;\n"
        "\tfield:char comm[16];\toffset:12;\tsize:16;\tsigned:0;\n"
        "\tfield:const struct iovec * vec;\toffset:32;\tsize:8;\tsigned:0;\n"
        "\tfield:signed char u;\toffset:40;\tsize:1;\tsigned:1;\n",
    )
    assert [field.name for field in point.fields] == ["parent_comm", "comm", "vec", "u"]
    assert point.fields[3].signed


@pytest.mark.parametrize(("text", "has_vcpu"), [(OLD_PAGE_FAULT, False), (NEW_PAGE_FAULT, True)])
def test_a_field_that_a_kernel_lacks_is_left_out_of_its_program(text: str, has_vcpu: bool) -> None:
    point = parse_format("kvm", text)

    def lookup(category: str, event: str) -> Tracepoint:
        return point if event == "kvm_page_fault" else everything(category, event)

    (tdp,) = [probe for probe in HOST_PROBES if probe.name == "fault_tdp"]
    built = source.build([tdp], lookup, ring_pages=16, defines={})
    assert ("#define HAS_kvm__kvm_page_fault__vcpu_id 1" in built.text) is has_vcpu
    assert "_Static_assert(__builtin_offsetof(struct kvm__kvm_page_fault, error_code) == " in built.text


def test_a_raw_tracepoint_is_told_to_its_program_and_to_the_loader() -> None:
    fields = tuple(Field(name, 8 * i, 8, False) for i, name in enumerate(("address", "regs", "error_code")))

    def lookup(category: str, event: str) -> Tracepoint:
        raw = event == "page_fault_user"
        return Tracepoint(category, event, fields, raw=True) if raw else everything(category, event)

    (probe,) = [probe for probe in HOST_PROBES if probe.name == "host_fault"]
    built = source.build([probe], lookup, ring_pages=16, defines={})
    assert {program.tracepoint: program.raw for program in built.programs} == {
        "exceptions:page_fault_user": True,
        "exceptions:page_fault_kernel": False,
    }
    assert "#define RAW_exceptions__page_fault_user 1\n" in built.text
    assert "#define RAW_exceptions__page_fault_kernel" not in built.text


def test_a_tracepoint_is_raw_only_with_exactly_the_expected_arguments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known: dict[str, tuple[str, ...] | None] = {}
    monkeypatch.setattr("tracekit.probes.btf.prototype", known.get)
    monkeypatch.setattr("tracekit.probes.btf.field_offset", lambda *_: 32)
    assert raw_tracepoint("kvmmmu", "kvm_mmu_set_spte") is None
    known["btf_trace_kvm_mmu_set_spte"] = ("void *", "u64 *", "gfn_t", "int")  # as up to 5.0
    assert raw_tracepoint("kvmmmu", "kvm_mmu_set_spte") is None
    known["btf_trace_kvm_mmu_set_spte"] = ("void *", "int", "gfn_t", "u64 *")
    point = raw_tracepoint("kvmmmu", "kvm_mmu_set_spte")
    assert point is not None
    assert [(field.name, field.offset) for field in point.fields] == [("level", 0), ("gfn", 8), ("sptep", 16)]
    known["btf_trace_kvm_mmu_spte_requested"] = ("void *", "struct kvm_page_fault *")
    assert raw_tracepoint("kvmmmu", "kvm_mmu_spte_requested") is not None
    monkeypatch.setattr("tracekit.probes.btf.field_offset", lambda *_: None)
    assert raw_tracepoint("kvmmmu", "kvm_mmu_spte_requested") is None
    assert raw_tracepoint("sched", "sched_process_exec") is None


def test_every_hook_of_a_file_becomes_one_program_with_its_own_function() -> None:
    built = source.build(ALL, everything, ring_pages=16, defines={})
    functions = [program.function for program in built.programs]
    assert len(set(functions)) == len(functions)
    for probe in ALL:
        mine = {program.tracepoint for program in built.programs if program.probe == probe.name}
        assert mine == {f"{c}:{e}" for c, e in source.tracepoints_of(probe)}


def test_kinds_and_reasons_have_one_number_on_both_sides() -> None:
    text = source.build([], everything, ring_pages=16, defines={}).text
    for kind in KINDS:
        assert f"#define KIND_{kind.upper()} {KIND_CODE[kind]}\n" in text
    for number, reason in enumerate(LOST):
        name, _, kind = reason.partition(": ")
        base = number - KIND_CODE[kind] if kind else number
        assert f"#define LOST_{name.upper()} {base}\n" in text


def test_every_probe_file_is_in_the_catalogue_and_its_kinds_exist() -> None:
    files = {path.stem for path in Path(source.BPF_FOLDER).glob("*.c")}
    # One is a program of its own, run once and attached to nothing (memslot_walk.py).
    assert files == {probe.name for probe in ALL} | {"memslot_walk"}
    for probe in ALL:
        assert set(probe.kinds) <= set(KINDS)
        hooked = {f"{c}:{e}" for c, e in source.tracepoints_of(probe)}
        assert set(probe.optional) <= hooked
        assert set(probe.spare) <= hooked - set(probe.optional)


def test_a_probe_without_its_tracepoints_is_named_with_what_is_missing() -> None:
    (shadow,) = [probe for probe in HOST_PROBES if probe.name == "fault_shadow"]
    (points,) = source.missing(shadow, nothing)
    assert points.startswith("tracepoint kvmmmu:kvm_mmu_pagetable_walk, kvmmmu:kvm_mmu_spte_requested, ")
    (tdp,) = [probe for probe in HOST_PROBES if probe.name == "fault_tdp"]
    assert source.missing(tdp, kvm_only) == ("tracepoint kvmmmu:kvm_mmu_spte_requested",)
    # A probe of which every tracepoint is optional still needs one of them.
    (notifier,) = [probe for probe in HOST_PROBES if probe.name == "notifier"]
    assert source.missing(notifier, nothing) == (f"tracepoint {', '.join(notifier.optional)}",)
    (swap_io,) = [probe for probe in HOST_PROBES if probe.name == "swap_io"]
    assert "function swap_readpage or swap_read_folio that can be hooked" in source.missing(swap_io, nothing)


def nothing(_category: str, _event: str) -> None:
    """A kernel without any tracepoint."""


def kvm_only(category: str, event: str) -> Tracepoint | None:
    return everything(category, event) if category == "kvm" else None
