"""Hold this host's deploy lock: holder.py REQUEST, as JSON: who, revision, token, given, waits, silence and mark.

Prints `mark`, and after it `locked`, or in one line why not; then holds it for as long as it hears something on its
input, and answers each time: end of file, or `silence` seconds without anything (60, SILENCE of protocol.py), frees it.
A `given` token was taken by somebody else, who must hold it still. With `waits` it does not begin before it hears
something.

Two locks lie on one file: POSIX's is the deploy's own, flock's is shared by each command that changes the host, to its
end. So a deploy is told from what a killed one left at work. The token in the file is the fence of protocol.py.
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

WAIT = 30  # seconds for what a killed deploy left at work


def origin() -> str:
    """Return the address that this came from. sudo keeps it from what it starts, but root can look."""
    pid = os.getpid()
    while pid > 1:
        with open(f"/proc/{pid}/environ", "rb") as environment, open(f"/proc/{pid}/status", encoding="utf-8") as status:
            if found := re.search(rb"(?:^|\0)SSH_CONNECTION=(\S+)", environment.read()):
                return found[1].decode()
            pid = int(re.findall(r"^PPid:\s+(\d+)$", status.read(), re.MULTILINE)[0])
    return "the host itself"


def commands_ended(file: IO[str]) -> bool:
    """Wait for the commands that a killed deploy left at work; tell whether they have ended."""

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


def note(file: IO[str], request: dict[str, Any]) -> None:
    """Write down who holds the lock, and since when."""
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    record = {key: request[key] for key in ("who", "revision", "token")}
    record |= {"from": origin(), "since": since, "pid": os.getpid()}
    file.seek(0)
    file.write(f"{json.dumps(record)}\n")
    file.flush()
    file.truncate()  # last: a command of the same deploy may look for its token at this moment


def take(file: IO[str], request: dict[str, Any]) -> tuple[str, bool]:
    """Take the lock until this process ends; return `locked`, or why not, and whether this process holds it.

    It does not where another one of the same token does.
    """
    holds = False
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        record = json.loads(file.readline() or "{}")
        if record.get("pid") != posix_lock.holder(file.fileno()):  # what is written there is an earlier deploy's
            return "another deploy of it has just begun; wait for it", holds
        if record["token"] != request["token"]:
            told = "is being deployed by {who} from {from} since {since} (revision {revision}); wait for it"
            return told.format_map(record), holds
    else:
        if request["given"]:
            return "the lock that this deploy was given is held no more; start again what gave it", holds
        note(file, request)
        holds = True
    if commands_ended(file):
        return "locked", holds
    return "a command of an interrupted deploy is still running on it; wait for it, then deploy again", holds


def main(request: dict[str, Any]) -> None:
    """Take the lock, say so, and hold it."""
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
                # The holder before, of the same deploy, was cut off and has ended by now or will.
                with suppress(BlockingIOError):
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    holds = True
                    note(file, request)
            print(flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
