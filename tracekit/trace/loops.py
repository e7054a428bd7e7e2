"""Loops in two forms: numpy's, which always work, and machine code, once there is enough to do.

numba compiles the loops, but takes 140 MB and most of a second to be there, and seconds to compile: too much
for whoever writes a trace. So it does that once on a machine, in a process of its own, and leaves the object
code in a cache; to load that takes llvmlite, on which numba stands, 35 ms. Who may have much to write calls
`quicken` before it begins, and `prepare` when it was much. Until the code is there, and where there is no
place for a cache, all stays with numpy; what is written is the same.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np

__all__ = ["Loop", "build", "loop", "plain", "prepare", "quicken"]

_BUILD: Final = "import sys; from tracekit.trace.loops import build; build(sys.argv[1:])"
_LIBC: Final = {"memset", "memcpy", "memmove"}
"""What compilers make of a loop that sets or copies bytes."""
_RAISES: Final = re.compile(r"ret i32 (?!0$)", re.MULTILINE)  # what is not 0 is numba's status of an error
_CALLED_THEN: Final = re.compile(r"^declare (\S+ @(?:Py|numba_gil_)\w+\([^)]*\)).*$", re.MULTILINE)
_READ_THEN: Final = re.compile(r"^(@Py\w+ =) external (global \S+)$", re.MULTILINE)
_FAILURES: Final = (ImportError, OSError, RuntimeError, ValueError)
"""Of reading, linking, or starting a process."""
_C_TYPES: Final[dict[str, Any]] = {"void": None, "int64": ctypes.c_int64, "uint64": ctypes.c_uint64}


class Loop:
    """A function over arrays that is worth calling as machine code only: `compiled`, None until it is there.

    Arrays are handed over by their address: they must be contiguous, of the type expected, and large enough.
    """

    def __init__(self, function: Callable[..., Any], result: str, arguments: Sequence[str]) -> None:
        self.function = function
        self.name = f"{function.__module__}.{function.__name__}"
        self.compiled: Callable[..., Any] | None = None
        self._result, self._arguments = result, arguments

    def build(self, machine: Any) -> tuple[str, bytes]:
        """Return the symbol and the object code, for llvmlite's target machine."""
        import llvmlite.binding as llvm
        import numba
        from numba import types

        def type_of(name: str) -> Any:
            found = getattr(types, name.rstrip("*"))
            return pointer(found) if name.endswith("*") else found

        pointer: Any = types.CPointer
        compile_function: Any = numba.cfunc
        signature = type_of(self._result)(*(type_of(name) for name in self._arguments))
        made = compile_function(signature, error_model="numpy", _nrt=False)(self.function)
        text = _without_errors(made.inspect_llvm())
        module = llvm.parse_assembly(text)
        outside = {one.name for one in module.functions if one.is_declaration}
        called = {name for name in outside if not name.startswith("llvm.")}
        if called or _RAISES.search(text):
            raise ValueError(f"{self.name} is more than a loop: it calls {called}, or can raise an error")
        return made.native_name, machine.emit_object(module)

    def take(self, address: int) -> None:
        """Use the machine code at this address from now on."""
        kinds = [ctypes.c_void_p if name.endswith("*") else _C_TYPES[name] for name in self._arguments]
        code = ctypes.CFUNCTYPE(_C_TYPES[self._result], *kinds)(address)

        def compiled(*given: Any) -> Any:
            # `one.ctypes.data` would take longer than many a loop.
            return code(
                *[one.__array_interface__["data"][0] if type(one) is np.ndarray else one for one in given]
            )

        self.compiled = compiled


def _without_errors(text: str) -> str:
    """Let what a function would call for an error, which it never has, be in the module itself.

    Names outside would have to be told to LLVM, and so to all else that is compiled in this process.
    """
    text = _CALLED_THEN.sub(r"define internal \1 {\n  call void @llvm.trap()\n  unreachable\n}", text)
    return _READ_THEN.sub(r"\1 internal \2 zeroinitializer", text) + "\ndeclare void @llvm.trap()\n"


class _State:
    """What is known of the machine code in this process."""

    def __init__(self) -> None:
        self.loops: dict[str, Loop] = {}
        self.ready = False
        self.builder: subprocess.Popen[bytes] | None = None
        self.engines: list[Any] = []  # they own the code


_state: Final = _State()


def loop(result: str, *arguments: str) -> Callable[[Callable[..., Any]], Loop]:
    """Mark a function as such a loop, of pointers to numbers (`uint64*`) and numbers (`int64`).

    It must be plain enough for numba, make no arrays, and use no names of other modules: the cache only looks
    at its own. As plain Python it runs on arrays.
    """

    def made(function: Callable[..., Any]) -> Loop:
        one = Loop(function, result, arguments)
        # Under any other name (doctests see `probes`, not tracekit.probes) no other process would find it.
        return _state.loops.setdefault(one.name, one) if one.name.startswith("tracekit.") else one

    return made


def quicken(*, build_first: bool = False) -> bool:
    """Take the machine code of all loops imported so far from the cache; returns whether it is there.

    `build_first`: compile it, where it is not (seconds).
    """
    if not _state.ready:
        with contextlib.suppress(*_FAILURES):
            import llvmlite.binding as llvm

            _state.ready = _load(llvm)
            if not _state.ready and build_first:
                _builder().wait()
                _state.ready = _load(llvm)
    return _state.ready


def prepare() -> None:
    """Have the loops compiled for the next process, in the background, once; nobody need wait."""
    if not (_state.ready or _state.builder):
        with contextlib.suppress(*_FAILURES):
            _state.builder = _builder()


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """Let numpy do all work meanwhile."""
    codes = {name: one.compiled for name, one in _state.loops.items()}
    try:
        for one in _state.loops.values():
            one.compiled = None
        yield
    finally:
        for name, one in _state.loops.items():
            one.compiled = codes.get(name)


def build(modules: Sequence[str]) -> None:
    """Compile the loops of these modules into the cache, behind everything else that runs."""
    os.nice(19)
    for module in modules:
        importlib.import_module(module)
    import llvmlite.binding as llvm

    machine = _machine(llvm)
    built = [(name, *one.build(machine)) for name, one in sorted(_state.loops.items())]
    body = b"".join(code for _, _, code in built)
    head = {
        "loops": [[name, symbol, len(code)] for name, symbol, code in built],
        "sha256": hashlib.sha256(body).hexdigest(),
    }
    name = _file_name(llvm)
    for folder in _folders():
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder, prefix=name, delete=False) as file:
                file.write(json.dumps(head).encode() + b"\n" + body)
                os.fchmod(file.fileno(), 0o644)  # what root compiled serves all
            Path(file.name).replace(folder / name)
            return


def _builder() -> subprocess.Popen[bytes]:
    modules = sorted({one.function.__module__ for one in _state.loops.values()})
    command = [sys.executable, "-P", "-c", _BUILD, *modules]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, process_group=0)


def _load(llvm: Any) -> bool:
    """Load the object code of all loops, if the cache has it whole."""
    name = _file_name(llvm)
    trusted = {0, os.geteuid(), Path(__file__).stat().st_uid}
    for folder in _folders():
        with contextlib.suppress(FileNotFoundError, PermissionError), (folder / name).open("rb") as file:
            # Code is as good as who may write it: nobody but root, who runs this, and who installed it.
            status = os.fstat(file.fileno())
            if status.st_uid not in trusted or status.st_mode & 0o022:
                continue
            head, body = file.readline(), file.read()
            with contextlib.suppress(ValueError, KeyError):
                told = json.loads(head)
                if hashlib.sha256(body).hexdigest() == told["sha256"]:
                    _take(llvm, told["loops"], body)
                    return True
    return False


def _take(llvm: Any, loops: Sequence[tuple[str, str, int]], body: bytes) -> None:
    # All that code refers to must be there, or LLVM leaves out the rest too.
    libc = ctypes.CDLL(None)
    for name in _LIBC:
        llvm.add_symbol(name, _address(libc, name))
    at = 0
    for name, symbol, size in loops:
        # One for each: LLVM resolves what lies outside for the first object only.
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine(llvm))
        engine.add_object_file(llvm.ObjectFileRef.from_data(body[at : at + size]))
        engine.finalize_object()
        at += size
        if name in _state.loops:
            _state.loops[name].take(engine.get_function_address(symbol))
            _state.engines.append(engine)


def _address(library: ctypes.CDLL, name: str) -> int:
    return ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0


def _machine(llvm: Any) -> Any:
    with contextlib.suppress(RuntimeError):  # llvmlite before 0.45 wants to be told, later ones refuse
        llvm.initialize()
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = llvm.get_host_cpu_features().flatten()
    target = llvm.Target.from_default_triple()
    # As numba sets it for code that may land anywhere.
    return target.create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features, opt=3, codemodel="jitdefault"
    )


def _file_name(llvm: Any) -> str:
    """Return a name that changes with the source, the compiler, and the processor."""
    what = [version("numba"), version("llvmlite"), sys.version, llvm.get_host_cpu_name()]
    what.append(llvm.get_host_cpu_features().flatten())
    for file in sorted({__file__, *(one.function.__code__.co_filename for one in _state.loops.values())}):
        what.append(Path(file).read_text())
    return f"loops-{hashlib.sha256(repr(what).encode()).hexdigest()[:24]}.o"


def _folders() -> list[Path]:
    """Where the cache may be: beside Python's own of this module, or in the user's."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return [Path(__file__).with_name("__pycache__"), Path(caches) / "tracekit"]
