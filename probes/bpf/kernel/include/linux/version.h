#pragma once
// bcc's prelude asks only whether the kernel is newer than 4.8; the ring buffer needs 5.8 anyway.
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
#define LINUX_VERSION_CODE KERNEL_VERSION(5, 8, 0)
