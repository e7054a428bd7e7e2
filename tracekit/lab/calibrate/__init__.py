"""What memory operations cost on this host, measured with a real guest and the real kernel."""
