"""QEMU's machine protocol (QMP): one JSON object a line over a Unix socket."""

from __future__ import annotations

import contextlib
import json
import socket
from pathlib import Path
from typing import Any, Self

from tracekit.errors import FailedError

__all__ = ["Qmp"]


class Qmp:
    """A connection to the QMP socket of a running QEMU; `timeout_s` bounds every answer."""

    def __init__(self, path: Path, *, timeout_s: float = 30.0) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(timeout_s)
            self._socket.connect(str(path))
            self._lines = self._socket.makefile("rb")
            self._read()  # the greeting
            self.execute("qmp_capabilities")
        except (OSError, FailedError) as error:
            self._socket.close()
            raise FailedError(f"QEMU's monitor at {path} does not answer: {error}") from error

    def execute(self, command: str, **arguments: Any) -> Any:
        """Run a QMP command and return its `return` value; events that arrive meanwhile are dropped."""
        request = {"execute": command, "arguments": {k.replace("_", "-"): v for k, v in arguments.items()}}
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            while True:
                answer = self._read()
                if "error" in answer:
                    raise FailedError(f"QEMU refused {command}: {answer['error']['desc']}")
                if "return" in answer:
                    return answer["return"]
        except OSError as error:
            raise FailedError(f"QEMU did not answer {command}: {error}") from error

    def _read(self) -> dict[str, Any]:
        line = self._lines.readline()
        if not line:
            raise FailedError("QEMU closed its monitor")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Close the connection; QEMU goes on."""
        with contextlib.suppress(AttributeError, OSError):
            self._lines.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
