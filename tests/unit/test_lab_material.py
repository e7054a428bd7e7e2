"""What the lab's guests are made of: archives, modules, packages, plans."""

from __future__ import annotations

import lzma
import subprocess
from pathlib import Path

import pytest

from tracekit.errors import CapabilityError, UsageError
from tracekit.lab import debian
from tracekit.lab.cache import cache_folder, new_folder
from tracekit.lab.initramfs import Initramfs
from tracekit.lab.kernel_modules import load_order
from tracekit.lab.linux_guest import LinuxPlan


def test_another_reader_unpacks_the_initramfs(tmp_path: Path):
    image = Initramfs()
    image.add_file("bin/odd-sized", b"12345", executable=True)
    image.add_file("empty", b"")
    image.add_link("bin/link", "odd-sized")
    image.add_folder("a/b/c")
    try:
        subprocess.run(["cpio", "-i", "--quiet"], cwd=tmp_path, input=image.to_bytes(), check=True)
    except FileNotFoundError:
        pytest.skip("cpio is not installed")
    assert (tmp_path / "bin/link").read_bytes() == b"12345"
    assert (tmp_path / "bin/odd-sized").stat().st_mode == 0o100755
    assert (tmp_path / "empty").read_bytes() == b""
    assert (tmp_path / "a/b/c").is_dir()


def module(folder: Path, name: str, depends: str, *, compress: bool = False) -> None:
    content = b"\x7fELF\0license=GPL\0depends=" + depends.encode() + b"\0name=x\0"
    path = folder / "kernel" / f"{name}.ko"
    path.parent.mkdir(exist_ok=True)
    if compress:
        path.with_suffix(".ko.xz").write_bytes(lzma.compress(content))
    else:
        path.write_bytes(content)


def test_modules_load_after_what_they_depend_on(tmp_path: Path):
    (tmp_path / "modules.builtin").write_text("kernel/lib/crc-x.ko\n")
    module(tmp_path, "virtio_pci", "virtio_ring,virtio,crc_x")
    module(tmp_path, "virtio", "virtio-ring", compress=True)
    module(tmp_path, "virtio_ring", "")
    names = [name for name, _ in load_order(tmp_path, ["virtio-pci", "virtio"])]
    assert names == ["virtio_ring", "virtio", "virtio_pci"]
    assert dict(load_order(tmp_path, ["virtio"]))["virtio"].startswith(b"\x7fELF")
    with pytest.raises(CapabilityError, match="no module nothing"):
        load_order(tmp_path, ["nothing"])


def test_a_package_that_cannot_be_had_says_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CapabilityError) as caught:
        debian.unpacked("no-such-package")
    assert "apt-get update" in caught.value.hint
    assert not list(cache_folder("packages").iterdir())


def test_a_cached_package_serves_where_apt_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    (cache_folder("packages") / "some_1.2").mkdir()
    assert debian.unpacked("some").name == "some_1.2"


def test_a_failure_leaves_no_half_filled_folder(tmp_path: Path):
    with pytest.raises(IsADirectoryError), new_folder(tmp_path / "x") as scratch:
        scratch.write_text("a folder can't be written like a file")
    assert not list(tmp_path.iterdir())
    for content in ("first", "second"):
        with new_folder(tmp_path / "x") as scratch:
            (scratch / "file").write_text(content)
    assert (tmp_path / "x" / "file").read_text() == "first"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "wrong",
    [{"memory_bytes": 1 << 20}, {"alloc_bytes": 1 << 30}, {"balloon_bytes": 1 << 20}, {"page_bytes": 8192}],
)
def test_impossible_linux_plans_are_usage_errors(wrong):
    with pytest.raises(UsageError) as caught:
        LinuxPlan(**wrong)
    assert caught.value.hint
