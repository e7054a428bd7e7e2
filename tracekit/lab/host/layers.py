"""The lab host's disks, each a cached ext4 image: Debian's packages, Python's packages, tracekit itself.

A layer's folder name is a digest of what is in it (archive names, distribution versions), so an unchanged
layer is found again, and a changed one replaces its predecessor.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from tracekit.errors import CapabilityError
from tracekit.lab import debian
from tracekit.lab.cache import cache_folder, new_folder

__all__ = ["debian_layer", "make_image", "packages_for", "python_layer", "tracekit_files"]

Say = Callable[[str], None]

_LEFT_OUT: Final = ("./usr/share/doc", "./usr/share/man", "./usr/share/locale", "./usr/share/info", "./boot")
_MIB: Final = 1 << 20


def packages_for(kernel_package: str) -> tuple[str, ...]:
    """Return the Debian packages of a lab host with this kernel: bcc, headers, QEMU, tools."""
    headers = kernel_package.replace("linux-image-", "linux-headers-")
    tools = ("python3", "python3-bpfcc", "qemu-system-x86", "busybox-static", "kmod", "mount", "procps")
    return (*tools, headers, "?essential")


def debian_layer(kernel_package: str, *, say: Say) -> Path:
    """Return an ext4 image of a Debian system for a host with this kernel, built at most once.

    Raises `CapabilityError` where apt, dpkg-deb or mke2fs is missing or the packages can't be had.
    """
    packages = packages_for(kernel_package)
    names = debian.resolve(packages)

    def fill(root: Path) -> None:
        with tempfile.TemporaryDirectory(dir=root.parent) as downloads:
            say(f"downloading {len(names)} Debian packages (about 230 MB)")
            archives = debian.download(packages, Path(downloads))
            say(f"unpacking {len(archives)} packages")
            _unpack_system(archives, root)

    return _layer(f"debian.{kernel_package}", names, fill, free_mib=512, say=say)


def python_layer(*, extras: Sequence[str] = ("pytest", "hypothesis"), say: Say) -> Path:
    """Return an ext4 image with the Python distributions tracekit needs, as this interpreter has them.

    `extras` are added where they are installed. Raises `CapabilityError` where a dependency is missing here.
    """
    distributions = _distributions("tracekit", extras)
    names = [f"{distribution.name}=={distribution.version}" for distribution in distributions]
    names.append(f"python{sys.version_info.major}.{sys.version_info.minor}")

    def fill(root: Path) -> None:
        say(f"collecting {len(distributions)} Python distributions")
        for distribution in distributions:
            for file in distribution.files or ():
                source = Path(str(file.locate()))
                if ".." not in file.parts and source.is_file():
                    target = root / file
                    target.parent.mkdir(parents=True, exist_ok=True)
                    _link_or_copy(source, target)

    return _layer("python", names, fill, free_mib=8, say=say)


def make_image(root: Path, image: Path, *, free_mib: int) -> None:
    """Write a folder's content as an ext4 image with some free space (sparse)."""
    used = sum(4096 + (path.lstat().st_size + 4095) // 4096 * 4096 for path in root.rglob("*"))
    size_mib = used * 9 // 8 // _MIB + 16 + free_mib
    debian.run_tool(
        ["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d", root, image, f"{size_mib}M"],
        package="e2fsprogs",
    )


def _layer(kind: str, names: Iterable[str], fill: Callable[[Path], None], *, free_mib: int, say: Say) -> Path:
    digest = hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:16]
    folder = cache_folder("layers")
    target = folder / f"{kind}-{digest}"
    image = target / "image.ext4"
    if not image.exists():
        with new_folder(target) as scratch:
            root = scratch / "root"
            root.mkdir()
            fill(root)
            say(f"making the {kind} image")
            make_image(root, scratch / "image.ext4", free_mib=free_mib)
            shutil.rmtree(root)
        for sibling in folder.glob(f"{kind}-*"):
            # A machine that still runs on an older image keeps its open file.
            if sibling != target:
                shutil.rmtree(sibling, ignore_errors=True)
    return image


def _unpack_system(archives: Iterable[Path], root: Path) -> None:
    """Unpack packages into a root folder whose /bin, /sbin and /lib are links into /usr, as Debian's are.

    No maintainer script runs, so the two things those do that this host needs are done here.
    """
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for archive in archives:
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", archive], stdout=subprocess.PIPE) as tar:
            unpack: list[str | Path] = [
                "tar",
                "-x",
                "--keep-directory-symlink",
                "--no-same-owner",
                "-C",
                root,
                "-f",
                "-",
            ]
            done = subprocess.run(
                [*unpack, *(f"--exclude={folder}" for folder in _LEFT_OUT)],
                stdin=tar.stdout,
                capture_output=True,
                text=True,
                check=False,
            )
        if done.returncode or tar.returncode:
            raise CapabilityError(
                f"{archive.name} does not unpack: {done.stderr[-200:]}", hint="df -h ~/.cache"
            )
    for name in ("passwd", "group"):  # base-passwd's script
        shutil.copy(root / f"usr/share/base-passwd/{name}.master", root / "etc" / name)
    if not (root / "bin/sh").exists():  # dash's script
        (root / "bin/sh").symlink_to("dash")
    # Python's own files are compiled by scripts too; under emulation that would cost every start seconds.
    with contextlib.suppress(OSError):
        libraries = [path for path in (root / "usr/lib").glob("python3*") if path.is_dir()]
        compiler = f"python{_python_of(root)}"
        if shutil.which(compiler):
            subprocess.run(
                [compiler, "-m", "compileall", "-q", "-s", root, "-p", "/", *libraries],
                check=False,
                capture_output=True,
            )


def _python_of(root: Path) -> str:
    """Return the version (3.11) of the Python in a root folder."""
    versions = [path.name.removeprefix("python") for path in (root / "usr/lib").glob("python3.*")]
    return versions[0] if versions else ""


def _distributions(root: str, extras: Iterable[str]) -> list[importlib.metadata.Distribution]:
    """Return the distributions that `root` needs at run time, and `extras` with their needs, by name.

    What is needed only under a condition (another platform, an older Python) is taken if it is installed.
    """
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = [(root, True), *((name, False) for name in extras)]
    while waiting:
        name, needed = waiting.pop()
        name = re.sub(r"[-_.]+", "-", name).lower()
        if name in found:
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            if needed:
                raise CapabilityError(
                    f"the Python package {name} is not installed", hint=f"pip install {name}"
                ) from None
            continue
        for requirement in found[name].requires or ():
            if "extra ==" not in requirement:
                waiting.append((re.split(r"[^\w.-]", requirement, maxsplit=1)[0], ";" not in requirement))
    del found[root]
    return [found[name] for name in sorted(found)]


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def tracekit_files(root: Path) -> None:
    """Copy the tracekit that is running, its sub-packages and its metadata, below a folder."""
    import tracekit

    folder = Path(tracekit.__file__).parent
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(folder, root / "tracekit", ignore=ignore)
    for name in ("probes", "replay", "datasets"):
        package = importlib.import_module(f"tracekit.{name}")
        # An editable install keeps these beside the package, a wheel inside it.
        shutil.copytree(
            Path(str(package.__file__)).parent, root / "tracekit" / name, ignore=ignore, dirs_exist_ok=True
        )
    metadata = importlib.metadata.distribution("tracekit").read_text("METADATA") or ""
    info = root / f"tracekit-{importlib.metadata.version('tracekit')}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(metadata)
