"""A file is put in place whole, or not at all."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tracekit.errors import FailedError, UsageError
from tracekit.trace.whole_file import write_file


def test_a_page_is_put_in_place_whole_and_never_through_a_link(tmp_path: Path) -> None:
    victim, link = tmp_path / "victim", tmp_path / "page.html"
    victim.write_text("precious")
    link.symlink_to(victim)
    with pytest.raises(UsageError, match="exists"):
        write_file(link, b"x", force=False)
    write_file(link, b"x", force=True)
    assert victim.read_text() == "precious"
    assert not link.is_symlink()
    assert link.read_bytes() == b"x"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["page.html", "victim"]


def test_a_folder_that_is_not_there_is_said_before_anything_else(tmp_path: Path) -> None:
    with pytest.raises(FailedError, match="cannot write"):
        write_file(tmp_path / "no" / "page.html", b"x", force=False)


def test_a_named_pipe_is_written_to_and_stays(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[bytes] = []
    other = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    other.start()
    write_file(pipe, b"x", force=True)
    other.join(5)
    assert read == [b"x"]
    assert pipe.is_fifo()


def test_a_disk_that_is_full_keeps_neither_half_a_file_nor_a_draft(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(FailedError, match="cannot write"):
            write_file(page, bytes(100_000), force=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert page.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]


def test_a_private_file_stays_private(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("old")
    page.chmod(0o600)
    write_file(page, b"new", force=True)
    assert page.stat().st_mode & 0o777 == 0o600
    assert page.read_bytes() == b"new"


def test_a_link_to_the_standard_output_is_written_to_and_stays(tmp_path: Path) -> None:
    # As /dev/stdout is: a link to a link of /proc, which leads to a file where the output is redirected.
    out = tmp_path / "out"
    command = (
        "from pathlib import Path; from tracekit.trace.whole_file import write_file; "
        "write_file(Path('/dev/fd/1'), b'x', force=True)"
    )
    with out.open("wb") as file:
        subprocess.run([sys.executable, "-c", command], stdout=file, check=True)
    assert out.read_bytes() == b"x"
