// What the kernel counts for memory cgroups, as it counts it: swap, and faults that were given a huge page.
//
// In the faulting thread a swap-in knows its address from the fault it serves; `pages` is what was read, with
// read-ahead. A swap-out happens in whoever reclaims: `arg` is the cgroup it is charged to, of which user
// space knows the VM, and its address is that of the same thread's last unmapping, if that is of as many pages,
// not long ago, and no other swap-out's. A huge page is noted for the host_fault record that ends the fault.

// The id of the cgroup: the argument, or by way of the structures of the raw one. Only read for a swap.
#ifdef RAW_memcg__count_memcg_events
#define CGROUP_ID(args) \
    kernel_u64(kernel_u64(kernel_u64((args)->memcg + MEMCG_CGROUP_OFFSET) + CGROUP_NODE_OFFSET) + NODE_ID_OFFSET)
#else
#define CGROUP_ID(args) (args)->id
#endif

static __always_inline void swapped_out(u64 now, u64 cgroup, u32 pages)
{
    struct unmapping *last = unmapping_of(now, pages);
    u8 set = VALID_ARG;
    u64 hva = 0;
    if (last) {
        set |= VALID_HVA;
        hva = last->hva;
        last->pages = 0;
    }
    EMIT_AS(VM_UNKNOWN, -1, KIND_SWAP_OUT, now, set, .hva = hva, .arg = cgroup, .pages = pages);
}

ON(memcg, count_memcg_events)
{
    u32 item = args->item;
    if (item != ITEM_PSWPIN && item != ITEM_PSWPOUT && item != ITEM_THP_FAULT_ALLOC)
        return;
    u64 now = bpf_ktime_get_ns();
    if (item == ITEM_PSWPOUT) {
        swapped_out(now, CGROUP_ID(args), args->val);
        return;
    }
    struct thread *t = current_thread();
    if (item == ITEM_THP_FAULT_ALLOC) {
        if (t)
            t->fault_level = 2;
        return;
    }
    if (!t)
        EMIT_AS(VM_UNKNOWN, -1, KIND_SWAP_IN, now, VALID_ARG, .arg = CGROUP_ID(args), .pages = args->val);
    else if (t->fault_start)
        EMIT(t, KIND_SWAP_IN, now, VALID_HVA, .hva = t->fault_address, .pages = args->val);
    else if (t->mmu_start && MMU_ADDRESS_IS_GPA)
        EMIT(t, KIND_SWAP_IN, now, VALID_GFN, .gfn = t->mmu_gva >> 12, .pages = args->val);
    else if (t->mmu_start)
        EMIT(t, KIND_SWAP_IN, now, VALID_GVA, .gva = t->mmu_gva, .pages = args->val);
    else
        EMIT(t, KIND_SWAP_IN, now, 0, .pages = args->val);
}
