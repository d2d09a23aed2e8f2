"""The folder of one daemon: nobody else may work in it, and a file that cannot be read is put aside, never deleted."""

import contextlib
import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from daemon import topics

_MARK = ".set-aside."


class FolderInUse(Exception):
    """Another process works in the folder; the text names it."""


class FolderLock:
    """A lock on a file, held until `release` or the end of the process, however that comes."""

    def __init__(self, path: Path) -> None:
        """Take the lock at once.

        Raises:
            FolderInUse: somebody has it.
            OSError: the file cannot be made, or the file system knows no locks.

        """
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with contextlib.ExitStack() as undo:
            undo.callback(self.release)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(self._descriptor, 20).decode(errors="replace").strip()
                raise FolderInUse(f"process {holder or 'unknown'}") from None
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, f"{os.getpid()}\n".encode())
            undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """Let somebody else have it. The file stays: who removes it may remove another's lock."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def set_aside(path: Path, reason: str, *, now_ns: int) -> Path:
    """Rename a database, and its log of changes with it, to a name that says when and why; return that.

    The log goes first: left behind, it would be taken for the new file's.
    """
    stamp = topics.rfc3339(now_ns).replace(":", "").replace(".", "").replace("-", "")
    words = "-".join("".join(c if c.isalnum() else " " for c in reason.lower()).split())[:60]
    aside = path.with_name(f"{path.name}{_MARK}{stamp}.{words}")
    for suffix in ("-wal", ""):
        source = path.with_name(path.name + suffix)
        if source.exists():
            source.rename(aside.with_name(aside.name + suffix))
    return aside


def aside_of(path: Path) -> list[str]:
    """Name the files that were set aside beside `path`, oldest first."""
    found = path.parent.glob(f"{path.name}{_MARK}*")
    return sorted(entry.name for entry in found if not entry.name.endswith(("-wal", "-shm")))
