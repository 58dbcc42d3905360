"""on_host.py resets|starts ROUNDS: time resets or starts of servers in the box and print JSON.

A reset's time is that of its process. Each round measures l4d2ctl and the shell script.
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
# The baseline: the bare steps of a reset.
SHELL = ["/bin/sh", "-ec", f"""
    systemctl stop left4me-server@3
    into={VAR}/attic/bench@$$; mkdir $into; cd {VAR}/runtime/3
    mv upper work $into
    mkdir upper work; chown left4me-3:left4me upper; chmod 755 upper; chmod 700 work
    systemctl start left4me-server@3
"""]  # fmt: skip


def run(command: list[str]) -> tuple[float, str]:
    """Return the seconds that a command took and its output."""
    begin = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return time.perf_counter() - begin, done.stdout


def prepare() -> None:
    """Reset the start limit and finish the attic's cleanup before the next measurement."""
    subprocess.run(["systemctl", "reset-failed", "left4me-server@3"], check=True)
    subprocess.run(["systemctl", "start", "left4me-attic"], check=True)


def without_start(seconds: float, output: str) -> float:
    """Return the seconds of a reset minus the server start, which `output` reports."""
    found = re.search(r"start ([0-9.]+) s", output)
    assert found, output
    return seconds - float(found[1])


def create_files(count: int) -> None:
    """Create `count` empty files in upper."""
    for number in range(count):
        if number % 1000 == 0:
            os.makedirs(f"{UPPER}/files/{number // 1000}")
        with open(f"{UPPER}/files/{number // 1000}/{number}", "w", encoding="ascii"):
            pass
    os.sync()  # a game writes its files over hours, so the measurement must not include the write-back


def grow_installation(name: str, megabytes: int, count: int) -> None:
    """Copy the current release, add `count` sparse files (`megabytes` in total), make it current."""
    target = f"{VAR}/releases/{name}"
    if not os.path.exists(target):
        subprocess.run(["cp", "-a", os.path.realpath(f"{VAR}/installation"), target], check=True)
        for number in range(count):
            with open(f"{target}/left4dead2/{number}.vpk", "wb") as file:
                file.truncate((megabytes << 20) // count)
    os.symlink(f"releases/{name}", f"{VAR}/.bench")
    os.rename(f"{VAR}/.bench", f"{VAR}/installation")


def resets(rounds: int) -> dict[str, list[float]]:
    """Reset the running server 3; return the seconds by kind of reset."""
    seconds: dict[str, list[float]] = {}
    for _ in range(rounds):
        prepare()
        taken, output = run(CTL)
        seconds.setdefault("l4d2ctl", []).append(taken)
        seconds.setdefault("l4d2ctl without the start", []).append(without_start(taken, output))
        prepare()
        seconds.setdefault("shell", []).append(run(SHELL)[0])
    for _ in range(max(3, rounds // 5)):
        for count in (10, 100_000):
            prepare()
            create_files(count)
            seconds.setdefault(f"{count} files in upper", []).append(run(CTL)[0])
    current = os.readlink(f"{VAR}/installation")
    for _ in range(max(3, rounds // 5)):
        for name, megabytes, count in (("80 MB", 80, 100), ("8 GB", 8192, 20_000)):
            grow_installation(f"bench-{megabytes}", megabytes, count)
            run(CTL)  # the first reset still has the other installation mounted
            prepare()
            seconds.setdefault(f"{name} of installation", []).append(run(CTL)[0])
    os.symlink(current, f"{VAR}/.bench")
    os.rename(f"{VAR}/.bench", f"{VAR}/installation")
    return seconds


def written(server: str) -> int:
    """Return the disk usage of a server's upper directory in bytes."""
    return int(run(["du", "--summarize", "--block-size=1", f"{VAR}/runtime/{server}/upper"])[1].split()[0])


def starts(rounds: int) -> dict[str, list[float]]:
    """Start servers; return the seconds by kind of start, and the bytes written."""
    seconds: dict[str, list[float]] = {}
    ctl = CTL[0]
    for _ in range(rounds):
        for name, megabytes, count in (("80 MB", 80, 100), ("8 GB", 8192, 20_000)):
            grow_installation(f"bench-{megabytes}", megabytes, count)
            prepare()
            run([ctl, "stop", "12"])
            run([ctl, "reset", "12"])  # like a server that was just added
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
