"""Which calls of a VMM are its balloon's and its free page reports', told by what each VMM does.

The rule (docs/probes.md says it in words, with its sources):

* Only calls on guest memory count: rows with a gfn. A call keeps its row; only its kind changes.
* Taking away: madvise(MADV_DONTNEED or MADV_REMOVE), or where the memory is hugetlb (which QEMU discards by
  fallocate alone) fallocate(PUNCH_HOLE). Of other memory the fallocate that comes with a madvise is left a
  fallocate: the madvise is the event.
* QEMU and Cloud Hypervisor inflate page by page: one page taken away is `balloon_inflate`, more at once is a
  `free_page_report`, and a huge page of hugetlb is a report only where reporting is on. Firecracker sorts and
  joins the pages of an inflation: there only whole, aligned blocks of 2 MiB are reports, and only if its
  configuration asked for reporting; else all is inflation.
* Giving back: madvise(MADV_WILLNEED) of one page is `balloon_deflate` (QEMU, Cloud Hypervisor; Firecracker
  makes no call).
* A VMM that by its command line has no balloon has neither; one with virtio-mem, which unplugs in blocks, has
  no reports that could be told apart: those stay madvise.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final

import numpy as np

from tracekit.probes.wire import VALID
from tracekit.trace.repeated import writable
from tracekit.trace.schema import KIND_CODE

__all__ = ["Signature", "classify", "signature_of"]

_MADVISE: Final = KIND_CODE["madvise"]
_FALLOCATE: Final = KIND_CODE["fallocate"]
_INFLATE: Final = KIND_CODE["balloon_inflate"]
_DEFLATE: Final = KIND_CODE["balloon_deflate"]
_REPORT: Final = KIND_CODE["free_page_report"]

_MADV_WILLNEED: Final = 3
_MADV_DONTNEED: Final = 4
_MADV_REMOVE: Final = 9
_PUNCH_HOLE: Final = 2
_BLOCK_PAGES: Final = np.uint64(512)  # 2 MiB: the guest's pageblock, the least that Linux reports


@dataclass(frozen=True)
class Signature:
    """How one VMM's balloon looks from the host; `reports` None = it can't be known from outside."""

    vmm: str
    balloon: bool = True
    reports: bool | None = None
    joins_pages: bool = False


def signature_of(argv: Sequence[str]) -> Signature:
    """Return the signature of a VMM by its command line.

    >>> signature_of(["/usr/bin/qemu-system-x86_64", "-device", "virtio-balloon-pci,free-page-reporting=on"])
    Signature(vmm='qemu', balloon=True, reports=True, joins_pages=False)
    """
    name = PurePath(argv[0]).name if argv else ""
    text = " ".join(argv)
    virtio_mem = "virtio-mem" in text
    if name.startswith(("qemu", "kvm")):
        balloon = "virtio-balloon" in text
        reports = bool(re.search(r"virtio-balloon[^ ]*free-page-reporting=(on|true|yes)", text))
        return Signature("qemu", balloon, reports and not virtio_mem)
    if name.startswith("cloud-hypervisor"):
        balloon = "--balloon" in argv
        reports = bool(re.search(r"free_page_reporting=(on|true)", text))
        return Signature("cloud-hypervisor", balloon, reports and not virtio_mem)
    if name.startswith("firecracker"):
        return Signature("firecracker", joins_pages=True)
    return Signature("unknown", reports=False if virtio_mem else None)


def classify(out: dict[str, np.ndarray], signatures: Sequence[Signature], hugetlb: np.ndarray) -> None:
    """Give a VMM's calls on guest memory the kind of what they do; see the module for the rule.

    `signatures` is by VM; `hugetlb` (bool[n]) says of each row whether its memory is hugetlb.
    """
    kind, arg = out["kind"], out["arg"]
    calls = (kind == _MADVISE) | ((kind == _FALLOCATE) & hugetlb)
    if not calls.any():
        return
    calls &= (out["valid"] & VALID["gfn"]) != 0
    advice = kind == _MADVISE
    taken = calls & np.where(advice, np.isin(arg, (_MADV_DONTNEED, _MADV_REMOVE)), (arg & _PUNCH_HOLE) != 0)
    given = calls & advice & (arg == _MADV_WILLNEED) & (out["pages"] == 1)
    pages = out["pages"].astype(np.uint64)
    blocks = (pages % _BLOCK_PAGES == 0) & (out["gfn"] % _BLOCK_PAGES == 0) & (pages > 0)
    for vm in np.unique(out["vm"][taken | given]).tolist():
        mine, signature = out["vm"] == vm, signatures[vm]
        if not signature.balloon:
            continue
        if signature.joins_pages:
            reported = mine & taken & blocks & bool(signature.reports)
            inflated = mine & taken & ~reported
        else:
            # A huge page is one page, of a balloon or of a report: what is not asked for it can't be.
            single = (out["pages"] == 1) | (hugetlb & (signature.reports is not True))
            inflated = mine & taken & single
            reported = mine & taken & ~single & (signature.reports is not False)
            writable(out, "kind")[mine & given] = _DEFLATE
        writable(out, "kind")[inflated] = _INFLATE
        writable(out, "kind")[reported] = _REPORT
