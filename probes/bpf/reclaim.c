// Calls by which a VMM gives memory back, takes it up or advises on it. Only calls that succeeded are
// recorded; the latency is that of the call.

#define CALL_MADVISE 1
#define CALL_FALLOCATE 2
#define CALL_PROCESS_MADVISE 3

ON(syscalls, sys_enter_madvise)
{
    struct thread *t = current_thread();
    if (!t)
        return;
    t->call = CALL_MADVISE;
    t->call_a = args->start;
    t->call_b = args->len_in;
    t->call_c = (u32)args->behavior;
    t->call_start = bpf_ktime_get_ns();
}

ON(syscalls, sys_exit_madvise)
{
    struct thread *t = current_thread();
    if (!t || t->call != CALL_MADVISE)
        return;
    t->call = 0;
    if (args->ret)
        return;
    u64 now = bpf_ktime_get_ns();
    EMIT(t, KIND_MADVISE, now, VALID_HVA | VALID_LATENCY | VALID_ARG, .hva = t->call_a,
         .pages = (t->call_b + 4095) >> 12, .latency = now - t->call_start, .arg = t->call_c);
}

// What a file is, whatever its descriptor is by the time that somebody looks.
struct inode_id {
    u64 number;
    u32 device, huge;
};

static __always_inline struct inode_id inode_of(u64 file)
{
    struct inode_id id = {};
#if defined(FILE_INODE_OFFSET) && defined(INODE_NUMBER_OFFSET) && defined(INODE_SUPERBLOCK_OFFSET) && \
    defined(SUPERBLOCK_DEVICE_OFFSET) && defined(SUPERBLOCK_BLOCK_OFFSET)
    if (file) {
        u64 inode = kernel_u64(file + FILE_INODE_OFFSET), superblock = kernel_u64(inode + INODE_SUPERBLOCK_OFFSET);
        id.number = kernel_u64(inode + INODE_NUMBER_OFFSET);
        id.device = kernel_u64(superblock + SUPERBLOCK_DEVICE_OFFSET);
        id.huge = kernel_u64(superblock + SUPERBLOCK_BLOCK_OFFSET) >= 1 << 21;  // hugetlbfs: the size of its pages
    }
#endif
    return id;
}

ON(syscalls, sys_enter_fallocate)
{
    struct thread *t = current_thread();
    if (!t)
        return;
    t->call = CALL_FALLOCATE;
    t->call_a = args->offset;
    t->call_b = args->len;
    struct inode_id id = inode_of(file_of(args->fd));
    t->call_c = (u32)args->mode;
    t->call_d = (u64)id.device << 32 | (u32)args->fd;
    t->call_e = id.number;
    t->call_f = id.huge;
    t->call_start = bpf_ktime_get_ns();
}

ON(syscalls, sys_exit_fallocate)
{
    struct thread *t = current_thread();
    if (!t || t->call != CALL_FALLOCATE)
        return;
    t->call = 0;
    if (args->ret)
        return;
    u64 now = bpf_ktime_get_ns();
    // hva holds the offset in the file: filemap.py looks the mapping up. The file is told by its inode's number in `gva` and
    // its device above the descriptor in `rip` (`level` 2: its blocks are huge pages), or by the descriptor alone.
    EMIT(t, KIND_FALLOCATE, now, VALID_LATENCY | VALID_ARG, .hva = t->call_a,
         .pages = (t->call_b + 4095) >> 12, .latency = now - t->call_start, .arg = t->call_c,
         .rip = t->call_d, .gva = t->call_e, .level = t->call_f ? 2 : 0);
}

// process_madvise names ranges of another process, by a pidfd: every caller is recorded, and attribution.py keeps the
// ranges of traced processes.
#define MAX_RANGES 256  // what the verifier lets through; the kernel takes up to 1024 a call

struct range {
    u64 start, bytes;
};

// The process behind a pidfd, found as the call begins: a moment later the caller may have closed it, or be gone itself. 0
// where it can't be told.
static __always_inline u32 process_behind(s32 pidfd)
{
    if (pidfd < 0)  // PIDFD_SELF, since Linux 6.14; other negative ones fail
        return bpf_get_current_pid_tgid() >> 32;
#if defined(FILE_PRIVATE_OFFSET) && defined(FILE_INODE_OFFSET) && defined(INODE_PRIVATE_OFFSET) && \
    defined(PID_NUMBERS_OFFSET) && defined(NUMBER_OFFSET)
    u64 file = file_of(pidfd);
    if (!file)
        return 0;
    // Its structure (struct pid) is what the file holds; since Linux 6.9 (pidfs) what its inode does.
    u64 pid = kernel_u64(file + FILE_PRIVATE_OFFSET);
    if (!pid)
        pid = kernel_u64(kernel_u64(file + FILE_INODE_OFFSET) + INODE_PRIVATE_OFFSET);
    return pid ? kernel_u64(pid + PID_NUMBERS_OFFSET + NUMBER_OFFSET) : 0;
#else
    return 0;
#endif
}

ON(syscalls, sys_enter_process_madvise)
{
    u32 tid = bpf_get_current_pid_tgid();
    struct process_call call = {.start = bpf_ktime_get_ns(), .ranges = (u64)args->vec, .count = args->vlen,
                                .advice = args->behavior, .pidfd = args->pidfd,
                                .target = process_behind(args->pidfd)};
    if (process_calls.update(&tid, &call))
        lose(LOST_TABLE_FULL);
}

ON(syscalls, sys_exit_process_madvise)
{
    u32 tid = bpf_get_current_pid_tgid();
    struct process_call *call = process_calls.lookup(&tid);
    if (!call)
        return;
    struct process_call done = *call;
    process_calls.delete(&tid);
    s64 left = args->ret;
    u64 now = bpf_ktime_get_ns();
    // What all ranges share lies ready on the stack: see hypercall.c. `rip` is the process, `gva` the caller's with the pidfd
    // above it, of which attribution.py looks it up where it is not known.
    struct record same = {.ts = now, .kind = KIND_PROCESS_MADVISE, .tid = tid, .vm = vm_of_process(done.target),
                          .valid = VALID_HVA | VALID_LATENCY | VALID_ARG, .latency = now - done.start,
                          .arg = done.advice, .rip = done.target,
                          .gva = (u64)done.pidfd << 32 | bpf_get_current_pid_tgid() >> 32};
    asm volatile("" : : "r"(&same) : "memory");
    u32 i, reason = LOST_REASONS, count = done.count;
    for (i = 0;; i++) {
        asm volatile("" : "+r"(i));  // else both bounds become one that the verifier can't tell
        if (i >= count || left <= 0)
            break;
        if (i >= MAX_RANGES) {  // here, not after the loop: the verifier would go through what follows for every i
            reason = LOST_RANGES_CUT;
            break;
        }
        struct range range = {};
        if (bpf_probe_read_user(&range, sizeof(range), (void *)(done.ranges + i * sizeof(range)))) {
            reason = LOST_UNREADABLE_ARGUMENT;
            break;
        }
        u64 bytes = range.bytes < left ? range.bytes : left;
        struct record *r = ring.ringbuf_reserve(sizeof(struct record));
        if (!r) {
            reason = LOST_RING_FULL + KIND_PROCESS_MADVISE;
            break;
        }
        *r = same;
        r->hva = range.start;
        r->pages = (bytes + 4095) >> 12;
        submit(r);
        left -= bytes;
    }
    if (reason != LOST_REASONS)
        lose_many(reason, count - i);
}
