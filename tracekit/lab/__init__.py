"""Real guests on this host: a small KVM guest, QEMU Linux guests, calibration and validation."""
