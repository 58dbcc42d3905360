"""Runs in the box: on_host.py resets|starts ROUNDS; times those of servers there and prints JSON.

Both ways of a reset are timed from the start of their process to its end, one after the other in each round.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time

VAR = "/var/lib/left4me"
UPPER = f"{VAR}/runtime/3/upper"
CTL = ["/usr/local/sbin/l4d2ctl", "reset", "3"]
# What a reset is, with nothing around it.
SHELL = ["/bin/sh", "-ec", f"""
    systemctl stop left4me-server@3
    into={VAR}/attic/bench@$$; mkdir $into; cd {VAR}/runtime/3
    mv upper work $into
    mkdir upper work; chown left4me-3:left4me upper; chmod 755 upper; chmod 700 work
    systemctl start left4me-server@3
"""]  # fmt: skip


def run(command: list[str]) -> tuple[float, str]:
    """Return how many seconds a command takes, and what it prints."""
    begin = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return time.perf_counter() - begin, done.stdout


def quiet() -> None:
    """Forget the start limit, and let what resets put aside be removed before the next is timed."""
    subprocess.run(["systemctl", "reset-failed", "left4me-server@3"], check=True)
    subprocess.run(["systemctl", "start", "left4me-attic"], check=True)


def without_start(seconds: float, said: str) -> float:
    """Return the seconds of a reset less those that it says it took to start the server again."""
    found = re.search(r"start ([0-9.]+) s", said)
    assert found, said
    return seconds - float(found[1])


def files(count: int) -> None:
    """Put so many files into upper."""
    for number in range(count):
        if number % 1000 == 0:
            os.makedirs(f"{UPPER}/files/{number // 1000}")
        with open(f"{UPPER}/files/{number // 1000}/{number}", "w", encoding="ascii"):
            pass
    os.sync()  # a game writes them over an evening; what is timed would else wait for all of them at once


def installation(name: str, megabytes: int, count: int) -> None:
    """Make a copy of the release the current one, with so many megabytes (sparse) and files more."""
    target = f"{VAR}/releases/{name}"
    if not os.path.exists(target):
        subprocess.run(["cp", "-a", os.path.realpath(f"{VAR}/installation"), target], check=True)
        for number in range(count):
            with open(f"{target}/left4dead2/{number}.vpk", "wb") as file:
                file.truncate((megabytes << 20) // count)
    os.symlink(f"releases/{name}", f"{VAR}/.bench")
    os.rename(f"{VAR}/.bench", f"{VAR}/installation")


def resets(rounds: int) -> dict[str, list[float]]:
    """Return the seconds of every reset of the running server 3, by what it was."""
    seconds: dict[str, list[float]] = {}
    for _ in range(rounds):
        quiet()
        taken, said = run(CTL)
        seconds.setdefault("l4d2ctl", []).append(taken)
        seconds.setdefault("l4d2ctl without the start", []).append(without_start(taken, said))
        quiet()
        seconds.setdefault("shell", []).append(run(SHELL)[0])
    for _ in range(max(3, rounds // 5)):
        for count in (10, 100_000):
            quiet()
            files(count)
            seconds.setdefault(f"{count} files in upper", []).append(run(CTL)[0])
    current = os.readlink(f"{VAR}/installation")
    for _ in range(max(3, rounds // 5)):
        for name, megabytes, count in (("80 MB", 80, 100), ("8 GB", 8192, 20_000)):
            installation(f"bench-{megabytes}", megabytes, count)
            run(CTL)  # the first is still the reset of the other
            quiet()
            seconds.setdefault(f"{name} of installation", []).append(run(CTL)[0])
    os.symlink(current, f"{VAR}/.bench")
    os.rename(f"{VAR}/.bench", f"{VAR}/installation")
    return seconds


def written(server: str) -> int:
    """Return the bytes on disk of all that a server's start and its game wrote."""
    said = run(["du", "--summarize", "--block-size=1", f"{VAR}/runtime/{server}/upper"])[1]
    return int(said.split()[0])


def starts(rounds: int) -> dict[str, list[float]]:
    """Return the seconds of starts by what they were, and the bytes that they wrote."""
    seconds: dict[str, list[float]] = {}
    ctl = CTL[0]
    for _ in range(rounds):
        for name, megabytes, count in (("80 MB", 80, 100), ("8 GB", 8192, 20_000)):
            installation(f"bench-{megabytes}", megabytes, count)
            quiet()
            run([ctl, "stop", "12"])
            run([ctl, "reset", "12"])  # as one that the data have just added
            empty = written("12")
            run(["rm", f"{VAR}/held/12"])
            seconds.setdefault(f"added server, {name}", []).append(run(["systemctl", "start", "left4me-server@12"])[0])
            seconds.setdefault(f"bytes written, {name}", []).append(written("12") - empty)
            run(["systemctl", "stop", "left4me-server@3"])
            seconds.setdefault(f"after an update, {name}", []).append(
                run(["systemctl", "start", "left4me-server@3"])[0]
            )
            run(["systemctl", "reset-failed", "left4me-server@3", "left4me-server@12"])
    return seconds


if __name__ == "__main__":
    print(json.dumps({"resets": resets, "starts": starts}[sys.argv[1]](int(sys.argv[2]))))
