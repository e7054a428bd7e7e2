"""A memory limit is taken away as well where the processes under it end a little later than its block."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tracekit.datasets.memory_limit import memory_limit

pytestmark = pytest.mark.live("root")


def test_ctrl_c_takes_the_cgroup_along_while_its_process_is_still_leaving():
    if not Path("/sys/class/zram-control").exists():
        pytest.skip("no zram")
    swaps = Path("/proc/swaps").read_text()
    groups: list[Path] = []

    def interrupted(leaving: subprocess.Popen[bytes]) -> None:
        with memory_limit(64 << 20, 64 << 20) as group:
            groups.append(group)
            (group / "cgroup.procs").write_text(str(leaving.pid))
            raise KeyboardInterrupt

    # As a killed VMM does, it is gone a little after the block that it ran in.
    with subprocess.Popen(["sleep", "0.7"]) as leaving, pytest.raises(KeyboardInterrupt):
        interrupted(leaving)
    assert not groups[0].exists()
    assert Path("/proc/swaps").read_text() == swaps
