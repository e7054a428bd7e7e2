// On kernels without memcg:count_memcg_events: what that tracepoint tells, a function of the kernel has always been told.
// Swaps by a device it is not told of there (swap_io.c has them), but pages that go without a write, and huge pages.

ON(function, count_memcg_events)
{
    u32 item = args->item;
    if (item == ITEM_THP_FAULT_ALLOC) {
        huge_page_given();
    } else if (GOES_UNWRITTEN(item)) {
        swapped_out(bpf_ktime_get_ns(), CGROUP_ID_OF(args->memcg), args->val, FLAG_UNWRITTEN);
    } else if (COMES_UNREAD(item)) {
        struct thread *t = current_thread();
        u64 cgroup = t ? 0 : CGROUP_ID_OF(args->memcg);
        swapped_in(t, bpf_ktime_get_ns(), cgroup, args->val, FLAG_UNWRITTEN);
    }
}
