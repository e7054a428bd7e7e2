"""A whole KVM host with nested paging as a test machine in QEMU: its disks, the machine, and runs on it."""
