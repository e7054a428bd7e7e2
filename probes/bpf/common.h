// What every probe shares: the record, the ring it goes to, the traced threads, and the loss counters.
//
// source.py puts this file in front of the chosen probes (bcc rewrites only one main file, so nothing is
// #included) and generates before it: the sizes (RING_PAGES, MAX_THREADS, MAX_PROCESSES), KIND_*, FLAG_*
// and ACCESS_* from trace/schema.py, VALID_* and LOST_* from wire.py, and for each tracepoint C:E of this
// kernel HAVE_C__E, HAS_C__E__FIELD and struct C__E with its fields where the `format` file puts them. Where
// RAW_C__E is defined too, the program gets the kernel's own arguments instead (raw.py): it costs less.

// ON(C, E) defines the program for tracepoint C:E; source.py finds these lines and attaches them. Every
// program returns 1: at 0 the kernel keeps the event from perf and whoever else traces it.
#define ON(category, event) ON_(PROBE, category, event)
#define ON_(probe, category, event) ON__(probe, category, event)
#define ON__(probe, category, event)                                                                     \
    static __always_inline void do_##probe##_##category##__##event(struct category##__##event *args);    \
    int on_##probe##_##category##__##event(struct category##__##event *args)                             \
    {                                                                                                    \
        do_##probe##_##category##__##event(args);                                                        \
        return 1;                                                                                        \
    }                                                                                                    \
    static __always_inline void do_##probe##_##category##__##event(struct category##__##event *args)

// One record for all kinds: 72 bytes, with the ring's own header 80. wire.py reads exactly this.
struct record {
    u64 ts, gfn, hva, gva, latency, rip, arg;
    u32 tid, pages;
    u16 vm;
    s16 vcpu;
    u8 kind, level, flags, valid;
};
_Static_assert(sizeof(struct record) == 72, "wire.py and the ring reader count on 72 bytes");

BPF_RINGBUF_OUTPUT(ring, RING_PAGES);

// A traced thread and what it is in the middle of. Its being in the table is the filter: one look-up
// gives the VM, the vCPU and every start time. Only the thread itself writes to its entry.
struct thread {
    u64 mmu_start, mmu_requested, mmu_gfn, mmu_gva, mmu_rip, mmu_error;
    u64 fault_start, fault_address, fault_error;
    u64 async_gfn;
    u64 call_start, call_a, call_b, call_c, call_d, call_e, call_f;
    u32 call;
    u32 tgid;
    s32 vcpu_fd, vm_fd;  // of the vCPU that it runs, and of that one's VM
    u32 vcpus_made;      // when that was looked up (kvm_ioctl.c)
    u16 vm;
    s16 vcpu;
    u8 armed;        // a child that has not yet become its command: silent until exec
    u8 mmu_pending;  // a fault of the guest is being handled
    u8 mmu_level;
    u8 fault_level;  // the fault of the thread itself was given a page of this level (0 = not known)
};
BPF_HASH(threads, u32, struct thread, MAX_THREADS);

// processes[vm] = who it is. An index is never used twice; next_vm is only where to look for a free one,
// since inserting is what decides which of two CPUs has it.
struct process {
    u32 tgid, parent;
};
BPF_HASH(processes, u32, struct process, MAX_PROCESSES);
BPF_ARRAY(next_vm, u32, 1);

// The last mapping that a thread took away. Reclaim unmaps a page and then writes it out, in one thread: so the
// swap-out, which names no address, finds the page's here (memcg.c, written_out.c).
struct unmapping {
    u64 hva, ts;
    u32 pages, owner;
};
BPF_TABLE("lru_hash", u32, struct unmapping, unmappings, 1024);

#define JUST_NOW 1000000  // ns; some microseconds where nothing comes between

// What a program on a software event gets (struct bpf_perf_event_data, x86-64).
struct fault_context {
    u64 registers[21];
    u64 sample_period;
    u64 address;
};

#define FAULT_IP(ctx) (ctx)->registers[16]  // where it happened: struct pt_regs, x86-64

// Losses by CPU and reason. The reader raises `epoch` at each reading, so first_ts is that of the losses
// since about then.
struct loss {
    u64 count, first_ts, last_ts, epoch;
};
BPF_PERCPU_ARRAY(losses, struct loss, LOST_REASONS);  // the last ones: a ring that was full, by kind
BPF_ARRAY(epoch, u64, 1);

static __always_inline void lose_many(u32 reason, u64 count)
{
    u32 zero = 0;
    struct loss *loss = losses.lookup(&reason);
    u64 *now_epoch = epoch.lookup(&zero);
    u64 now = bpf_ktime_get_ns();
    if (!loss || !now_epoch)
        return;
    if (loss->epoch != *now_epoch || !loss->count) {
        loss->epoch = *now_epoch;
        loss->first_ts = now;
    }
    loss->last_ts = now;
    loss->count += count;
}

static __always_inline void lose(u32 reason) { lose_many(reason, 1); }

// The unmapping of a page that this thread has now written out; `pages` = how many it was (0 = any number). Where there
// is none, it was not a guest's: KVM would have been told. Where there is one that does not fit (too long ago, of another
// size), or KVM tells nothing, it `may_be` one's all the same.
static __always_inline struct unmapping *unmapping_of(u64 now, u32 pages, int *may_be)
{
    u32 tid = bpf_get_current_pid_tgid();
    struct unmapping *last = unmappings.lookup(&tid);
    int left = last && last->pages;
    if (left && now - last->ts < JUST_NOW && (!pages || last->pages == pages))
        return last;
#ifdef HAVE_kvm__kvm_unmap_hva_range
    *may_be = left;
#else
    *may_be = 1;
#endif
    return 0;
}

// What entry a fault of a guest asks for: the arguments, or in the structure (struct kvm_page_fault) that the raw tracepoint names.
#ifdef RAW_kvmmmu__kvm_mmu_spte_requested
#define REQUESTED_GFN(args) kernel_u64((args)->fault + FAULT_GFN_OFFSET)
#define REQUESTED_LEVEL(args) kernel_u64((args)->fault + FAULT_LEVEL_OFFSET)
#else
#define REQUESTED_GFN(args) (args)->gfn
#define REQUESTED_LEVEL(args) (args)->level
#endif

static __always_inline struct record *reserve(u8 kind)
{
    struct record *r = ring.ringbuf_reserve(sizeof(struct record));
    if (!r)
        lose(LOST_RING_FULL + kind);
    return r;
}

static __always_inline void submit(struct record *r)
{
    // Without a wake-up: the reader comes by the clock, and the traced thread pays for no interrupt.
    ring.ringbuf_submit(r, 1 /* BPF_RB_NO_WAKEUP */);
}

static __always_inline struct thread *current_thread(void)
{
    u32 tid = bpf_get_current_pid_tgid();
    struct thread *t = threads.lookup(&tid);
    return t && !t->armed ? t : 0;
}

// The VM that a process is, by its first thread; VM_UNKNOWN where it is none.
static __always_inline u16 vm_of_process(u32 tgid)
{
    struct thread *t = threads.lookup(&tgid);
    return t && !t->armed ? t->vm : VM_UNKNOWN;
}

// The process whose memory (struct mm_struct) this is; 0 where it can't be told.
static __always_inline u32 process_of(u64 mm)
{
#if defined(MM_OWNER_OFFSET) && defined(TASK_TGID_OFFSET)
    u64 owner = mm ? kernel_u64(mm + MM_OWNER_OFFSET) : 0;
    return owner ? kernel_u64(owner + TASK_TGID_OFFSET) : 0;
#else
    return 0;
#endif
}

// Who is in the middle of a process_madvise; callers need not be traced threads (reclaim.c).
struct process_call {
    u64 start, ranges, count;
    u32 advice, pidfd, target;
};
BPF_HASH(process_calls, u32, struct process_call, 1024);

// The first gfn of the page of that level that holds gfn.
static __always_inline u64 first_gfn(u64 gfn, u8 level)
{
    return level == 2 ? gfn & ~0x1ffULL : level == 3 ? gfn & ~0x3ffffULL : gfn;
}

// EMIT(thread, KIND_X, ts, valid bits, .field = value, …) sends one record; fields not named are 0, which
// is null unless its VALID_ bit is given. EMIT_AS names VM and vCPU (-1 = none) where no thread stands for them.
#define EMIT(t, k, when, set, ...) EMIT_AS((t)->vm, (t)->vcpu, k, when, set, __VA_ARGS__)
#define EMIT_AS(v, c, k, when, set, ...)                                                                 \
    do {                                                                                                 \
        struct record *_r = reserve(k);                                                                  \
        if (_r) {                                                                                        \
            s16 _c = (c);                                                                                \
            *_r = (struct record){.ts = (when), .kind = (k), .tid = (u32)bpf_get_current_pid_tgid(),     \
                                  .vm = (v), .vcpu = _c >= 0 ? _c : 0,                                   \
                                  .valid = (set) | (_c >= 0 ? VALID_VCPU : 0), __VA_ARGS__};             \
            submit(_r);                                                                                  \
        }                                                                                                \
    } while (0)

#ifdef RECORDER  // in a guest

// The processes that the recorder has started meanwhile (own.c); mostly there are none, and nobody is looked up.
BPF_TABLE("lru_hash", u32, u8, own_processes, 1024);
BPF_ARRAY(own_started, u32, 1);

static __always_inline int is_own(u64 pid_tgid)
{
    u32 zero = 0, tgid = pid_tgid >> 32;
    if (tgid == RECORDER)
        return 1;
    u32 *started = own_started.lookup(&zero);
    return started && *started && own_processes.lookup(&tgid);
}

#endif

#ifdef MMU_ADDRESS_IS_GPA  // on a host

// The id of the memory cgroup of a structure (struct mem_cgroup) of the kernel.
#define CGROUP_ID_OF(memcg) \
    kernel_u64(kernel_u64(kernel_u64((memcg) + MEMCG_CGROUP_OFFSET) + CGROUP_NODE_OFFSET) + NODE_ID_OFFSET)

// What goes without a write, and comes back without a read: pages of zeros (since Linux 6.12), what zswap keeps. A kernel
// that does not know of one never counts it.
#define NOT_COUNTED 0xffffffff
#ifndef ITEM_SWPOUT_ZERO
#define ITEM_SWPOUT_ZERO NOT_COUNTED
#define ITEM_SWPIN_ZERO NOT_COUNTED
#endif
#ifndef ITEM_ZSWPOUT
#define ITEM_ZSWPOUT NOT_COUNTED
#define ITEM_ZSWPIN NOT_COUNTED
#endif
#define GOES_UNWRITTEN(item) ((item) == ITEM_SWPOUT_ZERO || (item) == ITEM_ZSWPOUT)
#define COMES_UNREAD(item) ((item) == ITEM_SWPIN_ZERO || (item) == ITEM_ZSWPIN)

// In the faulting thread a swap-in knows its address from the fault it serves; `pages` is what was read, with
// read-ahead. In another (KVM's worker of asynchronous faults) `arg` is the cgroup, of which user space knows the VM.
static __always_inline void swapped_in(struct thread *t, u64 now, u64 cgroup, u32 pages, u8 flags)
{
    if (!t)
        EMIT_AS(VM_UNKNOWN, -1, KIND_SWAP_IN, now, VALID_ARG, .arg = cgroup, .pages = pages, .flags = flags);
    else if (t->fault_start)
        EMIT(t, KIND_SWAP_IN, now, VALID_HVA, .hva = t->fault_address, .pages = pages, .flags = flags);
    else if (t->mmu_start && MMU_ADDRESS_IS_GPA)
        EMIT(t, KIND_SWAP_IN, now, VALID_GFN, .gfn = t->mmu_gva >> 12, .pages = pages, .flags = flags);
    else if (t->mmu_start)
        EMIT(t, KIND_SWAP_IN, now, VALID_GVA, .gva = t->mmu_gva, .pages = pages, .flags = flags);
    else
        EMIT(t, KIND_SWAP_IN, now, 0, .pages = pages, .flags = flags);
}

// A swap-out happens in whoever reclaims: `arg` is the cgroup it is charged to, and its address is that of the same
// thread's last unmapping, if that is of as many pages, not long ago, and no other swap-out's.
static __always_inline void swapped_out(u64 now, u64 cgroup, u32 pages, u8 flags)
{
    int may_be = 0;
    struct unmapping *last = unmapping_of(now, pages, &may_be);
    u8 set = VALID_ARG;
    u64 hva = 0;
    if (last) {
        set |= VALID_HVA;
        hva = last->hva;
        last->pages = 0;
    }
    // `rip` is the process whose memory it was, where known. `gva` 1: it has no address, and may be a guest's all the same, if
    // the cgroup can be one's.
    EMIT_AS(VM_UNKNOWN, -1, KIND_SWAP_OUT, now, set, .hva = hva, .arg = cgroup, .pages = pages, .flags = flags,
            .rip = last ? last->owner : 0, .gva = may_be);
}

// For the host_fault record that ends the fault.
static __always_inline void huge_page_given(void)
{
    struct thread *t = current_thread();
    if (t)
        t->fault_level = 2;
}

#endif
