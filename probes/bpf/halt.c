// A vCPU had nothing to do and its thread waited: vcpu_block when it slept, vcpu_wake when polling for work
// was enough. The record comes at the end; the latency is how long the wait was, as KVM measured it.

ON(kvm, kvm_vcpu_wakeup)
{
    struct thread *t = current_thread();
    if (!t)
        return;
    EMIT(t, args->waited ? KIND_VCPU_BLOCK : KIND_VCPU_WAKE, bpf_ktime_get_ns(), VALID_LATENCY,
         .latency = args->ns);
}
