// Swap-outs on kernels without memcg:count_memcg_events (memcg.c has more to say where there is one): reclaim
// has written an anonymous page to its device. It names a physical page and no address; that is the last
// unmapping's of the same thread. A page that no KVM guest had mapped has none, and is not our business; one that may
// have been a guest's is entered into the ledger.

#define RECLAIM_WRITES_ANONYMOUS 1  // RECLAIM_WB_ANON of include/trace/events/vmscan.h

ON(vmscan, mm_vmscan_write_folio)
{
    if (!(args->reclaim_flags & RECLAIM_WRITES_ANONYMOUS))
        return;
    u64 now = bpf_ktime_get_ns();
    int may_be = 0;
    struct unmapping *last = unmapping_of(now, 0, &may_be);
    if (!last) {
        if (may_be)
            lose(LOST_SWAP_OUT_UNPLACED);
        return;
    }
    EMIT_AS(VM_UNKNOWN, -1, KIND_SWAP_OUT, now, VALID_HVA, .hva = last->hva, .pages = last->pages,
            .rip = last->owner);
    last->pages = 0;
}
