// Who is traced: children and threads of traced threads join, the dead leave, a stopped child starts at exec.

#define CLONE_THREAD 0x00010000

static __always_inline u32 add_process(struct process *p)
{
    u32 zero = 0;
    u32 *next = next_vm.lookup(&zero);
    if (!next)
        return VM_UNKNOWN;
    for (u32 tries = 0; tries < 64; tries++) {
        u32 vm = *next + tries;
        if (vm >= MAX_PROCESSES)
            break;
        if (!processes.insert(&vm, p)) {
            *next = vm + 1;
            return vm;
        }
    }
    return VM_UNKNOWN;
}

ON(task, task_newtask)
{
    struct thread *parent = current_thread();
    if (!parent)
        return;
    struct thread child = {};
    child.vcpu = -1;
    child.vcpu_fd = child.vm_fd = -1;
    u32 tid = args->pid;
    if (args->clone_flags & CLONE_THREAD) {
        child.vm = parent->vm;
        child.tgid = parent->tgid;
    } else {
        struct process p = {.tgid = tid, .parent = parent->tgid};
        u32 vm = add_process(&p);
        if (vm == VM_UNKNOWN) {
            lose(LOST_UNTRACED_PROCESS);
            return;
        }
        child.vm = vm;
        child.tgid = tid;
    }
    if (threads.update(&tid, &child))
        lose(LOST_UNTRACED_THREAD);
}

ON(sched, sched_process_exec)
{
    u32 tid = args->pid, old = args->old_pid;
    struct thread *t = threads.lookup(&old);
    if (!t)
        return;
    struct thread now = {};
    now.vm = t->vm;
    now.tgid = t->tgid;
    now.vcpu = -1;
    now.vcpu_fd = now.vm_fd = -1;
    if (old != tid)  // a thread that was not the first one called exec: it takes over the first one's id
        threads.delete(&old);
    threads.update(&tid, &now);
}

ON(sched, sched_process_exit)
{
    u32 tid = bpf_get_current_pid_tgid();
    threads.delete(&tid);
}
