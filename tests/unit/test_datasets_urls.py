"""Traces behind URLs: fetched once, file by file, from a web server here and from fsspec's memory."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tracekit.datasets.frame import scan
from tracekit.datasets.synthetic import GENERATORS
from tracekit.datasets.synthetic.make import make_trace
from tracekit.errors import DamagedError, FailedError, UsageError

fsspec = pytest.importorskip("fsspec")


class _Quiet(http.server.SimpleHTTPRequestHandler):
    asked: list[str] = []  # noqa: RUF012  one server at a time

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()

    def list_directory(self, path: object) -> None:
        self.send_error(403, "no listing")  # as most web servers have it


@contextlib.contextmanager
def web_server(folder: Path) -> Iterator[str]:
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        _Quiet.asked.clear()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRACEKIT_CACHE", str(tmp_path / "cache"))
    for seed in (1, 2):
        path = tmp_path / "runs" / f"boot-{seed}.trace"
        path.parent.mkdir(exist_ok=True)
        make_trace(GENERATORS["boot-linux"](events=101 * seed, seed=seed), path)
    return tmp_path / "runs"


def test_a_web_server_needs_no_listings_and_is_asked_once(runs: Path) -> None:
    pytest.importorskip("aiohttp")
    with web_server(runs) as url:
        remote = scan([f"{url}/boot-1.trace", f"{url}/boot-2.trace/"])
        local = scan(str(runs / "*.trace"))
        assert remote.collect().equals(local.collect())
        assert any("events/00000.arrow" in path for path in _Quiet.asked)
        _Quiet.asked.clear()
        assert scan(f"{url}/boot-1.trace").collect().height == 101
        assert not any("events" in path for path in _Quiet.asked)
        with pytest.raises(UsageError, match="no trace at"):
            scan(f"{url}/boot-3.trace")
        (runs / "boot-2.trace" / "events" / "00000.arrow").rename(runs / "gone")
        (runs / "boot-2.trace" / "meta.json").write_text(
            (runs / "boot-2.trace" / "meta.json").read_text() + " "
        )
        with pytest.raises(FailedError, match="cannot read"):
            scan(f"{url}/boot-2.trace")


def test_an_object_store_takes_patterns(runs: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(runs), "/runs", recursive=True)
    remote = scan("memory://runs/*.trace")
    assert remote.collect().equals(scan(str(runs / "*.trace")).collect())
    memory.rm("/runs/boot-1.trace/events", recursive=True)  # what is in the cache is not fetched again
    assert scan("memory://runs/boot-1.trace").collect().height == 101
    with pytest.raises(UsageError, match="no trace at"):
        scan("memory://nothing/here.trace")


def test_a_remote_trace_cannot_write_outside_the_cache(runs: Path, tmp_path: Path) -> None:
    manifest = runs / "boot-1.trace" / "manifest.jsonl"
    line = json.loads(manifest.read_text())
    line.pop("line_crc32")
    line["part"] = "../../../../outside"
    line["line_crc32"] = f"{zlib.crc32(json.dumps(line).encode()):08x}"
    manifest.write_text(json.dumps(line) + "\n")
    fsspec.filesystem("memory").put(str(runs), "/hostile", recursive=True)
    with pytest.raises(DamagedError, match="damaged line"):
        scan("memory://hostile/boot-1.trace")
    assert not list(tmp_path.rglob("outside"))
