"""What ends a recording or asks something of it: signals, the end of processes."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

__all__ = ["stop_signals", "triggers", "until_end"]


@contextmanager
def stop_signals() -> Iterator[Callable[[], str]]:
    """Take SIGINT, SIGTERM and SIGHUP: the yielded function names the first, the second raises.

    In another thread than the main one, signals are left alone; so is SIGHUP where it is ignored (nohup).
    """
    seen: list[str] = []

    def on_signal(number: int, _: Any) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(signal.Signals(number).name)

    hangup = () if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else (signal.SIGHUP,)
    with _handled(on_signal, signal.SIGINT, signal.SIGTERM, *hangup):
        yield lambda: seen[0] if seen else ""


@contextmanager
def triggers() -> Iterator[Callable[[], int]]:
    """Take SIGUSR1: the yielded function says when one has come since it was asked before (ns; 0: none)."""
    seen: list[int] = []

    def came() -> int:
        last = seen[-1] if seen else 0
        seen.clear()
        return last

    with _handled(lambda *_: seen.append(time.monotonic_ns()), signal.SIGUSR1):
        yield came


@contextmanager
def until_end(pids: Sequence[int]) -> Iterator[Callable[[float], bool]]:
    """Yield a function that waits so many seconds at most and returns whether all processes have ended.

    Without processes nothing ends: it only waits.
    """
    poller = select.poll()
    descriptors: set[int] = set()
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        descriptors.add(descriptor)
        poller.register(descriptor, select.POLLIN)

    def ended(seconds: float) -> bool:
        for descriptor, _ in poller.poll(seconds * 1000):
            poller.unregister(descriptor)
            descriptors.discard(descriptor)  # first: a second signal may come as soon as it is closed
            os.close(descriptor)
        return bool(pids) and not descriptors

    try:
        yield ended
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


@contextmanager
def _handled(handler: Callable[[int, Any], None], *numbers: signal.Signals) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
