"""The program that a Linux guest runs touches what it is told to, no more."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tracekit.errors import UsageError
from tracekit.lab.user_program import toucher


@pytest.mark.skipif(os.uname().machine != "x86_64" or sys.platform != "linux", reason="x86-64 Linux only")
@pytest.mark.parametrize("passes", [1, 3])
def test_a_toucher_faults_once_for_each_page(tmp_path: Path, passes: int) -> None:
    program = tmp_path / "touch"
    counts = []
    for pages in (1, 1010):
        program.write_bytes(toucher(pages, passes=passes, think=3))
        program.chmod(0o755)
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_minflt
        subprocess.run([program], check=True)
        counts.append(resource.getrusage(resource.RUSAGE_CHILDREN).ru_minflt - before)
    assert abs(counts[1] - counts[0] - 1009) <= 3  # a few of a process's own vary


@pytest.mark.skipif(os.uname().machine != "x86_64" or sys.platform != "linux", reason="x86-64 Linux only")
def test_a_toucher_tells_of_each_pass(tmp_path: Path) -> None:
    program = tmp_path / "touch"
    for tell in (False, True):
        program.write_bytes(toucher(5, passes=3, tell=tell))
        program.chmod(0o755)
        told = subprocess.run([program], check=True, stdout=subprocess.PIPE).stdout
        assert len(told) == 3 * tell
        program.unlink()


def test_what_no_program_can_do_is_refused() -> None:
    for arguments in ({"pages": 0}, {"pages": 1, "passes": 0}, {"pages": 1, "think": 1 << 31}):
        with pytest.raises(UsageError):
            toucher(**arguments)
