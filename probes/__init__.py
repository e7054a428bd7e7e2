"""The eBPF side: programs in bpf/, loaded through bcc, their ring buffer read as numpy columns."""
