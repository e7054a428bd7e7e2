// The memslots of a VM that runs already, read from KVM's own structures: run once, by the recorder itself, on a
// descriptor of the VM that it has borrowed (memslot_walk.py). Not one of the probes: nothing attaches it.

struct slot {
    u64 gpa, size, hva;
    u32 number, flags;
};
BPF_ARRAY(found, struct slot, MOST_SLOTS);
BPF_ARRAY(count, u32, 1);  // how many; more than there is room for where some were left out
BPF_ARRAY(machine, u64, 1);  // which VM it was: two descriptors may be of one

#define BUCKETS 128  // of kvm_memslots.id_hash
#define DEPTH 24

int walk(struct bpf_raw_tracepoint_args *context)
{
    u64 kvm = kernel_u64(file_of(context->args[0]) + FILE_PRIVATE_OFFSET);
    u64 slots = kernel_u64(kvm + VM_MEMSLOTS_OFFSET);
    u64 nodes = SLOT_NODES_OFFSET + 16 * (u32)kernel_u64(slots + MEMSLOTS_INDEX_OFFSET);
    u32 n = 0, zero = 0;
    for (u32 bucket = 0; bucket < BUCKETS; bucket++) {
        u64 node = kernel_u64(slots + MEMSLOTS_HASH_OFFSET + 8 * bucket);
        for (u32 depth = 0; depth < DEPTH && node; depth++) {
            u64 slot = node - nodes;
            struct slot one = {.gpa = kernel_u64(slot + SLOT_GFN_OFFSET) << 12,
                               .size = kernel_u64(slot + SLOT_PAGES_OFFSET) << 12,
                               .hva = kernel_u64(slot + SLOT_HVA_OFFSET),
                               .number = (u16)kernel_u64(slot + SLOT_NUMBER_OFFSET),
                               .flags = (u16)kernel_u64(slot + SLOT_FLAGS_OFFSET)};  // above are KVM's own
            if (n < MOST_SLOTS)
                found.update(&n, &one);
            n++;
            node = kernel_u64(node);
        }
        if (node)
            n = MOST_SLOTS + 1;
    }
    count.update(&zero, &n);
    machine.update(&zero, &kvm);
    return 0;
}
