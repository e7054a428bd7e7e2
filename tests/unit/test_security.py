"""What the source must not do, held by looking at all of it: read guest memory, or start a shell."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Every read of memory that is not the program's own. Only hypercall.c reads a guest's: the page of a heat
# hint. The others read arguments of system calls (reclaim, kvm_ioctl) and the kernel's own structures (ksm,
# and kernel_reads.h for all others).
READS = {"hypercall.c": 2, "reclaim.c": 1, "kvm_ioctl.c": 1, "ksm.c": 1, "kernel_reads.h": 1}


def test_guest_memory_is_read_in_one_place_only() -> None:
    found = {}
    for path in (ROOT / "probes" / "bpf").glob("*.[ch]"):
        if reads := re.findall(r"bpf_probe_read\w*\(|bpf_copy_from_user\w*\(", path.read_text()):
            found[path.name] = len(reads)
    assert found == READS
    hypercall = (ROOT / "probes" / "bpf" / "hypercall.c").read_text()
    # Eight bytes at a time, of the page that the call names and at most MAX_HINTS ranges of it.
    assert re.findall(r"bpf_probe_read_user\(&(\w+), sizeof\((\w+)\)", hypercall) == [
        ("heat", "heat"),
        ("range",) * 2,
    ]
    assert "#define MAX_HINTS 256" in hypercall


def test_no_program_is_started_through_a_shell() -> None:
    bad = re.compile(r"shell=True|os\.system\(|os\.popen\(|subprocess\.getoutput")
    files = [
        file for room in ("tracekit", "probes", "replay", "datasets") for file in (ROOT / room).rglob("*.py")
    ]
    assert len(files) > 100
    assert [str(file) for file in files if bad.search(file.read_text())] == []
