// Faults of a traced thread on its own memory: the exception is the start, the kernel's own page-fault
// count (software event, minor or major) the end. With a period of one no software event is throttled.
// Faults that KVM takes for a guest count in no software event: those are ept_violation records.

static __always_inline void fault_begin(u64 address, u64 ip, u64 error)
{
    struct thread *t = current_thread();
    if (!t)
        return;
    t->fault_start = bpf_ktime_get_ns();
    t->fault_address = address;
    t->fault_ip = ip;
    t->fault_error = error;
    t->fault_level = 0;
}

#ifdef HAVE_exceptions__page_fault_user
ON(exceptions, page_fault_user) { fault_begin(args->address, FAULT_IP(args), args->error_code); }
#endif

#ifdef HAVE_exceptions__page_fault_kernel
ON(exceptions, page_fault_kernel) { fault_begin(args->address, FAULT_IP(args), args->error_code); }
#endif

static __always_inline int fault_end(u64 address, u32 flags)
{
    struct thread *t = current_thread();
    if (!t)
        return 0;
    u64 now = bpf_ktime_get_ns();
    u8 level = t->fault_level, set = level ? VALID_HVA | VALID_LEVEL : VALID_HVA;
    if (t->fault_start && t->fault_address >> 12 == address >> 12)
        EMIT(t, KIND_HOST_FAULT, now, set | VALID_LATENCY | VALID_RIP | VALID_ARG, .hva = address, .level = level,
             .latency = now - t->fault_start, .rip = t->fault_ip, .arg = t->fault_error, .pages = 1,
             .flags = flags);
    else
        EMIT(t, KIND_HOST_FAULT, now, set, .hva = address, .level = level, .pages = 1, .flags = flags);
    t->fault_start = 0;
    return 0;
}

int on_host_fault_minor(struct fault_context *ctx) { return fault_end(ctx->address, 0); }
int on_host_fault_major(struct fault_context *ctx) { return fault_end(ctx->address, FLAG_MAJOR); }
