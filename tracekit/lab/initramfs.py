"""An initramfs made here: the `newc` cpio format, written in memory."""

from __future__ import annotations

import stat
from dataclasses import dataclass, field

__all__ = ["Initramfs"]


@dataclass
class Initramfs:
    """Files for the kernel to unpack at boot; parents are made as needed.

    >>> image = Initramfs()
    >>> image.add_file("bin/hello", b"hi", executable=True)
    >>> archive = image.to_bytes()
    >>> archive[:6], len(archive) % 512
    (b'070701', 0)
    """

    _entries: dict[str, tuple[int, bytes, tuple[int, int]]] = field(default_factory=dict)

    def add_file(self, path: str, content: bytes, *, executable: bool = False) -> None:
        """Add a regular file."""
        self._add(path, stat.S_IFREG | (0o755 if executable else 0o644), content)

    def add_link(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self._add(path, stat.S_IFLNK | 0o777, target.encode())

    def add_folder(self, path: str) -> None:
        """Add an empty folder."""
        self._add(path, stat.S_IFDIR | 0o755, b"")

    def add_device(self, path: str, major: int, minor: int) -> None:
        """Add a character device."""
        self._add(path, stat.S_IFCHR | 0o600, b"", (major, minor))

    def to_bytes(self) -> bytes:
        """Return the archive."""
        archive = bytearray()
        entries = [*self._entries.items(), ("TRAILER!!!", (0, b"", (0, 0)))]
        for inode, (path, (mode, content, (major, minor))) in enumerate(entries, start=1):
            name = path.encode() + b"\0"
            # inode, mode, uid, gid, links, mtime, size, device, rdev (major, minor), name size, check
            fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, major, minor, len(name), 0)
            archive += b"070701" + b"".join(b"%08X" % value for value in fields) + name
            archive += bytes(-len(archive) % 4) + content
            archive += bytes(-len(archive) % 4)
        return bytes(archive) + bytes(-len(archive) % 512)

    def _add(self, path: str, mode: int, content: bytes, device: tuple[int, int] = (0, 0)) -> None:
        parts = path.strip("/").split("/")
        for depth in range(1, len(parts)):
            self._entries.setdefault("/".join(parts[:depth]), (stat.S_IFDIR | 0o755, b"", (0, 0)))
        self._entries["/".join(parts)] = (mode, content, device)
