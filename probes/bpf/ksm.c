// KSM merges pages of the VMM, or stops sharing them. ksmd does it, and its rmap_item says whose page it is:
// the address in the VMM, whose offset in the structure comes from the kernel's BTF.

static __always_inline u64 address_of(u64 rmap_item)
{
    u64 address = 0;
    bpf_probe_read_kernel(&address, sizeof(address), (void *)(rmap_item + KSM_ADDRESS_OFFSET));
    return address & ~0xfffULL;  // the low bits are KSM's flags
}

static __always_inline void shared(u8 kind, u64 rmap_item, u64 pfn)
{
    u64 hva = address_of(rmap_item);
    if (hva)
        EMIT_AS(VM_UNKNOWN, -1, kind, bpf_ktime_get_ns(), VALID_HVA | VALID_ARG, .hva = hva, .arg = pfn, .pages = 1);
}

ON(ksm, ksm_merge_one_page)
{
    if (!args->err)
        shared(KIND_KSM_MERGE, args->rmap_item, args->pfn);
}

ON(ksm, ksm_merge_with_ksm_page)
{
    if (!args->err)
        shared(KIND_KSM_MERGE, args->rmap_item, args->pfn);
}

ON(ksm, ksm_remove_rmap_item)
{
    shared(KIND_KSM_BREAK, args->rmap_item, args->pfn);
}
