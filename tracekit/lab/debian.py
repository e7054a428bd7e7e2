"""Debian packages as material for guests: downloaded and unpacked, never installed."""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tracekit.errors import CapabilityError
from tracekit.lab.cache import cache_folder, new_folder

__all__ = ["Kernel", "download", "kernel", "kernel_package", "resolve", "run_tool", "unpacked"]

# Without this apt drops to a user who can't read root's cache folder; as that user it changes nothing.
_APT: Final = ("apt-get", "-qq", "-y", "-o", "APT::Sandbox::User=root")
_EMPTY_SYSTEM: Final = (
    *("-o", "Dir::State::status=/dev/null", "-o", "APT::Install-Recommends=0", "-o", "Debug::NoLocking=1"),
)


def run_tool(command: Sequence[str | Path], *, package: str, cwd: Path | None = None) -> str:
    """Run a helper program and return its stdout.

    Raises `CapabilityError` where it is not installed (naming its Debian package) or fails (its last words).
    """
    try:
        done = subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True, errors="replace")
    except FileNotFoundError:
        raise CapabilityError(
            f"{command[0]} is not installed", hint=f"sudo apt-get install {package}"
        ) from None
    except subprocess.CalledProcessError as error:
        words = (error.stderr or error.stdout).strip().splitlines()
        raise CapabilityError(
            f"{Path(command[0]).name} failed: {words[-1] if words else f'exit code {error.returncode}'}",
            hint="sudo apt-get update (this needs the distribution's package mirror once)",
        ) from None
    return done.stdout


def unpacked(package: str) -> Path:
    """Return a folder with a Debian package's files, the newest version this machine's apt knows.

    Downloads once; after that, and where apt knows no such package, the newest cached version serves.
    Raises `CapabilityError` where there is neither.
    """
    folder = cache_folder("packages")
    cached = sorted(folder.glob(f"{package}_*"), key=lambda path: path.stat().st_ctime)
    version = _field(package, "Version")
    if not version:
        if cached:
            return cached[-1]
        raise CapabilityError(
            f"apt knows no package {package}",
            hint="sudo apt-get update (Debian 12's mirror and security mirror have it)",
        )
    target = folder / f"{package}_{version.replace(':', '%3a')}"
    if not target.exists():
        with new_folder(target) as scratch, tempfile.TemporaryDirectory(dir=folder) as downloads:
            run_tool([*_APT, "download", f"{package}={version}"], package="apt", cwd=Path(downloads))
            (archive,) = Path(downloads).glob("*.deb")
            run_tool(["dpkg-deb", "-x", archive, scratch], package="dpkg")
        for stale in cached:
            shutil.rmtree(stale, ignore_errors=True)
    return target


@dataclass(frozen=True)
class Kernel:
    """A kernel out of its package: `image` to boot, `modules` = its lib/modules/RELEASE folder."""

    release: str
    image: Path
    modules: Path


def kernel_package(package: str) -> str:
    """Return the package whose kernel a linux-image meta-package stands for (others: themselves)."""
    names = re.findall(r"linux-image-[\w.+-]+", _field(package, "Depends"))
    return next((name for name in names if re.search(r"-\d", name)), package)


def kernel(package: str = "linux-image-cloud-amd64") -> Kernel:
    """Return the kernel of a linux-image package or meta-package."""
    root = unpacked(kernel_package(package))
    (modules,) = (root / "lib" / "modules").iterdir()
    return Kernel(modules.name, root / "boot" / f"vmlinuz-{modules.name}", modules)


def resolve(packages: Sequence[str]) -> list[str]:
    """Return the archives (name_version_arch.deb) of these packages and all that they need.

    Raises `CapabilityError` where apt can't resolve them.
    """
    # apt leaves out what it finds in its archive folder, so give it one that isn't there.
    nowhere = ("-o", "Dir::Cache::archives=/nonexistent")
    listing = _ask([*_APT, *_EMPTY_SYSTEM, *nowhere, "--print-uris", "install", *packages])
    return re.findall(r"^'[^']*' (\S+) \d+", listing, re.MULTILINE)


def download(packages: Sequence[str], folder: Path) -> list[Path]:
    """Download the archives of `resolve` into a folder and return them."""
    (folder / "partial").mkdir()
    into = ("-o", f"Dir::Cache::archives={folder}")
    run_tool([*_APT, *_EMPTY_SYSTEM, *into, "--download-only", "install", *packages], package="apt")
    return sorted(folder.glob("*.deb"))


def _field(package: str, name: str) -> str:
    """Return a field of the package's newest record in apt's lists, "" where apt knows no such package."""
    with contextlib.suppress(CapabilityError):
        record = _ask(["apt-cache", "show", "--no-all-versions", package])
        if found := re.search(rf"^{name}: (.*)$", record, re.MULTILINE):
            return found[1]
    return ""


def _ask(command: Sequence[str]) -> str:
    """Return what an apt command prints; a second, so kept until its lists change."""
    answer = cache_folder("answers") / hashlib.sha256("\0".join(command).encode()).hexdigest()[:24]
    lists = Path("/var/lib/apt/lists")
    with contextlib.suppress(OSError):
        if answer.stat().st_mtime > lists.stat().st_mtime:
            return answer.read_text()
    printed = run_tool(command, package="apt")
    with tempfile.NamedTemporaryFile("w", dir=answer.parent, delete=False) as scratch:
        scratch.write(printed)
    Path(scratch.name).rename(answer)
    return printed
