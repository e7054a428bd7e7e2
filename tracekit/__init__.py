"""tracekit: record what a VM's memory really did, then replay it through an enlightened-memory model."""
