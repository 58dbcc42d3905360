"""Install and remove Debian packages, for the programs that a deploy sends. They wait for another package manager."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

from left4me_host import instance

LOCK = "/var/lib/dpkg/lock-frontend"
WAIT = 120  # seconds for another package manager to finish
ENVIRONMENT = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}


def _wait_for_dpkg() -> None:
    """Wait until dpkg's lock is free, since dpkg itself does not wait; exit after WAIT seconds."""

    def give_up(_signal: int, _frame: object) -> None:
        sys.exit(f"another package manager has held {LOCK} for {WAIT} seconds; wait for it to end, then deploy again")

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(WAIT)
    with open(LOCK, "a", encoding="ascii") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
    signal.alarm(0)


@dataclass(frozen=True)
class Done:
    """A command that has ended: whether it succeeded, its standard output, and the errors in its output."""

    succeeded: bool
    output: str
    errors: list[str]


def _run(*command: str) -> Done:
    done = subprocess.run(
        command, env=ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    lines = (done.stdout + done.stderr).splitlines()
    errors = [line.strip() for line in lines if line.startswith(("E:", "Err:", "W: Failed", "dpkg: error"))]
    return Done(done.returncode == 0, done.stdout, errors)


def _apt(*arguments: str) -> Done:
    """Run apt-get, which waits up to WAIT seconds for locks and up to 20 for a silent mirror."""
    options = [f"-oDPkg::Lock::Timeout={WAIT}", "-oAcquire::Retries=1", "-oAcquire::http::Timeout=20"]
    return _run("apt-get", *options, *arguments)


def _repair() -> None:
    """Configure the packages that an interrupted run left half-configured."""
    _wait_for_dpkg()
    if any(os.scandir("/var/lib/dpkg/updates")) or os.path.exists("/var/lib/dpkg/lock-interrupted"):
        _run("dpkg", "--configure", "-a")


def _fields(names: list[str], field: str) -> dict[str, str]:
    """Return a field of packages that dpkg knows, by name as given: libc6 or libc6:i386."""
    query = ["dpkg-query", "-W", "-f", f"${{Package}}:${{Architecture}} ${{{field}}}\n"]
    bare = [name.partition(":")[0] for name in names]
    lines = _run(*query, *bare).output.splitlines()
    found = dict(line.split() for line in lines)
    found |= {name.partition(":")[0]: state for name, state in found.items() if not name.endswith(":i386")}
    return {name: found[name] for name in names if name in found}


def _states(names: list[str]) -> dict[str, str]:
    """Return the states of packages of which something is there, by name as given."""
    return {name: state for name, state in _fields(names, "db:Status-Status").items() if state != "not-installed"}


def _to_be_purged(names: list[str]) -> set[str]:
    """Return the packages whose removal was interrupted before it came to them."""
    return {name for name, wanted in _fields(names, "db:Status-Want").items() if wanted == "purge"} & {*_states(names)}


def installed(names: list[str]) -> list[str]:
    """Return which packages are installed; a name may have an architecture."""
    states = _states(names)
    return [name for name in names if states.get(name) == "installed"]


def install(names: list[str], before: Callable[[list[str]], None] | None = None) -> None:
    """Install packages without recommended ones; exit with lines on standard error if one is not installed at the end.

    Calls `before` with the packages that apt will install; upgraded ones are not among them.
    """
    _repair()
    errors = _run("dpkg", "--add-architecture", "i386").errors
    # A failed update is not an error: with some proxies one index fails, but the install works.
    update = _apt("update")
    arguments = ("install", "--yes", "--no-install-recommends", "--fix-broken", *names)
    if before:
        before(re.findall(r"^Inst (\S+) \(", _apt("--simulate", *arguments).output, re.MULTILINE))
    errors += update.errors + _apt(*arguments).errors
    there = installed(names)
    if left := [name for name in names if name not in there]:
        if update.errors or not update.succeeded:  # apt-get update also exits 0 if it got nothing
            print("the package mirror is not reachable or incomplete", file=sys.stderr)
        for line in dict.fromkeys(errors[:6]):
            print(line, file=sys.stderr)
        sys.exit(f"not installed: {' '.join(left)}; check /etc/apt/sources.list and the route to the mirror")


def purge(names: list[str], ours: list[str]) -> list[str]:
    """Remove packages with their configuration, and those of `ours` that are installed only because of them.

    Removes nothing if packages that are not in `ours` need them, and returns these. After an interruption, it goes on.
    Raises Failed.
    """
    _repair()
    names = [*_states(names)]
    alone = _purged(*names) if names else set()
    if others := sorted(alone - {*ours}):
        return others
    # Apt no longer takes what an interrupted removal has left for automatically installed.
    removed = alone | _to_be_purged(ours) | _purged("--auto-remove", *names) & {*ours}
    if _purged(*removed) - {*ours}:  # a package that apt would also remove, but that others have installed
        removed = alone
    removed |= {name for name, state in _states(ours).items() if state != "installed"}
    if not removed:
        return []
    done = _apt("purge", "--yes", *sorted(removed))
    if left := _states(sorted(removed)):
        raise instance.Failed(f"not removed: {' '.join(left)}: {'; '.join(done.errors[:6]) or 'no reason given'}")
    return []


def _purged(*arguments: str) -> set[str]:
    """Return all packages that `apt-get purge` with these arguments would remove. Raises Failed."""
    done = _apt("--simulate", "purge", *arguments)
    if not done.succeeded:
        raise instance.Failed(f"apt-get cannot remove packages: {'; '.join(done.errors[:6]) or 'no reason given'}")
    return {*re.findall(r"^(?:Purg|Remv) (\S+)", done.output, re.MULTILINE)}
