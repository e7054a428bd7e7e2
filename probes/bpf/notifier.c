// The host takes mappings away, or reads and clears their accessed bits: KVM's MMU notifiers. They fire in
// whichever thread does it (the VMM, kswapd, ksmd, khugepaged, another process) and name no VM: from a
// thread that is not traced the VM is unknown here, and user space tells it by the address.

static __always_inline void notified(u8 kind, u64 now, u64 start, u32 pages)
{
    struct thread *t = current_thread();
    EMIT_AS(t ? t->vm : VM_UNKNOWN, -1, kind, now, VALID_HVA, .hva = start, .pages = pages);
}

#ifdef HAVE_kvm__kvm_unmap_hva_range
ON(kvm, kvm_unmap_hva_range)
{
    u32 tid = bpf_get_current_pid_tgid();
    struct unmapping last = {.hva = args->start, .ts = bpf_ktime_get_ns(),
                             .pages = (args->end - args->start + 4095) >> 12};
    unmappings.update(&tid, &last);
    notified(KIND_UNMAP, last.ts, last.hva, last.pages);
}
#endif

#ifdef HAVE_kvm__kvm_age_hva
ON(kvm, kvm_age_hva)
{
    notified(KIND_AGE, bpf_ktime_get_ns(), args->start, (args->end - args->start + 4095) >> 12);
}
#endif
