// Inside a guest: DAMON's regions of physical memory with how often it saw them accessed. DAMON is read as it
// runs, for whoever runs it; its settings are not ours. Only where its addresses are physical (DAMON_IS_PHYSICAL).

ON(damon, damon_aggregated)
{
    u64 start = args->start, end = args->end;
    EMIT_AS(0, -1, KIND_ACCESS, bpf_ktime_get_ns(), VALID_GFN | VALID_ARG, .gfn = start >> 12,
            .pages = (end - start) >> 12, .arg = args->nr_accesses);
}
