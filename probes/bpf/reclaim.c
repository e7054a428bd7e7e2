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

ON(syscalls, sys_enter_fallocate)
{
    struct thread *t = current_thread();
    if (!t)
        return;
    t->call = CALL_FALLOCATE;
    t->call_a = args->offset;
    t->call_b = args->len;
    t->call_c = (u32)args->mode;
    t->call_d = (u32)args->fd;
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
    // hva holds the offset in the file that `rip` is the descriptor of: filemap.py looks the mapping up.
    EMIT(t, KIND_FALLOCATE, now, VALID_LATENCY | VALID_ARG, .hva = t->call_a,
         .pages = (t->call_b + 4095) >> 12, .latency = now - t->call_start, .arg = t->call_c,
         .rip = t->call_d);
}

// process_madvise names ranges of another process, by a pidfd that only the caller's /proc entry resolves:
// every caller is recorded, and decode.py keeps the ranges of traced processes.
#define MAX_RANGES 64  // what the verifier lets through; the kernel takes up to 1024 a call

struct range {
    u64 start, bytes;
};

// Callers need not be traced threads, so what they are in the middle of is kept here.
struct process_call {
    u64 start, ranges, count;
    u32 advice, pidfd;
};
BPF_HASH(process_calls, u32, struct process_call, 1024);

ON(syscalls, sys_enter_process_madvise)
{
    u32 tid = bpf_get_current_pid_tgid();
    struct process_call call = {.start = bpf_ktime_get_ns(), .ranges = (u64)args->vec, .count = args->vlen,
                                .advice = args->behavior, .pidfd = args->pidfd};
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
    u32 i, reason = LOST_REASONS, count = done.count;
    for (i = 0; i < MAX_RANGES && i < count && left > 0; i++) {
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
        // rip is the caller's process with the pidfd above it: attribution.py resolves the two to the VM.
        *r = (struct record){.ts = now, .kind = KIND_PROCESS_MADVISE, .tid = tid, .vm = VM_UNKNOWN,
                             .valid = VALID_HVA | VALID_LATENCY | VALID_ARG, .hva = range.start,
                             .pages = (bytes + 4095) >> 12, .latency = now - done.start, .arg = done.advice,
                             .rip = (u64)done.pidfd << 32 | bpf_get_current_pid_tgid() >> 32};
        submit(r);
        left -= bytes;
    }
    if (i == MAX_RANGES && i < count)
        reason = LOST_RANGES_CUT;
    if (reason != LOST_REASONS)
        lose_many(reason, count - i);
}
