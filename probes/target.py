"""A command to trace, held back until the probes watch it; processes to trace, if they are there."""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from tracekit.errors import FailedError, UsageError

__all__ = ["Child", "is_waiting", "require_processes", "start_child"]

# Waits until the recorder watches it, then becomes the user and the command; without a recorder it ends.
# It becomes the user here and not before: Python may be where only root can read it. So nothing is imported
# after that: no execvp, which would do so to search PATH. Ctrl-C ends it without a traceback.
_WAIT_THEN_BECOME: Final = """
import os, signal, sys
if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
gate, who, path, *command = sys.argv[1:]
os.set_inheritable(int(gate), False)
if not os.read(int(gate), 1):
    sys.exit(125)
if who:
    user, group, *groups = map(int, who.split(","))
    os.setgroups(groups)
    os.setresgid(group, group, group)
    os.setresuid(user, user, user)
try:
    os.execv(path, command)
except OSError as error:
    os.write(2, os.fsencode(f"tracekit: cannot run {path}: {error.strerror}\\n"))
    os._exit(126)
"""
_SECONDS_TO_END: Final = 5.0


def is_waiting(argv: Sequence[str]) -> bool:
    """Return whether a command line is that of a child that has not yet become the command."""
    return _WAIT_THEN_BECOME in argv


class Child:
    """A command that has been started but is held back until `release`."""

    def __init__(self, process: subprocess.Popen[bytes], gate: int) -> None:
        self._process, self._gate = process, gate
        self.pid = process.pid
        self.released_s: float | None = None
        """When it was let go (time.monotonic), or None: it is held back."""

    def release(self) -> None:
        """Let the command start."""
        self.released_s = time.monotonic()
        os.write(self._gate, b"\n")
        self._close_gate()

    def _close_gate(self) -> None:
        gate, self._gate = self._gate, -1  # first: a second signal may come as soon as it is closed
        if gate >= 0:
            os.close(gate)

    def poll(self) -> int | None:
        """Return the exit code as a shell gives it (128 + signal), or None while it runs."""
        code = self._process.poll()
        return 128 - code if code is not None and code < 0 else code

    def end(self) -> int:
        """End the command if it still runs (SIGTERM, after 5 s SIGKILL) and return its exit code."""
        self._close_gate()
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        code = self.poll()
        return 0 if code is None else code


def _path_of(name: str, search: str | None) -> str:
    if (path := shutil.which(name, path=search)) is not None:
        return path
    if "/" in name and Path(name).is_file():
        raise UsageError(f"{name} is not executable", hint=f"chmod +x {shlex.quote(name)}")
    raise UsageError(f"no program {name!r} to run", hint="tracekit record -- PROGRAM ARGUMENTS…")


def start_child(
    command: Sequence[str],
    *,
    user: int | None = None,
    group: int | None = None,
    told: Mapping[str, str] | None = None,
) -> Child:
    """Start a command, held back; `user` and `group` are the ids it shall run as.

    `told` comes into its environment.

    Raises UsageError when there is no such program, or it is a file that may not be executed.
    """
    who, environment = ("", dict(os.environ)) if user is None else _as_user(user, group)
    environment |= told or {}
    path = _path_of(command[0], environment.get("PATH"))
    read_end, gate = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _WAIT_THEN_BECOME, str(read_end), who, path, *command],
            pass_fds=(read_end,),
            env=environment,
        )
    except OSError as error:
        os.close(gate)
        raise FailedError(f"cannot start {command[0]!r}: {error.strerror}") from error
    finally:
        os.close(read_end)
    return Child(process, gate)


def require_processes(pids: Sequence[int]) -> None:
    """Raise UsageError when one of the processes is not there, or is a thread of one."""
    for pid in pids:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            raise UsageError(f"no process {pid}", hint="pgrep -a qemu   lists running QEMUs") from None
        process = int(next(line for line in status.splitlines() if line.startswith("Tgid:")).split()[1])
        if process != pid:
            raise UsageError(f"{pid} is a thread of process {process}", hint=f"-p {process}")


def _as_user(user: int, group: int | None) -> tuple[str, dict[str, str]]:
    """Return whom the command becomes (user, group, groups: numbers) and an environment that says so."""
    entry = pwd.getpwuid(user)
    group = entry.pw_gid if group is None else group
    names = {"HOME": entry.pw_dir, "USER": entry.pw_name, "LOGNAME": entry.pw_name, "SHELL": entry.pw_shell}
    ids = [user, group, *os.getgrouplist(entry.pw_name, group)]
    return ",".join(map(str, ids)), {**os.environ, **names}
