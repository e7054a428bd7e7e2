// Faults of a guest with nested paging (EPT or NPT): kvm_exit -> kvm_page_fault -> entries -> kvm_entry,
// all in the vCPU's thread. The latency runs from the exit to the next entry into the guest, or to the
// return to the VMM where the fault is for the VMM to answer (MMIO).

#define VMX_EPT_VIOLATION 48
#define SVM_NPF 0x400
#define NPF_RESERVED 0x8

static __always_inline int is_memory_exit(u32 reason, u32 isa)
{
    return isa == 2 ? reason == SVM_NPF : (reason & 0xffff) == VMX_EPT_VIOLATION;
}

ON(kvm, kvm_exit)
{
#ifdef HAS_kvm__kvm_exit__isa
    u32 isa = args->isa;
#else
    u32 isa = HOST_ISA;
#endif
    if (!is_memory_exit(args->exit_reason, isa))
        return;
    struct thread *t = current_thread();
    if (!t)
        return;
    t->mmu_start = bpf_ktime_get_ns();
    t->mmu_rip = args->guest_rip;
#ifdef HAS_kvm__kvm_exit__vcpu_id
    t->vcpu = args->vcpu_id;
#endif
}

ON(kvm, kvm_page_fault)
{
    // NPT: a reserved bit is set where KVM marked the address as a device's. (EPT leaves those another way.)
    if (HOST_ISA == 2 && (args->error_code & NPF_RESERVED))
        return;
    struct thread *t = current_thread();
    if (!t)
        return;
    t->mmu_gva = args->fault_address;  // a guest physical address; wire.py knows
    t->mmu_error = args->error_code;
#ifdef HAS_kvm__kvm_page_fault__vcpu_id
    t->vcpu = args->vcpu_id;
#endif
    t->mmu_level = 0;
    t->mmu_pending = 1;
}

ON(kvmmmu, kvm_mmu_spte_requested)
{
    struct thread *t = current_thread();
    if (t && t->mmu_pending)
        t->mmu_level = REQUESTED_LEVEL(args);
}

static __always_inline void tdp_mapped(struct thread *t, u64 gfn, u8 level)
{
    if (t->mmu_pending && first_gfn(t->mmu_gva >> 12, level) == first_gfn(gfn, level)) {
        t->mmu_level = level;
    } else {
        EMIT(t, KIND_MAP, bpf_ktime_get_ns(), VALID_GFN | VALID_LEVEL, .gfn = gfn, .level = level, .pages = 1);
    }
}

#ifdef HAVE_kvmmmu__kvm_mmu_set_spte
ON(kvmmmu, kvm_mmu_set_spte)
{
    struct thread *t = current_thread();
    if (t)
        tdp_mapped(t, args->gfn, args->level);
}
#endif

#ifdef HAVE_kvmmmu__kvm_tdp_mmu_spte_changed
ON(kvmmmu, kvm_tdp_mmu_spte_changed)
{
    u64 spte = args->new_spte;
    u8 level = args->level;
    // A leaf that maps memory: readable/present (bit 0 in both formats), a large page above level 1
    // (bit 7), and no MMIO marker (NPT sets bit 51 and, since it has one, clears KVM's present bit 11).
    if (!(spte & 1) || (level > 1 && !(spte & 0x80)) || ((spte >> 51 & 1) && !(spte & 0x800)))
        return;
    struct thread *t = current_thread();
    if (t)
        tdp_mapped(t, args->gfn, level);
}
#endif

static __always_inline void tdp_finish(struct thread *t)
{
    u64 now = bpf_ktime_get_ns();
    u64 rip = t->mmu_start ? t->mmu_rip : 0;
    u8 set = VALID_GFN | VALID_ARG;
    if (t->mmu_level)
        set |= VALID_LEVEL;
    if (t->mmu_start)
        set |= VALID_LATENCY | VALID_RIP;
    // The error code does not tell the guest's mode; but the upper half of its addresses is its kernel's.
    EMIT(t, KIND_EPT_VIOLATION, now, set, .gfn = t->mmu_gva >> 12, .level = t->mmu_level,
         .latency = t->mmu_start ? now - t->mmu_start : 0, .rip = rip, .arg = t->mmu_error, .pages = 1,
         .flags = rip >> 63 ? FLAG_KERNEL : 0);
    t->mmu_pending = 0;
    t->mmu_start = 0;
}

ON(kvm, kvm_entry)
{
    struct thread *t = current_thread();
    if (!t)
        return;
    if (t->mmu_pending)
        tdp_finish(t);
    t->mmu_start = 0;
}

ON(kvm, kvm_userspace_exit)
{
    struct thread *t = current_thread();
    if (t && t->mmu_pending)
        tdp_finish(t);
}
