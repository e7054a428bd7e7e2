// What the recorder starts while it records from inside a guest (the process that compiles its inner loops) is its own,
// and so is what that starts. The recorded command was there before.

#define CLONE_THREAD 0x00010000

ON(task, task_newtask)
{
    u32 zero = 0, tgid = args->pid;
    u8 yes = 1;
    u32 *started = own_started.lookup(&zero);
    if (args->clone_flags & CLONE_THREAD || !started || !is_own(bpf_get_current_pid_tgid()))
        return;
    own_processes.update(&tgid, &yes);
    *started = 1;
}

// Not when it exits: its memory goes after that.
ON(sched, sched_process_free)
{
    u32 tgid = args->pid;
    own_processes.delete(&tgid);
}
