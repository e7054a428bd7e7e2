// What the kernel counts for memory cgroups, as it counts it: swap, and faults that were given a huge page.
//
// In the faulting thread a swap-in knows its address from the fault it serves; `pages` is what was read, with
// read-ahead. A swap-out happens in whoever reclaims: `arg` is the cgroup it is charged to, of which user
// space knows the VM. A huge page is noted for the host_fault record that ends the fault.

ON(memcg, count_memcg_events)
{
    u32 item = args->item;
    if (item != ITEM_PSWPIN && item != ITEM_PSWPOUT && item != ITEM_THP_FAULT_ALLOC)
        return 0;
    u64 now = bpf_ktime_get_ns();
    if (item == ITEM_PSWPOUT) {
        EMIT_AS(VM_UNKNOWN, -1, KIND_SWAP_OUT, now, VALID_ARG, .arg = args->id, .pages = args->val);
        return 0;
    }
    struct thread *t = current_thread();
    if (item == ITEM_THP_FAULT_ALLOC) {
        if (t)
            t->fault_level = 2;
        return 0;
    }
    if (!t)
        EMIT_AS(VM_UNKNOWN, -1, KIND_SWAP_IN, now, VALID_ARG, .arg = args->id, .pages = args->val);
    else if (t->fault_start)
        EMIT(t, KIND_SWAP_IN, now, VALID_HVA, .hva = t->fault_address, .pages = args->val);
    else if (t->mmu_start && MMU_ADDRESS_IS_GPA)
        EMIT(t, KIND_SWAP_IN, now, VALID_GFN, .gfn = t->mmu_gva >> 12, .pages = args->val);
    else if (t->mmu_start)
        EMIT(t, KIND_SWAP_IN, now, VALID_GVA, .gva = t->mmu_gva, .pages = args->val);
    else
        EMIT(t, KIND_SWAP_IN, now, 0, .pages = args->val);
    return 0;
}
