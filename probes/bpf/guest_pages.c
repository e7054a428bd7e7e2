// Inside a guest: every page its kernel hands out or takes back, whoever asks. `vcpu` is the CPU it happened on.

#define NOT_A_PAGE (~0ULL)
#define GFP_ZERO 0x100

// The page's number: given, or from where its structure lies (page_structures.py).
#ifdef RAW_kmem__mm_page_alloc
#define ALLOCATED(args) ((args)->page ? ((args)->page - (u64)(PAGES_AT)) / PAGE_STRUCTURE_BYTES : NOT_A_PAGE)
#else
#define ALLOCATED(args) (args)->pfn
#endif
#ifdef RAW_kmem__mm_page_free
#define FREED(args) (((args)->page - (u64)(PAGES_AT)) / PAGE_STRUCTURE_BYTES)
#else
#define FREED(args) (args)->pfn
#endif

ON(kmem, mm_page_alloc)
{
    u64 pfn = ALLOCATED(args);
    if (pfn == NOT_A_PAGE || is_own(bpf_get_current_pid_tgid()))
        return;
    u32 flags = INIT_ON_ALLOC || (args->gfp_flags & GFP_ZERO) ? FLAG_ZEROED : 0;
    EMIT_AS(0, bpf_get_smp_processor_id(), KIND_PAGE_ALLOC, bpf_ktime_get_ns(), VALID_GFN, .gfn = pfn,
            .pages = 1 << args->order, .flags = flags);
}

ON(kmem, mm_page_free)
{
    if (is_own(bpf_get_current_pid_tgid()))
        return;
    EMIT_AS(0, bpf_get_smp_processor_id(), KIND_PAGE_FREE, bpf_ktime_get_ns(), VALID_GFN, .gfn = FREED(args),
            .pages = 1 << args->order);
}
