"""bcc, brought into any Python environment: the one package from the distribution, nothing beside it.

bcc is not on PyPI (the package of that name there is something else). The distribution's is pure Python over
libbcc, so any Python can import it, but putting its whole folder on sys.path would let the distribution's
other packages shadow those of the environment.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final

from tracekit.errors import CapabilityError, FailedError

__all__ = ["KERNEL_TREE", "bcc_folder", "compile_program", "load_bcc", "release_compiler"]

_FOLDERS: Final = ("/usr/lib/python3/dist-packages/bcc", "/usr/lib/python3.*/site-packages/bcc")
_INSTALL: Final = "sudo apt-get install python3-bpfcc"

_COMPILER: Final = re.compile(r"^(\w+)-(\w+) r-xp .*/lib(?:LLVM|llvmlite|clang|bcc)[^/]*$", re.MULTILINE)
_MADV_DONTNEED: Final = 4

KERNEL_TREE: Final = Path(__file__).with_name("bpf") / "kernel"
"""The header tree that the programs are compiled with, in the place of the kernel's own."""


def bcc_folder() -> Path | None:
    """Return the folder of the distribution's bcc package, or None where it is not installed."""
    for pattern in _FOLDERS:
        for path in sorted(Path("/").glob(pattern.lstrip("/")), reverse=True):
            if (path / "__init__.py").is_file():
                return path
    return None


@cache
def load_bcc() -> Any:
    """Return the bcc module.

    Raises CapabilityError, naming the command to type, where it is not installed or does not load.
    """
    folder = bcc_folder()
    if folder is None:
        raise CapabilityError("bcc, which loads the eBPF programs, is not installed", hint=_INSTALL)
    spec = importlib.util.spec_from_file_location(
        "bcc", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise CapabilityError(f"{folder} is not a Python package", hint=_INSTALL)
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get("bcc")
    sys.modules["bcc"] = module  # bcc imports its own parts by this name
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        if before is None:
            del sys.modules["bcc"]
        else:
            sys.modules["bcc"] = before
        raise CapabilityError(f"bcc at {folder} does not load: {error}", hint=_INSTALL) from error
    return module


def compile_program(text: str) -> Any:
    """Compile C text to a bcc.BPF object (about 0.3 s); its functions are not loaded yet.

    Uses the header tree that comes with tracekit, or that of BCC_KERNEL_SOURCE where the user set one.
    Raises FailedError with the compiler's first errors.
    """
    bcc = load_bcc()
    own = "BCC_KERNEL_SOURCE" not in os.environ
    if own:
        os.environ["BCC_KERNEL_SOURCE"] = str(KERNEL_TREE)
    with _stderr_kept() as said:
        try:
            # bcc would attach programs at kernel functions by their names, whether they load or not.
            programs = type("Programs", (bcc.BPF,), {"_trace_autoload": lambda self: None})
            return programs(text=text.encode())
        except Exception as error:
            lines = [line for line in said() if "error" in line.lower()] or [str(error)]
            raise FailedError(
                f"bcc did not compile the probes: {'; '.join(lines[:3])}", hint="tracekit doctor"
            ) from error
        finally:
            if own:
                del os.environ["BCC_KERNEL_SOURCE"]


def release_compiler() -> None:
    """Give back what compiling, or loading compiled loops, took: clang's and LLVM's code, free heap.

    It would stay resident for as long as the recording goes on. Code is read again from its file if it should
    run once more.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    for start, end in _COMPILER.findall(Path("/proc/self/maps").read_text()):
        address, size = int(start, 16), int(end, 16) - int(start, 16)
        libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), _MADV_DONTNEED)
    if hasattr(libc, "malloc_trim"):  # glibc's
        libc.malloc_trim(ctypes.c_size_t(0))


@contextmanager
def _stderr_kept() -> Iterator[Any]:
    """Keep what C code writes to stderr (libbcc's compiler does) from the terminal; yields a reader of it."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as kept:
        saved = os.dup(2)
        os.dup2(kept.fileno(), 2)

        def said() -> list[str]:
            kept.seek(0)
            return kept.read().decode(errors="replace").splitlines()

        try:
            yield said
        finally:
            os.dup2(saved, 2)
            os.close(saved)
