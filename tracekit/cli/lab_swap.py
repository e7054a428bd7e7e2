"""`tracekit lab swap`: a Linux guest whose faults wait for the host's swap."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from tracekit.cli.output import next_command, print_json, stdout
from tracekit.cli.sizes import parse_size

__all__ = ["swap"]


def swap(
    touch: Annotated[
        int,
        typer.Option(
            parser=parse_size, metavar="SIZE", help="Memory to write, page by page.", show_default="40M"
        ),
    ] = 40 << 20,
    limit: Annotated[
        int,
        typer.Option(
            parser=parse_size, metavar="SIZE", help="Host memory left to the VM.", show_default="120M"
        ),
    ] = 120 << 20,
    memory: Annotated[
        int, typer.Option(parser=parse_size, metavar="SIZE", help="Guest memory.", show_default="256M")
    ] = 256 << 20,
    passes: Annotated[int, typer.Option(min=1, help="Write all of it this many times.")] = 2,
    think: Annotated[int, typer.Option(min=0, help="Loop turns computed after each write.")] = 0,
    siblings: Annotated[int, typer.Option(min=0, max=64, help="Other threads that compute meanwhile.")] = 0,
    sibling_turns: Annotated[
        int, typer.Option(min=10_000, help="Loop turns that each sibling computes.")
    ] = 20_000_000,
    async_faults: Annotated[
        Literal["on", "off"], typer.Option(help="off: the guest declines asynchronous page faults.")
    ] = "on",
    kit: Annotated[
        Path | None,
        typer.Option(envvar="TRACEKIT_GUEST_KIT", help="Folder with vmlinuz and initramfs."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the account as JSON.")] = False,
) -> None:
    """Let a Linux guest touch more than its host has memory for: its faults wait for swap."""
    from tracekit.lab.swapping_guest import SwapPlan, run_swap_plan

    account = run_swap_plan(
        SwapPlan(
            memory_bytes=memory,
            limit_bytes=limit,
            touch_bytes=touch,
            passes=passes,
            think=think,
            siblings=siblings,
            sibling_turns=sibling_turns,
            async_faults=async_faults == "on",
            kit=kit,
        )
    )
    if json:
        print_json(account)
    else:
        stdout().print(
            f"touched in {account['touch_s']:.2f} s, all done after {account['wall_s']:.2f} s; the host read"
            f" {account['major_faults']:,} pages from swap",
            highlight=False,
        )
    next_command("tracekit record -- tracekit lab swap …")
