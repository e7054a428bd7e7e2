"""The trace on disk: schema, writer, reader, recover, loss ledger. Knows nothing of bcc or of models."""
