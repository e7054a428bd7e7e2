"""Debian packages as material for guests: downloaded and unpacked into a cache folder, never installed."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tracekit.errors import CapabilityError

__all__ = ["Kernel", "cache_folder", "kernel", "new_folder", "run_tool", "unpacked"]


def cache_folder(name: str) -> Path:
    """Return (and make) a folder of the user's cache: $XDG_CACHE_HOME/tracekit/lab/NAME or ~/.cache/…"""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "tracekit" / "lab" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


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


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Fill a new folder that becomes `target` only when the block succeeds, so the cache never holds a half.

    If another process was quicker, its folder stays.
    """
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield scratch
        scratch.chmod(0o755)
        try:
            scratch.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def unpacked(package: str) -> Path:
    """Return a folder with a Debian package's files, the newest version this machine's apt knows.

    Downloads once; after that, and where apt knows no such package, the newest cached version serves.
    Raises `CapabilityError` where there is neither.
    """
    folder = cache_folder("packages")
    cached = sorted(folder.glob(f"{package}_*"), key=lambda path: path.stat().st_mtime)
    try:
        version = _candidate(package)
    except CapabilityError:
        if cached:
            return cached[-1]
        raise
    target = folder / f"{package}_{version.replace(':', '%3a')}"
    if not target.exists():
        with new_folder(target) as scratch, tempfile.TemporaryDirectory(dir=folder) as downloads:
            run_tool(
                ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", f"{package}={version}"],
                package="apt",
                cwd=Path(downloads),
            )
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


def kernel(package: str = "linux-image-cloud-amd64") -> Kernel:
    """Return the kernel of a linux-image package; meta-packages are followed to the kernel they name."""
    names = re.findall(r"linux-image-[\w.+-]+", _field(package, "Depends"))
    root = unpacked(next((name for name in names if re.search(r"-\d", name)), package))
    (modules,) = (root / "lib" / "modules").iterdir()
    return Kernel(modules.name, root / "boot" / f"vmlinuz-{modules.name}", modules)


def _candidate(package: str) -> str:
    version = _field(package, "Version")
    if not version:
        raise CapabilityError(
            f"apt knows no package {package}",
            hint="sudo apt-get update (Debian 12's mirror and security mirror have it)",
        )
    return version


def _field(package: str, name: str) -> str:
    """Return a field of the package's newest record in apt's lists, "" where apt knows no such package."""
    found = re.search(rf"^{name}: (.*)$", _record(package), re.MULTILINE)
    return found[1] if found else ""


def _record(package: str) -> str:
    """Return apt's newest record of a package, "" for none; asking apt takes a second, so answers are kept.

    An answer is good until apt's lists change.
    """
    answer = cache_folder("records") / package
    lists = Path("/var/lib/apt/lists")
    with contextlib.suppress(OSError):
        if answer.stat().st_mtime > lists.stat().st_mtime:
            return answer.read_text()
    try:
        record = run_tool(["apt-cache", "show", "--no-all-versions", package], package="apt")
    except CapabilityError:
        return ""
    with tempfile.NamedTemporaryFile("w", dir=answer.parent, delete=False) as scratch:
        scratch.write(record)
    Path(scratch.name).rename(answer)
    return record
