// Faults that were given a huge page, on kernels without memcg:count_memcg_events (memcg.c sees them there): what
// that tracepoint tells, a function of the kernel has always been told.

ON(function, count_memcg_events)
{
    if ((u32)args->item == ITEM_THP_FAULT_ALLOC)
        huge_page_given();
}
