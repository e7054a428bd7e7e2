"""What a QEMU monitor may answer the recorder, who asks as root: memory, nonsense, or nothing but talk."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tracekit.errors import FailedError
from tracekit.probes.qemu_monitor import ask_monitor

GREETING = {"QMP": {"version": {}}}
DONE: dict[str, Any] = {"return": {}}


@pytest.fixture
def monitor(tmp_path: Path) -> Iterator[Any]:
    """Serve one connection: `monitor(answers)` gives the path of a socket that says all of them at once."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(str(tmp_path / "qmp"))
    server.listen(1)
    threads: list[threading.Thread] = []

    def serve(said: bytes) -> None:
        connection, _ = server.accept()
        with connection, contextlib.suppress(ConnectionError):  # who asks may leave before all is said
            connection.sendall(said)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(1 << 16):
                pass

    def start(said: bytes) -> Path:
        threads.append(threading.Thread(target=serve, args=(said,)))
        threads[-1].start()
        return tmp_path / "qmp"

    yield start
    for thread in threads:
        thread.join(10)
    server.close()


def said(*messages: Any) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in messages)


def test_events_before_the_answer_are_passed_over(monitor: Any) -> None:
    event = {"event": "RESUME", "timestamp": {}}
    path = monitor(said(GREETING, DONE, event, event, {"return": "the tree"}))
    assert ask_monitor(path)("info mtree -f") == "the tree"


@pytest.mark.parametrize(
    "answer",
    [
        said({"error": {"desc": "no such command"}}),
        said({"error": 7}),
        said([1, 2]),
        b"no JSON\n",
        b"[" * 100_000 + b"\n",
        b'{"return": ' + b"9" * 6000 + b"}\n",
        said(*[{"event": "RESUME"}] * 2000),
        b"",
    ],
    ids=["error", "odd error", "list", "text", "nested", "digits", "talk", "nothing"],
)
def test_whatever_else_it_says_is_an_error_that_names_what_to_do(monitor: Any, answer: bytes) -> None:
    path = monitor(said(GREETING, DONE) + answer)
    with pytest.raises(FailedError, match="QEMU"):
        ask_monitor(path)("info mtree -f")
