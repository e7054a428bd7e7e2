"""A QEMU process: started with a monitor and a command line into the guest, always ended."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import selectors
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tracekit.errors import CapabilityError, FailedError
from tracekit.lab.qmp import Qmp

__all__ = ["Outcome", "Qemu", "Tee", "guest_init"]

_READY = "tracekit: ready"
_DONE = "tracekit: done "
_OUTLET = "/dev/vport0p1"
_LINE_AT_ONCE = b"       \n"  # eight bytes: for fewer a serial port waits until 4 more could have come (4 ms)
_WAKE_S = 20.0  # of silence
_PANIC = re.compile(r"BUG:|Oops|RIP: |Kernel panic|Out of memory|Call Trace")

Tee = Callable[[str], object]


@dataclass(frozen=True)
class Outcome:
    """A guest command's exit code and output (stdout and stderr in one)."""

    code: int
    output: str


def guest_init(setup: str) -> bytes:
    """Return an init script for busybox: `setup`, then commands from the second serial port.

    A command is a line of base64; after its output comes a line with its exit code; an empty line is nothing.
    The first serial port stays the kernel's.
    """
    return f"""#!/bin/sh
/bin/busybox mkdir -p /proc /sys /dev /tmp /run
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
{setup}
exec </dev/ttyS1 >/dev/ttyS1 2>&1
/bin/busybox stty raw -echo
echo "{_READY}"
while IFS= read -r line; do
  [ -n "$line" ] || continue
  (eval "$(echo "$line" | base64 -d)") </dev/null
  printf '\n{_DONE}%s\n' $?
done
""".encode()


class Qemu:
    """qemu-system-x86_64 with these arguments, plus a monitor and a command line into the guest.

    `run` needs a guest whose init is `guest_init`, `take` also one with virtio_console, and an `outlet`. QEMU
    dies with the thread that started it, whatever ends that. Its memory is charged to `cgroup`, a folder
    (default: the caller's). Raises `CapabilityError` where QEMU is not installed, `FailedError` where it does
    not start.
    """

    def __init__(
        self,
        arguments: Sequence[str | Path],
        *,
        cgroup: str = "",
        outlet: bool = False,
        boot_timeout_s: float = 600.0,
    ) -> None:
        program = shutil.which("qemu-system-x86_64")
        if not program:
            raise CapabilityError(
                "qemu-system-x86_64 is not installed", hint="sudo apt-get install qemu-system-x86"
            )
        with contextlib.ExitStack() as cleanup:
            folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="tracekit-qemu-")))
            self.console_log = folder / "console.log"
            self._outlet = folder / "outlet"
            socket = folder / "monitor"
            # The parent-death signal spares nobody a stray QEMU when the caller is killed.
            guard = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
            if cgroup:  # before it has any memory of its own
                guard = ["sh", "-c", 'echo $$ >"$0" && exec "$@"', f"{cgroup}/cgroup.procs", *guard]
            self._process = subprocess.Popen(
                [
                    *(*guard, program, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
                    *("-serial", f"file:{self.console_log}", "-serial", "stdio"),
                    *("-qmp", f"unix:{socket},server=on,wait=off"),
                    *(_outlet_to(self._outlet) if outlet else ()),
                    *arguments,
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            cleanup.callback(self._end)
            self._received = bytearray()
            self.qmp = cleanup.enter_context(self._connect(socket, boot_timeout_s))
            self._read_until(_READY, boot_timeout_s)
            self._cleanup = cleanup.pop_all()

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self._process.pid

    def rss_bytes(self) -> int:
        """Return the resident memory of the QEMU process."""
        resident_pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return resident_pages * os.sysconf("SC_PAGE_SIZE")

    def execute(self, command: str, *, timeout_s: float = 600.0, tee: Tee | None = None) -> Outcome:
        """Run a shell command in the guest; `tee` gets its output line by line as it comes.

        Raises `FailedError` where the guest is gone, or says nothing for `timeout_s` (it is then ended).
        """
        self._send(command)
        output, code = self._read_until(_DONE, timeout_s, tee)
        return Outcome(int(code), output)

    def run(self, command: str, *, timeout_s: float = 600.0) -> str:
        """Run a shell command in the guest and return its output; `FailedError` where it fails."""
        outcome = self.execute(command, timeout_s=timeout_s)
        if outcome.code:
            raise FailedError(
                f"in the guest, {command!r} failed with {outcome.code}: {outcome.output.strip()[-300:]}"
            )
        return outcome.output

    def timed(self, command: str, count: int, *, timeout_s: float = 600.0) -> list[tuple[int, int]]:
        """Run a command that prints nothing `count` times (which: $i); return the host's times around each.

        The guest's shell waits for a line of its own each time, so only that, and what the command takes,
        lies between the two times (ns of CLOCK_MONOTONIC).
        """
        turn = f"IFS= read -r go </dev/ttyS1; {command}; echo; i=$((i + 1))"
        self._send(f"i=0; while [ $i -lt {count} ]; do {turn}; done")
        times = []
        for _ in range(count):
            before = time.monotonic_ns()
            self._write(_LINE_AT_ONCE)
            self._read_line(timeout_s)
            times.append((before, time.monotonic_ns()))
        _, code = self._read_until(_DONE, timeout_s)
        if int(code):
            raise FailedError(f"in the guest, {command!r} failed with {code}")
        return times

    def take(self, command: str, *, timeout_s: float = 600.0) -> bytes:
        """Run a shell command in the guest and return its output, which leaves by the outlet.

        A guest's serial port takes it an exit or more for every byte, an outlet one for many pages: use this
        for more than a few lines.
        """
        before = self._outlet.stat().st_size
        self.run(f"{{ {command}; }} >{_OUTLET}", timeout_s=timeout_s)
        with self._outlet.open("rb") as file:
            file.seek(before)
            return file.read()

    def close(self) -> None:
        """Power the guest off; if it does not go, end QEMU."""
        with contextlib.suppress(FailedError, subprocess.TimeoutExpired):
            self._send("/bin/busybox poweroff -f")
            self._process.wait(5)
        self._cleanup.close()

    def kill(self) -> None:
        """End QEMU at once, guest and all."""
        self._cleanup.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        if failed:
            self.kill()
        else:
            self.close()

    def _connect(self, monitor: Path, timeout_s: float) -> Qmp:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return Qmp(monitor)
            except FailedError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise FailedError(f"QEMU did not start: {self._last_words()}") from error
                time.sleep(0.01)

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            with contextlib.suppress(OSError):
                if pipe:
                    pipe.close()

    def _last_words(self) -> str:
        """What QEMU said on stderr, or the end of the guest's console."""
        self._process.kill()
        self._process.wait()
        said = ""
        with contextlib.suppress(ValueError):  # closed
            assert self._process.stderr
            said = self._process.stderr.read().decode(errors="replace").strip()
        if not said and self.console_log.exists():
            said = self.console_log.read_text(errors="replace").strip()
            if telling := [line for line in said.splitlines() if _PANIC.search(line)]:
                said = "\n".join(telling[:6])
        return said[-600:] or f"exit code {self._process.returncode}"

    def _send(self, command: str) -> None:
        self._write(base64.b64encode(command.encode()) + b"\n")

    def _write(self, content: bytes) -> None:
        assert self._process.stdin
        try:
            self._process.stdin.write(content)
            self._process.stdin.flush()
        except (OSError, ValueError) as error:  # ValueError: the pipe was closed with QEMU
            raise FailedError(f"the guest is gone: {self._last_words()}") from error

    def _read_until(self, marker: str, timeout_s: float, tee: Tee | None = None) -> tuple[str, str]:
        """Return (text before the line that begins with marker, rest of that line).

        The newline before the marker is the marker's own, so the last line of text is told late.
        """
        lines: list[str] = []
        while True:
            line = self._read_line(timeout_s, wake=True)
            if line.startswith(marker):
                if tee and lines:
                    tee(lines[-1])
                return "\n".join(lines), line.removeprefix(marker)
            if tee and lines:
                tee(lines[-1] + "\n")
            lines.append(line)

    def _read_line(self, timeout_s: float, *, wake: bool = False) -> str:
        """Return the guest's next line; `wake`: while it says nothing, send it empty ones.

        An emulated host of nested guests has lost an interrupt once: all of it slept, timers and all, until
        another interrupt, such as a serial port's, would have come.
        """
        assert self._process.stdout
        fd = self._process.stdout.fileno()
        while (end := self._received.find(b"\n")) < 0:
            deadline = time.monotonic() + timeout_s
            with selectors.DefaultSelector() as selector:
                selector.register(fd, selectors.EVENT_READ)
                while not selector.select(min(deadline - time.monotonic(), _WAKE_S if wake else timeout_s)):
                    if time.monotonic() >= deadline:
                        raise FailedError(
                            f"the guest said nothing for {timeout_s:.0f} s: {self._last_words()}"
                        )
                    self._write(b"\n")
            if not (chunk := os.read(fd, 65536)):
                raise FailedError(f"the guest ended: {self._last_words()}")
            self._received += chunk
        line = self._received[:end].decode(errors="replace")
        del self._received[: end + 1]
        return line


def _outlet_to(path: Path) -> tuple[str, ...]:
    """Return the arguments for a port whose other end is a file."""
    port = "virtserialport,chardev=outlet"
    return "-device", "virtio-serial-pci", "-chardev", f"file,id=outlet,path={path}", "-device", port
