// Hypercalls of a guest: KVM's own, and Hyper-V's with the extended memory calls (0x8001-0x8006) decoded.
// A memory heat hint's ranges stand in the guest's input page, which is read here and now, through the
// memslots: a moment later the guest may have written it anew.

#define KVM_HC_MAP_GPA_RANGE 12
#define HV_EXT_MEMORY_HEAT_HINT 0x8003
#define HV_EXT_MEMORY_HEAT_HINT_ASYNC 0x8006
#define MAX_SLOTS 64
#define MAX_HINTS 256  // what the verifier lets through; the input page holds up to 511

#ifdef HAVE_kvm__kvm_hypercall
ON(kvm, kvm_hypercall)
{
    struct thread *t = current_thread();
    if (!t)
        return;
    u64 now = bpf_ktime_get_ns(), nr = args->nr;
    if (nr == KVM_HC_MAP_GPA_RANGE)
        EMIT(t, KIND_HYPERCALL, now, VALID_ARG | VALID_GFN, .arg = nr, .gfn = args->a0 >> 12, .pages = args->a1);
    else
        EMIT(t, KIND_HYPERCALL, now, VALID_ARG, .arg = nr);
}
#endif

#ifdef HAVE_kvm__kvm_hv_hypercall
// The host address of a guest page, or 0. Slots by their number: a VMM numbers them from 0 on.
static __always_inline u64 hva_of_gpa(struct thread *t, u64 gpa)
{
    u64 hva = 0;
    for (u32 slot = 0; slot < MAX_SLOTS; slot++) {
        struct slot_key key = {.tgid = t->tgid, .vm_fd = t->vm_fd, .slot = slot};
        struct memory_region *region = memslots.lookup(&key);
        if (region && gpa >= region->gpa && gpa - region->gpa < region->size) {
            hva = region->hva + (gpa - region->gpa);
            break;
        }
    }
    return hva;
}

ON(kvm, kvm_hv_hypercall)
{
    struct thread *t = current_thread();
    if (!t)
        return;
    u64 now = bpf_ktime_get_ns(), input = args->ingpa;
    u32 code = args->code, count = args->rep_cnt;
    if (args->fast)
        EMIT(t, KIND_HV_HYPERCALL, now, VALID_ARG, .arg = code, .pages = count);
    else
        EMIT(t, KIND_HV_HYPERCALL, now, VALID_ARG | VALID_GFN, .arg = code, .gfn = input >> 12, .pages = count);
    if (args->fast || (code != HV_EXT_MEMORY_HEAT_HINT && code != HV_EXT_MEMORY_HEAT_HINT_ASYNC))
        return;
    // struct { u64 heat_type:2, reserved:62; union hv_gpa_page_range ranges[]; }
    u64 page = hva_of_gpa(t, input), heat = 0;
    if (!page || bpf_probe_read_user(&heat, sizeof(heat), (void *)page)) {
        lose_many(LOST_UNREADABLE_ARGUMENT, count);
        return;
    }
    // The call's own record has the plain code; each range's has 1 + heat type above it.
    u64 arg = code | (1 + (heat & 3)) << 16;
    // What all ranges share lies ready on the stack. The verifier of kernels before 6.7 takes a loop for endless
    // whose counter is not in a register, and with all this in registers it would not be.
    struct record same = {.ts = now, .kind = KIND_HV_HYPERCALL, .tid = (u32)bpf_get_current_pid_tgid(),
                          .vm = t->vm, .vcpu = t->vcpu >= 0 ? t->vcpu : 0,
                          .valid = VALID_ARG | VALID_GFN | VALID_LEVEL | (t->vcpu >= 0 ? VALID_VCPU : 0),
                          .arg = arg};
    asm volatile("" : : "r"(&same) : "memory");
    u32 i, reason = LOST_REASONS;
    for (i = 0; i < MAX_HINTS; i++) {
        asm volatile("" : "+r"(i));  // else both bounds become one that the verifier can't tell
        if (i >= count)
            break;
        u64 range = 0;
        if (bpf_probe_read_user(&range, sizeof(range), (void *)(page + 8 + 8 * i))) {
            reason = LOST_UNREADABLE_ARGUMENT;
            break;
        }
        struct record *r = ring.ringbuf_reserve(sizeof(struct record));
        if (!r) {
            reason = LOST_RING_FULL + KIND_HV_HYPERCALL;
            break;
        }
        // additional_pages:11, largepage:1, then basepfn:52, or page_size:1 (0 = 2M, 1 = 1G), 8 reserved,
        // base_large_pfn:43 in units of 2 MiB.
        u64 units = (range & 0x7ff) + 1;
        u8 level = !(range & 0x800) ? 1 : !(range & 0x1000) ? 2 : 3;
        *r = same;
        r->level = level;
        r->gfn = level == 1 ? range >> 12 : range >> 21 << 9;
        r->pages = units << (9 * (level - 1));
        submit(r);
    }
    if (i == MAX_HINTS && i < count)
        reason = LOST_RANGES_CUT;
    if (reason != LOST_REASONS)
        lose_many(reason, count - i);
}
#endif
