// Swaps on kernels without memcg:count_memcg_events (memcg.c has them from there). Inside the functions that read a
// page from swap and write one, the block device's request is the swap: what zswap keeps in memory, or the kernel
// as a page of zeros, makes none (memcg_function.c has those). Until Linux 6.2 a device may take a page without a request (zram does).

#define READS 0
#define WRITES 1

// Who is in the middle of it. Reading can lead to reclaim, which writes: so by thread and direction.
struct swapping {
    u32 tid, direction;
};
BPF_HASH(swapping, struct swapping, u64, MAX_THREADS);  // the page's structure

static __always_inline void swap_begins(u32 direction, u64 page)
{
    struct swapping who = {.tid = bpf_get_current_pid_tgid(), .direction = direction};
    if (swapping.update(&who, &page))
        lose(LOST_TABLE_FULL);
}

static __always_inline void swap_ends(u32 direction)
{
    struct swapping who = {.tid = bpf_get_current_pid_tgid(), .direction = direction};
    swapping.delete(&who);
}

static __always_inline void swapped(u32 direction, u32 pages)
{
    struct swapping who = {.tid = bpf_get_current_pid_tgid(), .direction = direction};
    u64 *page = swapping.lookup(&who);
    if (!page)
        return;
    u64 now = bpf_ktime_get_ns();
    struct thread *t = direction == READS ? current_thread() : 0;
    u64 memcg = t ? 0 : kernel_u64(*page + PAGE_MEMCG_OFFSET) & ~3ULL;  // the two low bits are flags
    u64 cgroup = t ? 0 : CGROUP_ID_OF(memcg);
    swapping.delete(&who);  // a device made of others makes a request of theirs as well
    if (direction == READS)
        swapped_in(t, now, cgroup, pages, 0);
    else
        swapped_out(now, cgroup, pages, 0);
}

ON(function, swap_read) { swap_begins(READS, args->page); }
ON(function, swap_read_returns) { swap_ends(READS); }
ON(function, swap_write) { swap_begins(WRITES, args->page); }
ON(function, swap_write_returns) { swap_ends(WRITES); }

// What a request does, and with how many pages: the arguments, or in the structure of the raw one (struct bio).
#ifdef RAW_block__block_bio_queue
#define IS_READ(args) ((u8)kernel_u64((args)->bio + BIO_OPERATION_OFFSET) == 0 /* REQ_OP_READ */)
#define IS_WRITE(args) ((u8)kernel_u64((args)->bio + BIO_OPERATION_OFFSET) == 1 /* REQ_OP_WRITE */)
#define PAGES(args) ((u32)kernel_u64((args)->bio + BIO_ITERATOR_OFFSET + ITERATOR_BYTES_OFFSET) >> 12)
#else
#define IS_READ(args) ((args)->rwbs[0] == 'R')
#define IS_WRITE(args) ((args)->rwbs[0] == 'W')
#define PAGES(args) ((args)->nr_sector >> 3)
#endif

ON(block, block_bio_queue)
{
    if (IS_READ(args))
        swapped(READS, PAGES(args));
    else if (IS_WRITE(args))
        swapped(WRITES, PAGES(args));
}

#ifdef HAVE_function__page_read_returns
ON(function, page_read_returns)
{
    if (!(s32)args->ret)
        swapped(READS, 1);
}
#endif

#ifdef HAVE_function__page_write_returns
ON(function, page_write_returns)
{
    if (!(s32)args->ret)
        swapped(WRITES, 1);
}
#endif
