"""`tracekit lab`: real guests on this host."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from tracekit.cli import lab_host, lab_swap, lab_validate
from tracekit.cli.listing import CommandList
from tracekit.cli.output import next_command, print_json, stderr, stdout
from tracekit.cli.sizes import parse_size

__all__ = ["app"]

app = typer.Typer(cls=CommandList, help="Real guests on this host.", no_args_is_help=True)
app.add_typer(lab_host.app, name="host")
app.command()(lab_validate.validate)
app.command()(lab_swap.swap)

_PAGE_BYTES = {"4k": 4096, "2m": 2 << 20}


@app.command()
def guest(
    pages: Annotated[int, typer.Option(min=1, help="Pages to touch, one write or read each.")] = 4096,
    use: Annotated[
        int, typer.Option(min=0, metavar="PAGES", help="Touch only so many of them (0: all); all are zeroed.")
    ] = 0,
    memory: Annotated[
        int | None,
        typer.Option(parser=parse_size, metavar="SIZE", help="Guest memory (default: just enough)."),
    ] = None,
    order: Annotated[
        Literal["seq", "random", "stride"], typer.Option(help="Order in which each vCPU visits its pages.")
    ] = "seq",
    stride: Annotated[
        int, typer.Option(min=1, help="Pages from one touch to the next with --order stride.")
    ] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Seed of --order random.")] = 0,
    access: Annotated[
        Literal["write", "read", "read-first"],
        typer.Option(help="What a touch does; read-first: later passes write."),
    ] = "write",
    zero_first: Annotated[
        bool, typer.Option("--zero-first", help="The guest zeroes its pages first.")
    ] = False,
    vcpus: Annotated[
        int, typer.Option(min=1, max=64, help="vCPUs; vCPU v of n takes pages v, v+n, v+2n, …")
    ] = 1,
    page_size: Annotated[
        Literal["4k", "2m"], typer.Option(help="The host's backing: 4 KiB or huge pages.")
    ] = "4k",
    step: Annotated[
        int | None,
        typer.Option(parser=parse_size, metavar="SIZE", help="Bytes from page to page (default: page size)."),
    ] = None,
    prealloc: Annotated[
        bool, typer.Option("--prealloc", help="The host populates all memory first.")
    ] = False,
    pre_fault: Annotated[
        bool, typer.Option("--pre-fault", help="KVM then maps it into the guest (KVM_PRE_FAULT_MEMORY).")
    ] = False,
    warm_up: Annotated[
        bool,
        typer.Option(
            "--warm-up", help="Touch and free as much host memory first: a host that is a VM has it."
        ),
    ] = False,
    passes: Annotated[int, typer.Option(min=1, help="Touch all pages this many times.")] = 1,
    think: Annotated[int, typer.Option(min=0, help="Loop turns the guest computes between touches.")] = 0,
    hot_add: Annotated[
        int, typer.Option(min=0, metavar="PAGES", help="Add so many pages at run time and touch them too.")
    ] = 0,
    enlightened: Annotated[
        Literal["off", "port", "hyperv"],
        typer.Option(help="The guest asks what is zeroed, by I/O port or Hyper-V's calls."),
    ] = "off",
    unanswered: Annotated[
        bool, typer.Option("--unanswered", help="The VMM knows none of an enlightened guest's calls.")
    ] = False,
    hint: Annotated[
        Literal["hot", "cold", "discard"] | None, typer.Option(help="Heat hints an enlightened guest gives.")
    ] = None,
    hint_batch: Annotated[int, typer.Option(min=1, help="Pages of a hint (a power of 2).")] = 512,
    hint_lead: Annotated[int, typer.Option(help="Batches that a hint is ahead; negative: behind.")] = 1,
    cgroup: Annotated[
        str, typer.Option(metavar="FOLDER", help="Charge the guest's memory to this cgroup.")
    ] = "",
    twins: Annotated[
        bool, typer.Option("--twins", help="The second half of the pages holds what the first half does.")
    ] = False,
    mergeable: Annotated[
        bool, typer.Option("--mergeable", help="KSM may merge its memory; wait for ksmd after each pass.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Start on a line on stdin (to attach to the VM before).")
    ] = False,
    hold: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Keep the VM this long after it is done.")
    ] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print the whole run as JSON.")] = False,
) -> None:
    """Run a small KVM guest that touches exactly the pages it is told to, and say what it did."""
    import sys
    import time

    from tracekit.lab.guest_plan import GuestPlan
    from tracekit.lab.small_guest import SmallGuest

    plan = GuestPlan(
        pages=pages,
        use_pages=use,
        memory_bytes=memory or 0,
        order=order,
        stride=stride,
        seed=seed,
        access=access,
        zero_first=zero_first,
        vcpus=vcpus,
        page_bytes=_PAGE_BYTES[page_size],
        step_bytes=step or 0,
        prealloc=prealloc,
        pre_fault=pre_fault,
        warm_up=warm_up,
        passes=passes,
        think=think,
        hot_add_pages=hot_add,
        enlightened=enlightened,
        answered=not unanswered,
        hint=hint,
        hint_batch=hint_batch,
        hint_lead=hint_lead,
        cgroup=cgroup,
        twins=twins,
        mergeable=mergeable,
    )
    with SmallGuest(plan) as small_guest:
        if wait:
            stderr().print("ready: the VM is built; a line on stdin starts it")
            sys.stdin.readline()
        run = small_guest.run()
        if json:
            print_json(run.to_json())
        else:
            stdout().print(run.summary(), highlight=False)
        sys.stdout.flush()
        time.sleep(hold)
    next_command("tracekit record -- tracekit lab guest …")


@app.command()
def linux(
    memory: Annotated[
        int, typer.Option(parser=parse_size, metavar="SIZE", help="Guest memory.", show_default="1G")
    ] = 1 << 30,
    vcpus: Annotated[int, typer.Option(min=1, max=64, help="vCPUs.")] = 1,
    free_page_reporting: Annotated[
        Literal["on", "off"], typer.Option(help="The guest reports free pages, QEMU discards them.")
    ] = "on",
    alloc: Annotated[
        int, typer.Option(parser=parse_size, metavar="SIZE", help="Fill and free this much guest memory.")
    ] = 0,
    balloon: Annotated[
        int,
        typer.Option(parser=parse_size, metavar="SIZE", help="Inflate until the guest has SIZE; deflate."),
    ] = 0,
    accel: Annotated[
        Literal["auto", "tcg", "kvm"], typer.Option(help="auto: KVM where it can run Linux, else TCG.")
    ] = "auto",
    run: Annotated[
        list[str] | None, typer.Option(metavar="COMMAND", help="Shell command for the guest (repeatable).")
    ] = None,
    settle: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Wait after freeing, for reports to come.")
    ] = 5.0,
    page_events: Annotated[
        bool,
        typer.Option("--page-events", help="The guest's kernel tells of its pages (in --json)."),
    ] = False,
    guest_trace: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Write what it tells as a trace, for tracekit merge."),
    ] = None,
    prealloc: Annotated[
        bool, typer.Option("--prealloc", help="The host populates all guest memory first.")
    ] = False,
    page_size: Annotated[
        Literal["4k", "2m"] | None,
        typer.Option(help="The host's backing: 4 KiB only, or huge pages (default: as the host has it)."),
    ] = None,
    cgroup: Annotated[str, typer.Option(metavar="FOLDER", help="Charge QEMU to this cgroup.")] = "",
    mergeable: Annotated[
        bool, typer.Option("--mergeable", help="KSM may merge its memory; wait for ksmd after each --run.")
    ] = False,
    kit: Annotated[
        Path | None,
        typer.Option(envvar="TRACEKIT_GUEST_KIT", help="Folder with vmlinuz and initramfs."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the steps as JSON.")] = False,
) -> None:
    """Boot a real Linux guest in QEMU with virtio-balloon and say what each step left resident."""
    from tracekit.errors import UsageError
    from tracekit.lab.guest_pages import GuestPages, as_trace
    from tracekit.lab.linux_guest import LinuxPlan, run_plan

    if guest_trace and guest_trace.exists():
        raise UsageError(f"{guest_trace} exists", hint="--guest-trace with another path")
    if guest_trace and not guest_trace.parent.is_dir():
        raise UsageError(f"no folder {guest_trace.parent}", hint=f"mkdir -p {guest_trace.parent}")
    account = run_plan(
        LinuxPlan(
            memory_bytes=memory,
            vcpus=vcpus,
            accel=accel,
            free_page_reporting=free_page_reporting == "on",
            alloc_bytes=alloc,
            balloon_bytes=balloon,
            commands=tuple(run or ()),
            settle_s=settle,
            page_events=page_events or guest_trace is not None,
            prealloc=prealloc,
            page_bytes=_PAGE_BYTES[page_size] if page_size else 0,
            cgroup=cgroup,
            mergeable=mergeable,
            kit=kit,
        )
    )
    if guest_trace:
        as_trace(GuestPages(**account["guest_pages"]), guest_trace)
        if not page_events:
            del account["guest_pages"]
    if json:
        print_json(account)
    else:
        from rich.table import Table

        table = Table(title=f"Linux {account['kernel']} under {account['accel']}", box=None)
        for column in ("step", "seconds", "QEMU resident MiB"):
            table.add_column(column, justify="left" if column == "step" else "right")
        for step in account["steps"]:
            table.add_row(step["name"], f"{step['elapsed_ns'] / 1e9:.2f}", f"{step['rss_bytes'] / 2**20:.0f}")
        stdout().print(table)
    next_command("tracekit record -- tracekit lab linux …")
