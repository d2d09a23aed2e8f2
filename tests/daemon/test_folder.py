"""One daemon a folder; what is damaged keeps its bytes under another name."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from daemon import folder
from daemon.folder import FolderInUse, FolderLock

HOLDER = """
import os, sys
from pathlib import Path
from daemon.folder import FolderLock
FolderLock(Path(sys.argv[1]))
print(1, flush=True)
input()
os.kill(os.getpid(), 9)
"""
NOON_NS = 1_767_268_800_123_000_000


def test_a_lock_is_one_processes_until_its_end(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "1\n"
        for _ in range(2):
            with pytest.raises(FolderInUse, match=f"process {other.pid}"):
                FolderLock(path)
        other.communicate("\n", timeout=60)
    with FolderLock(path):
        assert path.read_text() == f"{os.getpid()}\n"
        with pytest.raises(FolderInUse, match=f"process {os.getpid()}"):
            FolderLock(path)
    FolderLock(path).release()


def test_where_no_lock_can_be_the_system_says_why(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        FolderLock(tmp_path / "nowhere" / "x.lock")


def test_a_file_and_its_log_are_renamed_with_time_and_reason(tmp_path: Path) -> None:
    path = tmp_path / "lstmd.sqlite"
    for at, reason in enumerate(("Malformed: page 7 (../x)", "r" * 200)):
        path.write_bytes(b"database")
        log = tmp_path / "lstmd.sqlite-wal"
        if not at:
            log.write_bytes(b"log")
        aside = folder.set_aside(path, reason, now_ns=NOON_NS + at * 10**9)
        assert aside.read_bytes() == b"database"
        assert not path.exists()
        assert not log.exists()
    names = folder.aside_of(path)
    assert names == [
        "lstmd.sqlite.set-aside.20260101T120000123Z.malformed-page-7-x",
        "lstmd.sqlite.set-aside.20260101T120001123Z." + "r" * 60,
    ]
    assert (tmp_path / f"{names[0]}-wal").read_bytes() == b"log"
