// The host takes mappings away, or reads and clears their accessed bits: KVM's MMU notifiers. They fire in
// whichever thread does it (the VMM, kswapd, ksmd, khugepaged, another process) and name no VM: from a
// thread that is not traced the VM is unknown here, and user space tells it by the address.

static __always_inline void notified(u8 kind, u64 start, u64 end)
{
    struct thread *t = current_thread();
    EMIT_AS(t ? t->vm : VM_UNKNOWN, -1, kind, bpf_ktime_get_ns(), VALID_HVA, .hva = start,
            .pages = (end - start + 4095) >> 12);
}

#ifdef HAVE_kvm__kvm_unmap_hva_range
ON(kvm, kvm_unmap_hva_range) { notified(KIND_UNMAP, args->start, args->end); }
#endif

#ifdef HAVE_kvm__kvm_age_hva
ON(kvm, kvm_age_hva) { notified(KIND_AGE, args->start, args->end); }
#endif
