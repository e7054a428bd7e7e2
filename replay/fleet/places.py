"""Finds traces in folders and object stores, and brings one to where it can be opened."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from tracekit.errors import CapabilityError, UsageError

__all__ = ["DEFAULT_CLASS", "Place", "file_system", "find_traces", "local_copy"]

SUFFIX: Final = ".trace"
DEFAULT_CLASS: Final = "default"
"""The class of VMs whose traces lie in no folder of their own."""

_HINT: Final = "tracekit fleet traces/ --scenario zeroing -o RESULTS"


@dataclass(frozen=True)
class Place:
    """A trace: where it is (a path or an fsspec URL), its name in results, and the class of its VM.

    The name is the path below the folder that was given, without `.trace`; the class is the folder that the
    trace lies in.
    """

    url: str
    name: str
    vm_class: str


def find_traces(given: Iterable[str]) -> list[Place]:
    """Return all traces below the given folders or URLs (or the given traces themselves), by name.

    Whatever is called `*.trace` counts, so that a broken one is reported and not overlooked. Raises
    UsageError when nothing is found, or two traces would have the same name.
    """
    found: list[Place] = []
    for one in given:
        fs, root = file_system(one)
        if not fs.exists(root):
            raise UsageError(f"{one}: no such folder or trace", hint=_HINT)
        root = root.rstrip("/")
        if root.endswith(SUFFIX) or fs.exists(f"{root}/meta.json"):
            found.append(_place(fs, root, str(PurePosixPath(root).parent)))
        else:
            paths = [_trace_of(path, root) for path in fs.find(root, withdirs=True)]
            found += [_place(fs, trace, root) for trace in sorted({path for path in paths if path})]
    if not found:
        raise UsageError(f"no folder called *{SUFFIX} there", hint=_HINT)
    names: dict[str, Place] = {}
    for place in found:
        other = names.setdefault(place.name, place)
        if other.url != place.url:
            raise UsageError(
                f"two traces are called {place.name}: {other.url} and {place.url}",
                hint="give a folder above both",
            )
    return sorted(names.values(), key=lambda place: place.name)


@contextmanager
def local_copy(url: str) -> Iterator[Path]:
    """Yield a local folder with the trace: itself, or for a URL a temporary copy."""
    if "://" not in url:
        yield Path(url)
        return
    fs, path = file_system(url)
    with tempfile.TemporaryDirectory(prefix="tracekit-") as folder:
        target = Path(folder) / PurePosixPath(path).name
        fs.get(path, str(target), recursive=True)
        yield target


def file_system(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of a path or URL, and the path in it."""
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise CapabilityError(
            "a fleet needs fsspec and dask, which are not installed", hint="pip install 'tracekit[fleet]'"
        ) from None
    try:
        fs, path = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UsageError(f"{url}: {error}", hint="pip install the fsspec driver of this store") from None
    return fs, str(path)


def _trace_of(path: str, root: str) -> str | None:
    """Return the outermost `*.trace` folder that a path below `root` is or lies in."""
    below = PurePosixPath(path[len(root) :].lstrip("/"))
    for i, part in enumerate(below.parts):
        if part.endswith(SUFFIX):
            return "/".join([root, *below.parts[: i + 1]])
    return None


def _place(fs: Any, trace: str, root: str) -> Place:
    below = PurePosixPath(trace[len(root) :].lstrip("/"))
    name = str(below).removesuffix(SUFFIX)
    vm_class = below.parent.name or DEFAULT_CLASS
    protocols = fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,)
    url = trace if "file" in protocols else fs.unstrip_protocol(trace)
    return Place(url, name, vm_class)
