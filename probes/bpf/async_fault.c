// KVM's asynchronous page faults: the guest is told that a page is not present, the page arrives (in a
// worker of the kernel), the guest is told that it is ready. gfn and latency come from the first of them.

struct waiting {
    u64 since, gfn;
    u16 vm;
    s16 vcpu;
};
// By the faulting address, all there is in all three events. Two VMs that wait for the same address at once
// share an entry: then neither's latency is given and the VM is told by the page's host address.
BPF_HASH(waiting, u64, struct waiting, 65536);

#ifdef HAVE_kvm__kvm_try_async_get_page
ON(kvm, kvm_try_async_get_page)
{
    struct thread *t = current_thread();
    if (t)
        t->async_gfn = args->gfn;
}
#endif

ON(kvm, kvm_async_pf_not_present)
{
    struct thread *t = current_thread();
    if (!t)
        return;
    u64 now = bpf_ktime_get_ns(), address = args->gva;
    struct waiting entry = {.since = now, .gfn = t->async_gfn, .vm = t->vm, .vcpu = t->vcpu};
    struct waiting *before = waiting.lookup(&address);
    if (before && before->vm != t->vm)
        entry.vm = VM_UNKNOWN;
    if (waiting.update(&address, &entry))
        lose(LOST_TABLE_FULL);
#ifdef HAVE_kvm__kvm_try_async_get_page
    EMIT(t, KIND_APF_NOT_PRESENT, now, VALID_GFN | VALID_ARG, .gfn = t->async_gfn, .arg = args->token, .pages = 1);
#else
    EMIT(t, KIND_APF_NOT_PRESENT, now, VALID_ARG, .arg = args->token, .pages = 1);
#endif
}

ON(kvm, kvm_async_pf_completed)
{
    u64 now = bpf_ktime_get_ns(), address = args->gva, hva = args->address;
    struct waiting *entry = waiting.lookup(&address);
    if (entry && entry->vm != VM_UNKNOWN)
        EMIT_AS(entry->vm, entry->vcpu, KIND_APF_COMPLETED, now, VALID_HVA | VALID_GFN | VALID_LATENCY, .hva = hva,
                .gfn = entry->gfn, .latency = now - entry->since, .pages = 1);
    else
        EMIT_AS(VM_UNKNOWN, -1, KIND_APF_COMPLETED, now, VALID_HVA, .hva = hva, .pages = 1);
}

ON(kvm, kvm_async_pf_ready)
{
    struct thread *t = current_thread();
    if (!t)
        return;
    u64 now = bpf_ktime_get_ns(), address = args->gva;
    struct waiting *entry = waiting.lookup(&address);
    if (entry && entry->vm == t->vm)
        EMIT(t, KIND_APF_READY, now, VALID_GFN | VALID_LATENCY | VALID_ARG, .gfn = entry->gfn,
             .latency = now - entry->since, .arg = args->token, .pages = 1);
    else
        EMIT(t, KIND_APF_READY, now, VALID_ARG, .arg = args->token, .pages = 1);
    if (entry)
        waiting.delete(&address);
}
