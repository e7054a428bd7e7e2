"""The generated C: arguments where each kernel's `format` file puts them, for old and new layouts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tracekit.probes import source
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


def test_a_probe_that_stands_in_is_needed_where_the_better_tracepoint_is_missing() -> None:
    def old(category: str, event: str) -> Tracepoint | None:
        return None if event == "count_memcg_events" else everything(category, event)

    on_new, on_old = ([one.name for one in source.needed(HOST_PROBES, has)] for has in (everything, old))
    assert "written_out" not in on_new
    # `memcg` stays, to be refused by name.
    assert on_old == [one.name for one in HOST_PROBES] == [*on_new, "written_out"]


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
    assert files == {probe.name for probe in ALL}
    for probe in ALL:
        assert set(probe.kinds) <= set(KINDS)
        hooked = {f"{c}:{e}" for c, e in source.tracepoints_of(probe)}
        assert set(probe.optional) <= hooked


def test_a_probe_without_its_tracepoints_is_named_with_what_is_missing() -> None:
    (shadow,) = [probe for probe in HOST_PROBES if probe.name == "fault_shadow"]
    assert "kvmmmu:kvm_mmu_spte_requested" in source.missing_tracepoints(shadow, nothing)
    (tdp,) = [probe for probe in HOST_PROBES if probe.name == "fault_tdp"]
    assert source.missing_tracepoints(tdp, kvm_only) == ("kvmmmu:kvm_mmu_spte_requested",)
    # A probe of which every tracepoint is optional still needs one of them.
    (notifier,) = [probe for probe in HOST_PROBES if probe.name == "notifier"]
    assert source.missing_tracepoints(notifier, nothing) == notifier.optional


def nothing(_category: str, _event: str) -> None:
    """A kernel without any tracepoint."""


def kvm_only(category: str, event: str) -> Tracepoint | None:
    return everything(category, event) if category == "kvm" else None
