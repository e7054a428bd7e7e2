// Inside a guest: the page faults of all its processes. See host_fault.c, which does the same for one VMM.

struct guest_fault {
    u64 start, address, error;
};
BPF_TABLE("lru_hash", u32, struct guest_fault, guest_faults, 65536);

static __always_inline void guest_fault_begin(u64 address, u64 error)
{
    u64 id = bpf_get_current_pid_tgid();
    u32 tid = id;
    if (is_own(id))
        return;
    struct guest_fault fault = {.start = bpf_ktime_get_ns(), .address = address, .error = error};
    if (guest_faults.update(&tid, &fault))
        lose(LOST_TABLE_FULL);
}

#ifdef HAVE_exceptions__page_fault_user
ON(exceptions, page_fault_user) { guest_fault_begin(args->address, args->error_code); }
#endif

#ifdef HAVE_exceptions__page_fault_kernel
ON(exceptions, page_fault_kernel) { guest_fault_begin(args->address, args->error_code); }
#endif

static __always_inline int guest_fault_end(struct fault_context *ctx, u32 flags)
{
    u64 address = ctx->address, ip = FAULT_IP(ctx);
    u64 now = bpf_ktime_get_ns(), id = bpf_get_current_pid_tgid();
    u32 tid = id;
    if (is_own(id))
        return 0;
    s16 cpu = bpf_get_smp_processor_id();
    struct guest_fault *fault = guest_faults.lookup(&tid);
    if (fault && fault->start && fault->address >> 12 == address >> 12) {
        EMIT_AS(0, cpu, KIND_GUEST_FAULT, now, VALID_GVA | VALID_LATENCY | VALID_RIP | VALID_ARG, .gva = address,
                .latency = now - fault->start, .rip = ip, .arg = fault->error, .pages = 1, .flags = flags);
        fault->start = 0;
    } else {
        EMIT_AS(0, cpu, KIND_GUEST_FAULT, now, VALID_GVA | VALID_RIP, .gva = address, .rip = ip, .pages = 1, .flags = flags);
    }
    return 0;
}

int on_guest_fault_minor(struct fault_context *ctx) { return guest_fault_end(ctx, 0); }
int on_guest_fault_major(struct fault_context *ctx) { return guest_fault_end(ctx, FLAG_MAJOR); }
