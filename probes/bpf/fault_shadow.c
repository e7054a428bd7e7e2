// Faults of a guest whose KVM shadows its page tables (PVM, or VMX/SVM without EPT/NPT):
// kvm_mmu_pagetable_walk -> kvm_mmu_spte_requested -> kvm_mmu_set_spte, all in the vCPU's thread.
// A walk that asks for no entry was the guest's own fault or the emulator's look-up: it leaves no record.
// The latency runs from the walk to the entry's being set; the switch out of and into the guest is outside.

static __always_inline void shadow_finish(struct thread *t, u64 now)
{
    u8 set = VALID_GFN | VALID_LEVEL | VALID_ARG;
    if (t->mmu_start)
        set |= VALID_GVA | VALID_LATENCY;
    EMIT(t, KIND_EPT_VIOLATION, now, set, .gfn = t->mmu_gfn, .level = t->mmu_level, .gva = t->mmu_gva,
         .latency = t->mmu_start ? now - t->mmu_start : 0, .arg = t->mmu_error, .pages = 1);
    t->mmu_pending = 0;
    t->mmu_start = 0;
    t->mmu_gva = 0;
    t->mmu_error = 0;
}

// The entry asked for was there already (another vCPU was quicker): the fault ended when it was asked for.
static __always_inline void shadow_finish_unset(struct thread *t)
{
    if (t->mmu_pending)
        shadow_finish(t, t->mmu_requested);
}

ON(kvmmmu, kvm_mmu_pagetable_walk)
{
    struct thread *t = current_thread();
    if (!t)
        return;
    shadow_finish_unset(t);
    t->mmu_start = bpf_ktime_get_ns();
    t->mmu_gva = args->addr;
    t->mmu_error = args->pferr;
}

ON(kvmmmu, kvm_mmu_spte_requested)
{
    struct thread *t = current_thread();
    if (!t)
        return;
    shadow_finish_unset(t);
    t->mmu_requested = bpf_ktime_get_ns();
    t->mmu_gfn = REQUESTED_GFN(args);
    t->mmu_level = REQUESTED_LEVEL(args);
    t->mmu_pending = 1;
}

ON(kvmmmu, kvm_mmu_set_spte)
{
    struct thread *t = current_thread();
    if (!t)
        return;
    u64 now = bpf_ktime_get_ns(), gfn = args->gfn;
    u8 level = args->level;
    if (t->mmu_pending && level == t->mmu_level && first_gfn(t->mmu_gfn, level) == first_gfn(gfn, level))
        shadow_finish(t, now);
    else
        EMIT(t, KIND_MAP, now, VALID_GFN | VALID_LEVEL, .gfn = gfn, .level = level, .pages = 1);
}

ON(kvm, kvm_userspace_exit)
{
    struct thread *t = current_thread();
    if (!t)
        return;
    shadow_finish_unset(t);
    t->mmu_start = 0;
}
