// KSM merges pages of the VMM, or stops sharing them. ksmd does it, and its rmap_item says which page it is:
// the address in the VMM, whose offset in the structure comes from the kernel's BTF. Whose, the memory that it names (`rip`).

static __always_inline u64 address_of(u64 rmap_item)
{
    u64 address = 0;
    bpf_probe_read_kernel(&address, sizeof(address), (void *)(rmap_item + KSM_ADDRESS_OFFSET));
    return address & ~0xfffULL;  // the low bits are KSM's flags
}

static __always_inline void shared(u8 kind, u64 rmap_item, u64 mm, u64 pfn)
{
    u32 owner = process_of(mm);
    u64 hva = address_of(rmap_item);
    if (hva)
        EMIT_AS(vm_of_process(owner), -1, kind, bpf_ktime_get_ns(), VALID_HVA | VALID_ARG, .hva = hva, .arg = pfn,
                .pages = 1, .rip = owner);
}

ON(ksm, ksm_merge_one_page)
{
    if (!args->err)
        shared(KIND_KSM_MERGE, args->rmap_item, (u64)args->mm, args->pfn);
}

ON(ksm, ksm_merge_with_ksm_page)
{
    if (!args->err)
        shared(KIND_KSM_MERGE, args->rmap_item, (u64)args->mm, args->pfn);
}

ON(ksm, ksm_remove_rmap_item)
{
    shared(KIND_KSM_BREAK, args->rmap_item, (u64)args->mm, args->pfn);
}
