"""The list of commands in `--help`: each with its whole first sentence."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

__all__ = ["CommandList"]


class CommandList(TyperGroup):
    """A group of commands whose help cuts no line short."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a row for each command."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [
            (name, one.get_short_help_str(limit=1000)) for name, one in commands if one and not one.hidden
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
