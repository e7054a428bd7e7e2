"""Tracepoints whose programs get the kernel's own arguments, where this kernel's types say what those are.

An ordinary tracepoint program costs the traced task, beside itself, the record that the kernel first makes
of the arguments, for perf. A raw one gets the arguments as they are passed. They are in no `format` file, but
BTF tells their types: only where these are exactly the expected ones is a tracepoint taken raw. Only events
that come as often as page faults, or must not be missed, are worth it.

And an ordinary program is skipped wherever another BPF program, or a bpf() call that was preempted, holds its
CPU; a raw one only where it would interrupt itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tracekit.probes import btf
from tracekit.probes.page_structures import page_structures
from tracekit.probes.tracefs import Field, Tracepoint

__all__ = ["OFFSETS", "raw_tracepoint"]

OFFSETS: Final[dict[str, tuple[str, str]]] = {
    "FAULT_GFN_OFFSET": ("kvm_page_fault", "gfn"),
    "FAULT_LEVEL_OFFSET": ("kvm_page_fault", "goal_level"),
    "MEMCG_CGROUP_OFFSET": ("cgroup_subsys_state", "cgroup"),
    "CGROUP_NODE_OFFSET": ("cgroup", "kn"),
    "NODE_ID_OFFSET": ("kernfs_node", "id"),
    "PAGE_MEMCG_OFFSET": ("page", "memcg_data"),
    "BIO_OPERATION_OFFSET": ("bio", "bi_opf"),
    "BIO_ITERATOR_OFFSET": ("bio", "bi_iter"),
    "ITERATOR_BYTES_OFFSET": ("bvec_iter", "bi_size"),
    "TASK_FILES_OFFSET": ("task_struct", "files"),
    "FILES_TABLE_OFFSET": ("files_struct", "fdt"),
    "TABLE_FILES_OFFSET": ("fdtable", "fd"),
    "TABLE_SIZE_OFFSET": ("fdtable", "max_fds"),
    "FILE_PRIVATE_OFFSET": ("file", "private_data"),
    "FILE_INODE_OFFSET": ("file", "f_inode"),
    "INODE_PRIVATE_OFFSET": ("inode", "i_private"),
    "INODE_NUMBER_OFFSET": ("inode", "i_ino"),
    "INODE_SUPERBLOCK_OFFSET": ("inode", "i_sb"),
    "SUPERBLOCK_DEVICE_OFFSET": ("super_block", "s_dev"),
    "SUPERBLOCK_BLOCK_OFFSET": ("super_block", "s_blocksize"),
    "PID_NUMBERS_OFFSET": ("pid", "numbers"),
    "NUMBER_OFFSET": ("upid", "nr"),
    "TASK_MM_OFFSET": ("task_struct", "mm"),
    "TASK_TGID_OFFSET": ("task_struct", "tgid"),
    "TASK_FLAGS_OFFSET": ("task_struct", "flags"),
    "TASK_RECLAIM_OFFSET": ("task_struct", "reclaim_state"),
    "MM_OWNER_OFFSET": ("mm_struct", "owner"),
    "MM_NOTIFIERS_OFFSET": ("mm_struct", "notifier_subscriptions"),
    "RANGE_MM_OFFSET": ("mmu_notifier_range", "mm"),
    "RANGE_START_OFFSET": ("mmu_notifier_range", "start"),
}
"""What programs look up behind an argument or the current task: the constant's name -> (structure, field)."""


@dataclass(frozen=True)
class _Raw:
    types: tuple[str, ...]
    fields: tuple[str, ...]
    offsets: tuple[str, ...] = ()
    pages: bool = False  # an argument is a struct page *: its page number must be computable


_FAULT: Final = _Raw(
    ("long unsigned int", "struct pt_regs *", "long unsigned int"), ("address", "regs", "error_code")
)
_RAW: Final[dict[tuple[str, str], _Raw]] = {
    ("exceptions", "page_fault_user"): _FAULT,
    ("exceptions", "page_fault_kernel"): _FAULT,
    ("memcg", "count_memcg_events"): _Raw(
        ("struct mem_cgroup *", "int", "long unsigned int"),
        ("memcg", "item", "val"),
        ("MEMCG_CGROUP_OFFSET", "CGROUP_NODE_OFFSET", "NODE_ID_OFFSET"),
    ),
    ("block", "block_bio_queue"): _Raw(
        ("struct bio *",), ("bio",), ("BIO_OPERATION_OFFSET", "BIO_ITERATOR_OFFSET", "ITERATOR_BYTES_OFFSET")
    ),
    ("kmem", "mm_page_alloc"): _Raw(
        ("struct page *", "unsigned int", "gfp_t", "int"),
        ("page", "order", "gfp_flags", "migratetype"),
        pages=True,
    ),
    ("kmem", "mm_page_free"): _Raw(("struct page *", "unsigned int"), ("page", "order"), pages=True),
    ("kvmmmu", "kvm_mmu_pagetable_walk"): _Raw(("u64", "u32"), ("addr", "pferr")),
    ("kvmmmu", "kvm_mmu_spte_requested"): _Raw(
        ("struct kvm_page_fault *",), ("fault",), ("FAULT_GFN_OFFSET", "FAULT_LEVEL_OFFSET")
    ),
    ("kvmmmu", "kvm_mmu_set_spte"): _Raw(("int", "gfn_t", "u64 *"), ("level", "gfn", "sptep")),
    ("kvm", "kvm_userspace_exit"): _Raw(("__u32", "int"), ("reason", "errno")),
}


def raw_tracepoint(category: str, event: str) -> Tracepoint | None:
    """Return a tracepoint with its raw arguments, 8 bytes each; None where it is taken the ordinary way."""
    raw = _RAW.get((category, event))
    if raw is None or btf.prototype(f"btf_trace_{event}") != ("void *", *raw.types):
        return None
    if any(btf.field_offset(*OFFSETS[name]) is None for name in raw.offsets):
        return None
    if raw.pages and page_structures() is None:
        return None
    fields = tuple(Field(name, 8 * at, 8, signed=False) for at, name in enumerate(raw.fields))
    return Tracepoint(category, event, fields, raw=True)
