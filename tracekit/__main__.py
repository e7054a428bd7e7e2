"""`python -m tracekit` is the same as the `tracekit` command."""

from tracekit.cli import main

main()
