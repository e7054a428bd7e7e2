"""What the recorder may still do once it records: as root and, under sudo, as the user who called it."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import time
from pathlib import Path

import polars as pl
import pytest

from tests.live.recording import TRACEKIT, ended, wait_for, waiting_guest
from tracekit.probes.privileges import KEPT
from tracekit.trace import open_trace

pytestmark = pytest.mark.live("kvm", "bpf", "root")

NOBODY = pwd.getpwnam("nobody")
SUDO = {"SUDO_UID": str(NOBODY.pw_uid), "SUDO_GID": str(NOBODY.pw_gid)}
KILL, DAC_OVERRIDE = 5, 1


def mask(*more: int) -> int:
    return sum(1 << number for number in {*KEPT.values(), *more})


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder where nobody may write, reachable from the root of the file system."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o777)
    while folder != Path("/"):
        folder.chmod(folder.stat().st_mode | 0o011)
        folder = folder.parent
    return tmp_path / "shared"


LOOK = """
import json, os, sys, time
def status(pid):
    lines = (line.split(":") for line in open(f"/proc/{pid}/status") if ":" in line)
    return {name: " ".join(rest.split()) for name, rest, *_ in lines}
time.sleep(0.3)
seen = {"child": status("self"), "parent": status(os.getppid()), "fds": os.listdir("/proc/self/fd")}
json.dump(seen, sys.stdout)
"""


@pytest.mark.parametrize("sudo", [True, False])
def test_only_what_a_recording_needs_is_kept(shared: Path, sudo: bool) -> None:
    path = shared / "x.trace"
    command = [*TRACEKIT, "record", "-o", str(path), "--", "/usr/bin/python3", "-c", LOOK]
    environment = {**os.environ, **(SUDO if sudo else {})}
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    kept = mask(KILL) if sudo else mask(KILL, DAC_OVERRIDE)
    recorder, child = seen["parent"], seen["child"]
    assert {int(recorder[name], 16) for name in ("CapEff", "CapPrm")} == {kept}
    assert {int(recorder[name], 16) for name in ("CapBnd", "CapInh", "CapAmb")} == {0}
    assert recorder["NoNewPrivs"] == "1"
    who = NOBODY.pw_uid if sudo else 0
    # The recorder and the command are that user in every respect, and no way leads back.
    for process in (recorder, child):
        assert set(process["Uid"].split()) == {str(who)}
        assert set(process["Gid"].split()) == {str(NOBODY.pw_gid if sudo else 0)}
    if sudo:
        assert {int(child[name], 16) for name in ("CapEff", "CapPrm", "CapAmb")} == {0}
        assert set(child["Groups"].split()) == {str(NOBODY.pw_gid)}
    # No descriptor of the recorder is the command's: its own three, and the one that lists them.
    assert len(seen["fds"]) == 4
    # Everything is that user's alone, and the kernel's cost was measured though nobody may ask for it.
    for item in (path, *path.rglob("*")):
        assert item.stat().st_uid == who
        assert item.stat().st_mode & 0o077 == 0
    assert open_trace(path).lost == 0
    assert json.loads((path / "meta.json").read_text())["cost"]["measured_s"] > 0


def test_another_users_vm_is_still_seen_whole(shared: Path) -> None:
    """Root's VM, recorded by sudo: its mappings, descriptors and KVM counters are root's to read."""
    path = shared / "roots.trace"
    with waiting_guest() as guest:
        command = [*TRACEKIT, "record", "-p", str(guest.pid), "-o", str(path)]
        with ended(subprocess.Popen(command, env={**os.environ, **SUDO})) as recorder:
            wait_for((path / "meta.json").exists)
            time.sleep(1.2)
            account, _ = guest.communicate("\n", timeout=30)
            assert recorder.wait(timeout=30) == 0
    trace = open_trace(path)
    first = json.loads(account)["first_gfn"]
    rows = trace.events.filter(pl.col("kind") == "ept_violation", pl.col("gfn") >= first).collect()
    assert rows["gfn"].n_unique() == 4099
    assert set(rows["vcpu"]) == {0}
    metrics = set(trace.samples["metric"])
    assert {"pss_bytes", "rss_bytes"} <= metrics
    assert any(name.startswith("kvm_") for name in metrics)
    assert path.stat().st_uid == NOBODY.pw_uid


def test_sudo_writes_nowhere_that_its_user_could_not(shared: Path) -> None:
    roots = shared / "roots"
    roots.mkdir(mode=0o755)
    (shared / "link").symlink_to(roots)
    for out in (roots / "x.trace", shared / "link" / "x.trace"):
        command = [*TRACEKIT, "record", "-o", str(out), "--", "true"]
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=60, env={**os.environ, **SUDO}
        )
        assert done.returncode == 1
        assert "Permission denied" in done.stderr
        assert "--as-root" in done.stderr
        assert "Traceback" not in done.stderr
    assert not list(roots.iterdir())


def test_sudo_finds_a_program_by_its_name_and_says_which_its_user_may_not_run(shared: Path) -> None:
    """Also where Python itself is root's alone to read (a pyenv in /root)."""
    hidden = shared / "hidden"
    hidden.mkdir(mode=0o700)
    (hidden / "only-roots").write_text("#!/bin/sh\n")
    (hidden / "only-roots").chmod(0o755)
    path = shared / "x.trace"
    environment = {**os.environ, **SUDO, "PATH": f"{os.environ['PATH']}:{hidden}"}
    for name, code, stdout, said in (("id", 0, "(nobody)", "0 lost"), ("only-roots", 126, "", "cannot run")):
        command = [*TRACEKIT, "record", "-f", "-o", str(path), "--", name]
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=60, env=environment
        )
        assert done.returncode == code, done.stderr
        assert stdout in done.stdout
        assert said in done.stderr
        assert "Traceback" not in done.stderr


CAPABILITIES = "+bpf,+perfmon,+dac_read_search"


@pytest.mark.parametrize(
    ("given", "code"), [(CAPABILITIES, 0), ("+bpf,+perfmon", 5), ("+dac_read_search", 5)]
)
def test_a_user_with_three_capabilities_records(shared: Path, given: str, code: int) -> None:
    path = shared / "caps.trace"
    user = ["setpriv", "--reuid", "nobody", "--regid", "nogroup", "--clear-groups"]
    powers = [f"--inh-caps=-all,{given}", f"--ambient-caps=-all,{given}"]
    command = [*user, *powers, *TRACEKIT, "record", "-o", str(path), "--", "true"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    if code:
        assert "CAP_" in done.stderr
        assert not path.exists()
    else:
        assert open_trace(path).rows > 0
