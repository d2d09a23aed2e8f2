"""A disk that fails, and crashes that leave exactly what was on it: real SQLite files, hooked at each transaction.

SQLite writes nothing but its log during a commit, so the files copied before and after `COMMIT` bound what a crash in
between can leave, and a log cut off anywhere between the two is a torn write.
"""

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from tests.simulation.loop import Killed, VirtualLoop
from tests.simulation.world import World

ERRORS = {
    "enospc": "database or disk is full",
    "eio": "disk I/O error",
    "readonly": "attempt to write a readonly database",
}
_WRITES = ("INSERT", "UPDATE", "DELETE")


class Medium:
    """What one run's processes write to."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world, self.folder = world, folder
        self.saved = folder.with_name("crash")
        self.kill_in: int | None = None
        """The process dies at so many commits from now."""
        self.kill_how = "before"
        self.killed: Callable[[], None] = lambda: None
        self.chance = world.chance("disk")

    def save(self) -> None:
        """Keep the files as they are now: a crash leaves these."""
        shutil.rmtree(self.saved, ignore_errors=True)
        if self.folder.exists():
            shutil.copytree(self.folder, self.saved)

    def restore(self) -> None:
        """Put back what the crash left."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.saved.exists():
            self.saved.rename(self.folder)

    def tear(self, before: dict[str, bytes]) -> None:
        """Cut the log off somewhere within what the last commit has added to it."""
        for path in self.saved.glob("*-wal"):
            old, new = before.get(path.name, b""), path.read_bytes()
            if len(new) > len(old) and new.startswith(old):
                at = self.chance.randrange(len(old), len(new))
                junk = bytes(self.chance.randrange(256) for _ in range(64)) if self.chance.random() < 0.5 else b""
                path.write_bytes(new[:at] + junk)

    def logs(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.folder.glob("*-wal")}


class Disk(sqlite3.Connection):
    """The connection that the store gets."""

    medium: ClassVar[Medium]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._loop = self.medium.world.process

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
        medium = self.medium
        if not _lives(self._loop) or medium.world.process is not self._loop:
            return super().execute(sql, *args)
        if sql == "COMMIT":
            return self._commit()
        if sql.startswith(_WRITES):
            self._refuse(medium)
        return super().execute(sql, *args)

    def executemany(self, sql: str, *args: Any) -> sqlite3.Cursor:
        if _lives(self._loop):
            self._refuse(self.medium)
        return super().executemany(sql, *args)

    def _refuse(self, medium: Medium) -> None:
        for kind, text in ERRORS.items():
            if medium.world.in_force(kind) and medium.chance.random() < 0.5 and medium.world.on(kind):
                medium.world.planted.add(kind)
                raise sqlite3.OperationalError(text)

    def _commit(self) -> sqlite3.Cursor:
        medium, world = self.medium, self.medium.world
        if world.in_force("eio") and medium.chance.random() < 0.5 and world.on("eio"):
            world.planted.add("eio")
            raise sqlite3.OperationalError(ERRORS["eio"])
        if world.on("slow_fsync"):
            world.timeline.pass_until(world.now_s + medium.chance.uniform(0.05, 1.5))
        if medium.kill_in is not None:
            medium.kill_in -= 1
            if medium.kill_in <= 0:
                self._die(medium)
        return super().execute("COMMIT")

    def _die(self, medium: Medium) -> None:
        how, medium.kill_in = medium.kill_how, None
        before = medium.logs()
        if how != "before":
            super().execute("COMMIT")
        medium.save()
        if how == "torn":
            medium.tear(before)
        medium.world.fired[f"kill_{how}_commit"] += 1
        medium.killed()
        raise Killed


def _lives(loop: VirtualLoop | None) -> bool:
    return loop is not None and loop.alive and not loop.is_closed()
