// What the kernel counts for memory cgroups, as it counts it: swap, and faults that were given a huge page.

// The id of the cgroup: the argument, or by way of the structures of the raw one. Only read for a swap.
#ifdef RAW_memcg__count_memcg_events
#define CGROUP_ID(args) CGROUP_ID_OF((args)->memcg)
#else
#define CGROUP_ID(args) (args)->id
#endif

ON(memcg, count_memcg_events)
{
    u32 item = args->item;
    int unwritten = GOES_UNWRITTEN(item), unread = COMES_UNREAD(item);
    if (item != ITEM_PSWPIN && item != ITEM_PSWPOUT && item != ITEM_THP_FAULT_ALLOC && !unwritten && !unread)
        return;
    u64 now = bpf_ktime_get_ns();
    if (item == ITEM_PSWPOUT || unwritten) {
        swapped_out(now, CGROUP_ID(args), args->val, unwritten ? FLAG_UNWRITTEN : 0);
    } else if (item == ITEM_THP_FAULT_ALLOC) {
        huge_page_given();
    } else {
        struct thread *t = current_thread();
        swapped_in(t, now, t ? 0 : CGROUP_ID(args), args->val, unread ? FLAG_UNWRITTEN : 0);
    }
}
