"""Hold this host's deploy lock: holder.py REQUEST, a JSON object: who, revision, token, given, waits, silence, mark.

It prints `mark`, followed by `locked` or the reason of a refusal. Then it holds the lock and answers each heartbeat on
standard input with an empty line. It ends at end of file, or after `silence` seconds without a heartbeat. With
`given`, the token belongs to a rollout, which must already hold the lock. With `waits`, holder.py takes the lock at the
first heartbeat.

The lock file has two kinds of lock. A deploy holds the POSIX lock. Each command that changes the host holds a shared
flock until it ends, so that a new deploy can wait for orphaned commands. The fence (protocol.py) reads the token.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import select
import signal
import sys
import time
from contextlib import suppress
from typing import IO, Any

from left4me_host import layout, posix_lock

WAIT = 30  # seconds for orphaned commands to end


def origin() -> str:
    """Return the SSH client's address from a parent's environment, since sudo drops SSH_CONNECTION."""
    pid = os.getpid()
    while pid > 1:
        with open(f"/proc/{pid}/environ", "rb") as environment, open(f"/proc/{pid}/status", encoding="utf-8") as status:
            if found := re.search(rb"(?:^|\0)SSH_CONNECTION=(\S+)", environment.read()):
                return found[1].decode()
            pid = int(re.findall(r"^PPid:\s+(\d+)$", status.read(), re.MULTILINE)[0])
    return "the host itself"


def commands_ended(file: IO[str]) -> bool:
    """Return whether all orphaned commands end within WAIT seconds."""

    def give_up(_signal: int, _frame: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(WAIT)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except TimeoutError:
        return False
    signal.alarm(0)
    fcntl.flock(file, fcntl.LOCK_UN)
    return True


def write_record(file: IO[str], request: dict[str, Any]) -> None:
    """Write who holds the lock, from where and since when."""
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    record = {key: request[key] for key in ("who", "revision", "token")}
    record |= {"from": origin(), "since": since, "pid": os.getpid()}
    file.seek(0)
    file.write(f"{json.dumps(record)}\n")
    file.flush()
    file.truncate()  # last, because a command of this deploy may be reading the token


def take(file: IO[str], request: dict[str, Any]) -> tuple[str, bool]:
    """Take the lock. Return `locked` or the reason of a refusal, and whether this process holds the lock.

    If another process with the same token holds the lock, the answer is `locked` too.
    """
    holds = False
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        record = json.loads(file.readline() or "{}")
        # Without a pid it is of an older left4me.
        if not record or ("pid" in record and record["pid"] != posix_lock.holder(file.fileno())):
            return "another deploy has just begun; wait for it", holds
        if record["token"] != request["token"]:
            owner = "is being deployed by {who} from {from} since {since} (revision {revision}); wait for it"
            return owner.format_map(record), holds
    else:
        if request["given"]:
            return "the rollout that started this deploy no longer holds the lock; start the rollout again", holds
        write_record(file, request)
        holds = True
    if commands_ended(file):
        return "locked", holds
    return "a command of an interrupted deploy is still running; wait for it to end, then deploy again", holds


def main(request: dict[str, Any]) -> None:
    if request["waits"] and not os.read(0, 1):
        return
    os.makedirs(layout.RUN, 0o755, exist_ok=True)
    with open(
        os.open(layout.DEPLOY_LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+", encoding="utf-8"
    ) as file:
        answer, holds = take(file, request)
        print(f"{request['mark']}{answer}", flush=True)
        while answer == "locked" and select.select([0], [], [], request["silence"])[0] and os.read(0, 4096):
            if not holds and not request["given"]:
                # A lost connection of this deploy still has the lock, but will end.
                with suppress(BlockingIOError):
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    holds = True
                    write_record(file, request)
            print(flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
