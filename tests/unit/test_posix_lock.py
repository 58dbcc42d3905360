"""Who has a lock is looked at without taking it."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path

from left4me_host import posix_lock

HOLDS = (
    "import fcntl, sys; file = open(sys.argv[1], 'r+'); fcntl.lockf(file, fcntl.LOCK_EX); print(flush=True); input()"
)


def test_the_holder_is_named_and_the_look_takes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    with path.open("r+") as file:
        assert posix_lock.holder(file.fileno()) == 0
        command = [sys.executable, "-c", HOLDS, str(path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout
            process.stdout.readline()  # it could lock it, after the look
            assert posix_lock.holder(file.fileno()) == process.pid
            process.communicate(b"\n")
        assert posix_lock.holder(file.fileno()) == 0
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
