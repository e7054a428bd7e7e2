"""One module per mechanism, each behind the same small interface."""
