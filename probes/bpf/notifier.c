// The host takes mappings away, or reads and clears their accessed bits: KVM's MMU notifiers. They fire in
// whichever thread does it (the VMM, kswapd, ksmd, khugepaged, another process) and name no VM. Where the kernel's functions
// that notify can be hooked they say whose memory it is; else the thread does, if what it is doing can only be to its own. What
// remains unknown here, user space tells by the address.

#define PF_MEMALLOC 0x800  // include/linux/sched.h: the kernel takes memory back in this thread

#if defined(HAVE_function__unmaps) || defined(HAVE_function__ages) || defined(HAVE_function__ages_lightly)
#define TOLD_WHOSE 1
// What a thread was last told to notify of.
struct notice {
    u64 start;
    u32 owner;
};
BPF_TABLE("lru_hash", u32, struct notice, notices, 16384);

static __always_inline void notifies(u64 mm, u64 start)
{
    u32 tid = bpf_get_current_pid_tgid();
    struct notice notice = {.start = start, .owner = process_of(mm)};
    notices.update(&tid, &notice);
}

#ifdef HAVE_function__unmaps
ON(function, unmaps)
{
#if defined(RANGE_MM_OFFSET) && defined(RANGE_START_OFFSET)
    notifies(kernel_u64(args->range + RANGE_MM_OFFSET), kernel_u64(args->range + RANGE_START_OFFSET));
#endif
}
#endif

#ifdef HAVE_function__ages
ON(function, ages) { notifies(args->mm, args->start); }
#endif

#ifdef HAVE_function__ages_lightly
ON(function, ages_lightly) { notifies(args->mm, args->start); }
#endif
#endif

// The process whose memory it is; 0 where that is not known.
static __always_inline u32 owner_of(struct thread *t, u64 start)
{
    u64 id = bpf_get_current_pid_tgid();
    u32 tid = id;
#ifdef TOLD_WHOSE
    struct notice *notice = notices.lookup(&tid);
    if (notice && notice->start == start && notice->owner)
        return notice->owner;
#endif
    struct process_call *call = process_calls.lookup(&tid);
    if (call && call->target)
        return call->target;
#if defined(TASK_MM_OFFSET) && defined(TASK_FLAGS_OFFSET) && defined(TASK_RECLAIM_OFFSET) && defined(MM_NOTIFIERS_OFFSET)
    u64 task = bpf_get_current_task(), mm = kernel_u64(task + TASK_MM_OFFSET);
    // Who takes pages back takes anybody's. Without memory that has notifiers, as in threads of the kernel and in all
    // processes that have no VM, it is not the thread's own either.
    if (!mm || kernel_u64(task + TASK_FLAGS_OFFSET) & PF_MEMALLOC || kernel_u64(task + TASK_RECLAIM_OFFSET))
        return 0;
    return kernel_u64(mm + MM_NOTIFIERS_OFFSET) ? id >> 32 : 0;
#else
    return t ? t->tgid : 0;
#endif
}

static __always_inline void notified(struct thread *t, u8 kind, u64 now, u64 start, u32 pages, u32 owner)
{
    u16 vm = t && t->tgid == owner ? t->vm : vm_of_process(owner);
    EMIT_AS(vm, -1, kind, now, VALID_HVA, .hva = start, .pages = pages, .rip = owner);
}

#ifdef HAVE_kvm__kvm_unmap_hva_range
ON(kvm, kvm_unmap_hva_range)
{
    u32 tid = bpf_get_current_pid_tgid();
    struct thread *t = current_thread();
    struct unmapping last = {.hva = args->start, .ts = bpf_ktime_get_ns(),
                             .pages = (args->end - args->start + 4095) >> 12,
                             .owner = owner_of(t, args->start)};
    unmappings.update(&tid, &last);
    notified(t, KIND_UNMAP, last.ts, last.hva, last.pages, last.owner);
}
#endif

#ifdef HAVE_kvm__kvm_age_hva
ON(kvm, kvm_age_hva)
{
    struct thread *t = current_thread();
    notified(t, KIND_AGE, bpf_ktime_get_ns(), args->start, (args->end - args->start + 4095) >> 12,
             owner_of(t, args->start));
}
#endif
