"""The trace folder on disk: created private, opened without following links, files replaced atomically."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import stat
from pathlib import Path
from typing import Final

from tracekit.errors import FailedError, UsageError

__all__ = ["EVENTS_DIR", "Folder", "cannot_make", "is_trace", "part_name"]

EVENTS_DIR: Final = "events"
_OWN_NAMES: Final = re.compile(
    r"(meta\.json|manifest\.jsonl|journal\.ndjson|(memslots|samples|losses)\.arrow|events"
    r"|events/\d{5,}\.(arrow|parquet)(\.part)?)(\.tmp|\.damaged)?"
)


def part_name(number: int) -> str:
    """Return the name of a closed part inside `events/`; an open one has `.part` behind it.

    >>> part_name(7)
    '00007.arrow'
    """
    return f"{number:05d}.arrow"


def is_trace(path: Path) -> bool:
    """Tell whether the path is a folder with a `meta.json`, not a link to one."""
    return not path.is_symlink() and path.is_dir() and (path / "meta.json").is_file()


class Folder:
    """An open trace folder: every access goes through its descriptors, so no link can redirect it.

    Files get mode 0600, folders 0700, and `owner` (uid, gid) if given, for a recorder that runs as root
    on behalf of a user.
    """

    def __init__(self, path: Path, *, owner: tuple[int, int] | None = None) -> None:
        """Open an existing trace folder; OSError if it is not a real folder."""
        self.path = path
        self._owner = owner
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        self.fd = os.open(path, flags)
        try:
            self.events_fd = os.open(EVENTS_DIR, flags, dir_fd=self.fd)
        except OSError:
            os.close(self.fd)
            raise

    @classmethod
    def create(cls, path: Path, *, force: bool = False, owner: tuple[int, int] | None = None) -> Folder:
        """Make a new trace folder; `force` replaces a trace that is there, and nothing else.

        Raises UsageError when something is in the way, FailedError when the disk refuses.
        """
        cls.refuse_unless_replaceable(path, force=force)
        if not path.exists():
            return cls._make(path, owner)
        try:
            aside = _move_aside(path)
        except OSError as error:
            raise cannot_make(path, error) from None
        try:
            folder = cls._make(path, owner)
        except BaseException:
            aside.rename(path)
            raise
        # What can't be removed (another user's) stays aside, out of the way.
        shutil.rmtree(aside, ignore_errors=True)
        return folder

    @staticmethod
    def refuse_unless_replaceable(path: Path, *, force: bool) -> None:
        """Raise UsageError when something is at `path` that may not be replaced."""
        if path.is_symlink() or path.exists():
            _refuse_unless_replaceable(path, force=force)

    def publish(self, path: Path, *, force: bool = False) -> None:
        """Give a finished folder its real name, replacing a trace that is there only with `force`."""
        self.refuse_unless_replaceable(path, force=force)
        aside = _move_aside(path) if path.exists() else None
        self.path.rename(path)
        self.path = path
        if aside is not None:
            shutil.rmtree(aside)

    @classmethod
    def _make(cls, path: Path, owner: tuple[int, int] | None) -> Folder:
        made = False
        try:
            path.mkdir(mode=0o700)
            made = True
            (path / EVENTS_DIR).mkdir(mode=0o700)
            if owner is not None:
                os.chown(path, *owner)
                os.chown(path / EVENTS_DIR, *owner)
            folder = cls(path, owner=owner)
        except FileNotFoundError:
            raise UsageError(
                f"no folder {path.parent} to put {path.name} into", hint=f"mkdir -p {path.parent}"
            ) from None
        except OSError as error:
            if made:
                shutil.rmtree(path, ignore_errors=True)
            raise cannot_make(path, error) from None
        folder.lock()
        return folder

    def lock(self) -> bool:
        """Try to become the only process that changes this trace; held until `close` or the process ends."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return False
            raise
        return True

    def dir_fd(self, name: str) -> tuple[int, str]:
        """Return the descriptor and bare name for a path inside the trace such as `events/00000.arrow`."""
        head, _, tail = name.rpartition("/")
        return (self.events_fd if head == EVENTS_DIR else self.fd), tail

    def new_file(self, name: str) -> int:
        """Create a file that must not exist yet and return its descriptor."""
        at, tail = self.dir_fd(name)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(tail, flags, 0o600, dir_fd=at)
        if self._owner is not None:
            os.fchown(fd, *self._owner)
        return fd

    def open_file(self, name: str, flags: int = os.O_RDONLY) -> int:
        """Open a regular file of the trace, never through a link; OSError if it is something else."""
        at, tail = self.dir_fd(name)
        fd = os.open(tail, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=at)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "not a regular file", name)
        return fd

    def size(self, name: str) -> int:
        """Return the bytes of a regular file; OSError if it is a link, a device or a FIFO, or not there."""
        fd = self.open_file(name)
        try:
            return os.fstat(fd).st_size
        finally:
            os.close(fd)

    def read(self, name: str) -> bytes:
        """Return the content of a (small) file."""
        with os.fdopen(self.open_file(name), "rb") as file:
            return file.read()

    def rename(self, old: str, new: str) -> None:
        """Rename a file inside its folder, replacing what has the new name, and make that durable."""
        at, old_tail = self.dir_fd(old)
        _, new_tail = self.dir_fd(new)
        os.rename(old_tail, new_tail, src_dir_fd=at, dst_dir_fd=at)
        os.fsync(at)

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        at, tail = self.dir_fd(name)
        try:
            os.unlink(tail, dir_fd=at)
        except FileNotFoundError:
            return

    def replace(self, name: str, content: bytes | memoryview) -> None:
        """Replace a file as a whole: a crash leaves the old or the new content, never a mixture."""
        temporary = f"{name}.tmp"
        self.remove(temporary)
        fd = self.new_file(temporary)
        try:
            write_all(fd, content)
            os.fsync(fd)
        finally:
            os.close(fd)
        self.rename(temporary, name)

    def names(self) -> list[str]:
        """Return the files of the trace, those of `events/` with that prefix, sorted."""
        top = [name for name in _list(self.fd) if name != EVENTS_DIR]
        return sorted(top + [f"{EVENTS_DIR}/{name}" for name in _list(self.events_fd)])

    def exists(self, name: str) -> bool:
        """Tell whether a file (not a link) of that name is there."""
        at, tail = self.dir_fd(name)
        try:
            return stat.S_ISREG(os.stat(tail, dir_fd=at, follow_symlinks=False).st_mode)
        except FileNotFoundError:
            return False

    def removed(self) -> bool:
        """Tell whether somebody removed the folder under us: what is written now would vanish."""
        return os.fstat(self.events_fd).st_nlink == 0 or os.fstat(self.fd).st_nlink == 0

    def where(self) -> Path:
        """Return where the folder is now: whoever moves it while we write does not stop us."""
        mine = os.fstat(self.fd)
        for path in (self.path, Path(f"/proc/self/fd/{self.fd}")):
            with contextlib.suppress(OSError):
                found = path if path == self.path else path.readlink()
                if os.path.samestat(found.lstat(), mine):
                    return found
        return self.path

    def close(self) -> None:
        """Close the descriptors, which also releases the lock."""
        os.close(self.events_fd)
        os.close(self.fd)


def _list(fd: int) -> list[str]:
    return os.listdir(fd)


def write_all(fd: int, content: bytes | bytearray | memoryview) -> None:
    """Write every byte, or raise OSError; a short write is followed by another."""
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]


def cannot_make(path: Path, error: OSError) -> FailedError:
    """Return the error that says that no trace could be begun there."""
    return FailedError(f"cannot make {path}: {error.strerror}", hint="choose another place with -o")


def _move_aside(path: Path) -> Path:
    return path.rename(path.with_name(f".{path.name}.replaced-{os.getpid()}"))


def _refuse_unless_replaceable(path: Path, *, force: bool) -> None:
    if path.is_symlink():
        raise UsageError(
            f"{path} is a symbolic link; a trace is never written through one", hint="choose another name"
        )
    if not is_trace(path):
        raise UsageError(
            f"{path} exists and is not a trace", hint="choose another name with -o; -f only replaces traces"
        )
    if not force:
        raise UsageError(f"{path} exists", hint="-f replaces it, -o NAME writes elsewhere")
    foreign = [
        name
        for item in path.rglob("*")
        if not _OWN_NAMES.fullmatch(name := item.relative_to(path).as_posix()) or item.is_symlink()
    ]
    if foreign:
        raise UsageError(
            f"{path} also holds {foreign[0]!r}, which is not part of a trace",
            hint="move it away, or choose another name",
        )
    folder = Folder(path)
    try:
        if not folder.lock():
            raise UsageError(
                f"{path} is still being recorded", hint="stop that recording, or choose another name"
            )
    finally:
        folder.close()
