"""A real Linux guest in QEMU: boots, allocates, reports free pages, balloons, and leaves nothing behind."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tracekit.errors import CapabilityError, FailedError
from tracekit.lab import qemu
from tracekit.lab.debian import kernel, unpacked
from tracekit.lab.linux_guest import LinuxGuest, LinuxPlan

pytestmark = pytest.mark.live("qemu-system-x86_64")
MIB = 1 << 20


@pytest.fixture(scope="module", autouse=True)
def _material() -> None:
    try:
        kernel()
        unpacked("busybox-static")
    except CapabilityError as error:
        pytest.skip(f"the guest's Debian packages can't be had: {error} ({error.hint})")


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "tracekit", "lab", "linux", "--accel", "tcg", "--json", *options]


def test_page_reporting_and_balloon_give_memory_back():
    work = command("--alloc", "300M", "--settle", "4")
    with (
        subprocess.Popen([*work, "--balloon", "512M"], stdout=subprocess.PIPE) as reporting,
        subprocess.Popen([*work, "--free-page-reporting", "off"], stdout=subprocess.PIPE) as silent,
    ):
        accounts = [json.loads(process.communicate(timeout=60)[0]) for process in (reporting, silent)]
    rss, silent_rss = ({step["name"]: step["rss_bytes"] for step in account["steps"]} for account in accounts)
    assert list(rss) == ["boot", "allocate", "free", "settle", "inflate", "deflate"]
    # Reports never pause: while 300 MiB are filled, memory that the boot had freed is being given back.
    assert rss["allocate"] - rss["settle"] > 200 * MIB
    assert rss["settle"] < rss["boot"] + 20 * MIB
    assert silent_rss["allocate"] - silent_rss["boot"] > 260 * MIB
    assert silent_rss["allocate"] - silent_rss["settle"] < 20 * MIB
    assert not any(Path(f"/proc/{account['pid']}").exists() for account in accounts)


def test_commands_balloon_and_failures_of_one_guest(monkeypatch: pytest.MonkeyPatch):
    with LinuxGuest(LinuxPlan(memory_bytes=256 * MIB, accel="tcg", vcpus=2)) as guest:
        assert guest.qemu.run("nproc").strip() == "2"
        with monkeypatch.context() as patch:
            patch.setattr(qemu, "_WAKE_S", 0.1)  # many empty lines, none of which is a command
            assert guest.qemu.run("sleep 1; echo slept") == "slept\n"
            assert guest.qemu.run("echo 2") == "2\n"
        with pytest.raises(FailedError, match="failed with 3"):
            guest.qemu.run("echo gone wrong; exit 3")
        total_kib = int(guest.qemu.run("grep MemTotal /proc/meminfo").split()[1])
        guest.balloon(192 * MIB)
        assert total_kib - int(guest.qemu.run("grep MemTotal /proc/meminfo").split()[1]) == 64 * 1024
        guest.balloon(256 * MIB)
        with pytest.raises(FailedError, match="refused no-such-command"):
            guest.qemu.qmp.execute("no-such-command")
        pid, log = guest.qemu.pid, guest.qemu.console_log
        with pytest.raises(FailedError, match="said nothing"):
            guest.qemu.run("sleep 100", timeout_s=0.5)
        with pytest.raises(FailedError, match="gone"):
            guest.qemu.run("true")
    assert not Path(f"/proc/{pid}").exists()
    assert not log.parent.exists()


def test_what_qemu_says_of_wrong_arguments_is_the_error():
    plan = LinuxPlan(accel="tcg", vcpus=100_000)
    with pytest.raises(FailedError, match="CPU"):
        LinuxGuest(plan)


def test_killing_the_command_kills_its_guest(tmp_path: Path):
    # What a killed command can't remove stays in its temporary folder.
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    line = command("--settle", "60", "--alloc", "8M")
    with subprocess.Popen(line, stdout=subprocess.PIPE, env=environment) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        deadline = time.monotonic() + 20
        pid = 0
        while not pid and time.monotonic() < deadline:
            for child in children.read_text().split():
                if Path(f"/proc/{child}/comm").read_text().startswith("qemu"):
                    pid = int(child)
            time.sleep(0.05)
        assert pid
        process.kill()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    try:
        assert not Path(f"/proc/{pid}").exists()
    finally:
        if Path(f"/proc/{pid}").exists():
            os.kill(pid, signal.SIGKILL)


def test_a_guest_is_backed_as_it_was_asked_for():
    def mapped_kib(pid: int, name: str) -> int:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))

    def plan(**more: Any) -> LinuxPlan:
        return LinuxPlan(memory_bytes=256 * MIB, accel="tcg", **more)

    with LinuxGuest(plan(prealloc=True, page_bytes=4096)) as guest:
        assert guest.qemu.rss_bytes() > 256 * MIB
        assert mapped_kib(guest.qemu.pid, "AnonHugePages") == 0
    if "[never]" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text():
        pytest.skip("this host gives no huge pages")
    with LinuxGuest(plan(page_bytes=2 * MIB)) as guest:
        assert mapped_kib(guest.qemu.pid, "AnonHugePages") > 32 << 10


def test_a_cgroup_that_is_not_there_is_said():
    with pytest.raises(FailedError, match="nowhere"):
        LinuxGuest(LinuxPlan(memory_bytes=256 * MIB, accel="tcg", cgroup="/sys/fs/cgroup/nowhere"))


def test_what_leaves_by_the_outlet_is_what_the_guest_said():
    with LinuxGuest(LinuxPlan(memory_bytes=256 * MIB, accel="tcg", page_events=True)) as guest:
        guest.qemu.run("dd if=/dev/urandom of=/fill/file bs=1M count=3 2>/dev/null")
        said = guest.qemu.run("sha256sum /fill/file").split()[0]
        content = guest.qemu.take("cat /fill/file")
        assert (len(content), hashlib.sha256(content).hexdigest()) == (3 * MIB, said)
        assert guest.qemu.take("echo second") == b"second\n"
        with pytest.raises(FailedError, match="failed with 1"):
            guest.qemu.take("cat /no/such/file")
