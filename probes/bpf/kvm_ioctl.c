// What a VMM tells KVM: memslots as they are made (so gpa <-> hva is exact), and which thread runs which
// vCPU. Only calls that succeeded are recorded.

#define KVM_CREATE_VM 0xae01
#define KVM_CREATE_VCPU 0xae41
#define KVM_RUN 0xae80
#define KVM_SET_USER_MEMORY_REGION 0x4020ae46
#define KVM_SET_USER_MEMORY_REGION2 0x40a0ae49

struct memory_region {  // the first 32 bytes of both calls' argument
    u32 slot, flags;
    u64 gpa, size, hva;
};

// The memslots as they stand, for probes that must read the guest's memory. A process may have several VMs, each with a slot
// of that number: so by the descriptor of the VM (-1 = it was made before the recording, and may be any).
struct slot_key {
    u32 tgid;
    s32 vm_fd;
    u32 slot;
};
BPF_HASH(memslots, struct slot_key, struct memory_region, 65536);

// The vCPU's number, and its VM's descriptor, by the file descriptor that KVM_CREATE_VCPU returned.
struct vcpu_key {
    u32 tgid, fd;
};
struct vcpu_id {
    u32 number;
    s32 vm_fd;
};
BPF_HASH(vcpus, struct vcpu_key, struct vcpu_id, 16384);

// How many vCPUs have been made: a thread looks again whose it runs, as one that is gone may have had the same descriptor.
BPF_ARRAY(vcpus_made, u32, 1);

// How often a descriptor has been given to a new VM while we looked: it is another one from then on.
#define DESCRIPTOR_BITS 20
BPF_HASH(machines, struct vcpu_key, u32, 16384);

// A VM's name: the first descriptor by which it was seen, and the above. A VMM may work through duplicates of that (dup,
// crosvm does): they are known by what they stand for (struct kvm).
BPF_HASH(machine_names, u64, s32, 16384);

static __always_inline u64 machine_behind(s32 fd)
{
#ifdef FILE_PRIVATE_OFFSET
    u64 file = file_of(fd);
    return file ? kernel_u64(file + FILE_PRIVATE_OFFSET) : 0;
#else
    return 0;
#endif
}

static __always_inline s32 machine_of(u32 tgid, u32 fd)
{
    struct vcpu_key key = {.tgid = tgid, .fd = fd};
    u32 *times = machines.lookup(&key);
    s32 name = times ? fd | *times << DESCRIPTOR_BITS : fd;
    u64 machine = machine_behind(fd);
    if (!machine)
        return name;
    s32 *known = machine_names.lookup(&machine);
    if (known)
        return *known;
    machine_names.update(&machine, &name);
    return name;
}

ON(syscalls, sys_enter_ioctl)
{
    u32 cmd = args->cmd;
    if ((cmd >> 8 & 0xff) != 0xae)
        return;
    struct thread *t = current_thread();
    if (!t)
        return;
    if (cmd == KVM_RUN) {
        s32 fd = args->fd;
        u32 zero = 0, *made = vcpus_made.lookup(&zero);
        if (made && (fd != t->vcpu_fd || *made != t->vcpus_made)) {
            struct vcpu_key key = {.tgid = t->tgid, .fd = fd};
            struct vcpu_id *id = vcpus.lookup(&key);
            t->vcpu_fd = fd;
            t->vcpus_made = *made;
            if (id) {
                t->vcpu = id->number;
                t->vm_fd = id->vm_fd;
            }
        }
        return;
    }
    if (cmd == KVM_CREATE_VCPU) {
        t->call_a = args->arg;
    } else if (cmd == KVM_SET_USER_MEMORY_REGION || cmd == KVM_SET_USER_MEMORY_REGION2) {
        struct memory_region region = {};
        if (bpf_probe_read_user(&region, sizeof(region), (void *)args->arg)) {
            lose(LOST_UNREADABLE_ARGUMENT);
            return;
        }
        t->call_a = (u64)region.flags << 32 | region.slot;
        t->call_b = region.gpa;
        t->call_c = region.size;
        t->call_d = region.hva;
    } else if (cmd != KVM_CREATE_VM) {
        return;
    }
    t->call = cmd;
    t->call_e = cmd == KVM_CREATE_VM ? 0 : machine_of(t->tgid, args->fd);
    t->call_start = bpf_ktime_get_ns();
}

ON(syscalls, sys_exit_ioctl)
{
    struct thread *t = current_thread();
    if (!t)
        return;
    u32 cmd = t->call;
    if (cmd != KVM_CREATE_VM && cmd != KVM_CREATE_VCPU && cmd != KVM_SET_USER_MEMORY_REGION &&
        cmd != KVM_SET_USER_MEMORY_REGION2)
        return;
    t->call = 0;
    s64 ret = args->ret;
    if (ret < 0)
        return;
    if (cmd == KVM_CREATE_VM) {
        struct vcpu_key key = {.tgid = t->tgid, .fd = ret};
        u32 *before = machines.lookup(&key), times = before ? (*before + 1) & 0x7ff : 0;
        machines.update(&key, &times);
        u64 machine = machine_behind(ret);
        s32 name = ret | times << DESCRIPTOR_BITS;
        if (machine)  // by which another one may have been known, that is gone
            machine_names.update(&machine, &name);
        return;
    }
    if (cmd == KVM_CREATE_VCPU) {
        struct vcpu_key key = {.tgid = t->tgid, .fd = ret};
        struct vcpu_id id = {.number = t->call_a, .vm_fd = t->call_e};
        vcpus.update(&key, &id);
        u32 zero = 0, *made = vcpus_made.lookup(&zero);
        if (made)
            lock_xadd(made, 1);
        return;
    }
    u64 now = bpf_ktime_get_ns();
    struct slot_key key = {.tgid = t->tgid, .vm_fd = t->call_e, .slot = (u32)t->call_a};
    struct memory_region region = {.slot = (u32)t->call_a, .flags = t->call_a >> 32, .gpa = t->call_b,
                                   .size = t->call_c, .hva = t->call_d};
    if (region.size)
        memslots.update(&key, &region);
    else
        memslots.delete(&key);
    // The size goes in bytes in `rip`, the slot's flags above its number in `arg` and the VM's descriptor in `pages`:
    // memslots.py makes rows of them.
    EMIT(t, KIND_MEMSLOT, now, VALID_GFN | VALID_HVA | VALID_LATENCY | VALID_ARG, .gfn = t->call_b >> 12,
         .hva = t->call_d, .latency = now - t->call_start, .arg = t->call_a, .rip = t->call_c,
         .pages = t->call_e);
}
