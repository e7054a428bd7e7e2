// Faults of a traced thread on its own memory: the exception is the start, the kernel's own page-fault
// count (software event, minor or major) the end. With a period of one no software event is throttled.
// Faults that KVM takes for a guest count in no software event: those are ept_violation records.

static __always_inline void fault_begin(u64 address, u64 error)
{
    struct thread *t = current_thread();
    if (!t)
        return;
    t->fault_start = bpf_ktime_get_ns();
    t->fault_address = address;
    t->fault_error = error;
    t->fault_level = 0;
}

#ifdef HAVE_exceptions__page_fault_user
ON(exceptions, page_fault_user) { fault_begin(args->address, args->error_code); }
#endif

#ifdef HAVE_exceptions__page_fault_kernel
ON(exceptions, page_fault_kernel) { fault_begin(args->address, args->error_code); }
#endif

static __always_inline int fault_end(struct fault_context *ctx, u32 flags)
{
    struct thread *t = current_thread();
    if (!t)
        return 0;
    u64 now = bpf_ktime_get_ns(), address = ctx->address, ip = FAULT_IP(ctx);
    u8 level = t->fault_level, set = VALID_HVA | VALID_RIP | (level ? VALID_LEVEL : 0);
    if (t->fault_start && t->fault_address >> 12 == address >> 12)
        EMIT(t, KIND_HOST_FAULT, now, set | VALID_LATENCY | VALID_ARG, .hva = address, .level = level,
             .latency = now - t->fault_start, .rip = ip, .arg = t->fault_error, .pages = 1, .flags = flags);
    else
        EMIT(t, KIND_HOST_FAULT, now, set, .hva = address, .level = level, .rip = ip, .pages = 1, .flags = flags);
    t->fault_start = 0;
    return 0;
}

int on_host_fault_minor(struct fault_context *ctx) { return fault_end(ctx, 0); }
int on_host_fault_major(struct fault_context *ctx) { return fault_end(ctx, FLAG_MAJOR); }
