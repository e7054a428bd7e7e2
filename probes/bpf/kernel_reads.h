// Reading the kernel's own structures, by the offsets that its type information tells (raw.py).

static __always_inline u64 kernel_u64(u64 address)
{
    u64 value = 0;
    bpf_probe_read_kernel(&value, sizeof(value), (void *)address);
    return value;
}

// The file (struct file) that a descriptor of the current process is, while the system call that names it runs; 0 where it
// is none, or this kernel has no type information.
static __always_inline u64 file_of(s32 fd)
{
#if defined(TASK_FILES_OFFSET) && defined(FILES_TABLE_OFFSET) && defined(TABLE_FILES_OFFSET) && defined(TABLE_SIZE_OFFSET)
    u64 table = kernel_u64(kernel_u64(bpf_get_current_task() + TASK_FILES_OFFSET) + FILES_TABLE_OFFSET);
    if (fd >= 0 && fd < (s32)kernel_u64(table + TABLE_SIZE_OFFSET))
        return kernel_u64(kernel_u64(table + TABLE_FILES_OFFSET) + 8 * (u64)(u32)fd);
#endif
    return 0;
}
