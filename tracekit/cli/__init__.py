"""The command line: one module per command, each parses, calls the library and prints. No logic."""

from tracekit.cli.app import main

__all__ = ["main"]
