"""Which module files a set of modules needs, and in what order to load them."""

from __future__ import annotations

import lzma
import re
from collections.abc import Iterable
from pathlib import Path

from tracekit.errors import CapabilityError

__all__ = ["load_order"]


def load_order(modules: Path, wanted: Iterable[str]) -> list[tuple[str, bytes]]:
    """Return (name, uncompressed file) of the wanted modules and all they depend on, dependencies first.

    `modules` is a lib/modules/RELEASE folder; what is built into the kernel is left out. A package brings no
    modules.dep (depmod makes that on installation), so this follows each file's own `depends=` record.
    Raises `CapabilityError` for a module that this kernel doesn't have.
    """
    files = {_name(path.name.split(".ko")[0]): path for path in modules.rglob("*.ko*")}
    builtin = {_name(Path(line).stem) for line in (modules / "modules.builtin").read_text().split()}
    ordered: dict[str, bytes] = {}

    def visit(name: str) -> None:
        if name in ordered or name in builtin:
            return
        if name not in files:
            raise CapabilityError(
                f"kernel {modules.name} has no module {name}", hint="use a newer linux-image-cloud-amd64"
            )
        content = files[name].read_bytes()
        if files[name].suffix == ".xz":
            content = lzma.decompress(content)
        depends = re.search(rb"\0depends=([^\0]*)\0", content)
        for dependency in depends[1].decode().split(",") if depends else ():
            if dependency:
                visit(_name(dependency))
        ordered[name] = content

    for name in wanted:
        visit(_name(name))
    return list(ordered.items())


def _name(name: str) -> str:
    """Module names count - and _ as the same."""
    return name.replace("-", "_")
