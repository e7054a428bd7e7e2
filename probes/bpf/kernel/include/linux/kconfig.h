// A kernel-header tree just large enough for bcc's prelude. The programs use tracepoint arguments and
// basic types only, so no kernel headers need be installed, and none can be of the wrong version.
#define CONFIG_BPF_SYSCALL 1
#define PAGE_SIZE 4096
