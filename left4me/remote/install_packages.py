"""Install Debian packages: install_packages.py NAME:ARCHITECTURE…; fails if one is not installed at the end.

While another package manager runs, it waits.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys

LOCK = "/var/lib/dpkg/lock-frontend"
WAIT = 120  # seconds for another package manager to finish
ENVIRONMENT = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}


def wait_for_dpkg() -> None:
    """Wait until dpkg's lock is free, since dpkg itself does not wait; exit after WAIT seconds."""

    def give_up(_signal: int, _frame: object) -> None:
        sys.exit(f"another package manager has held {LOCK} for {WAIT} seconds; wait for it to end, then deploy again")

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(WAIT)
    with open(LOCK, "a", encoding="ascii") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
    signal.alarm(0)


def run(*command: str) -> tuple[bool, list[str]]:
    """Run a command; return whether it succeeded, and the error lines of its output."""
    done = subprocess.run(
        command, env=ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    lines = (done.stdout + done.stderr).splitlines()
    why = [line.strip() for line in lines if line.startswith(("E:", "Err:", "W: Failed", "dpkg: error"))]
    return done.returncode == 0, why


def apt(*arguments: str) -> tuple[bool, list[str]]:
    """Run apt-get, which waits up to WAIT seconds for locks and up to 20 for a silent mirror."""
    options = [f"-oDPkg::Lock::Timeout={WAIT}", "-oAcquire::Retries=1", "-oAcquire::http::Timeout=20"]
    return run("apt-get", *options, *arguments)


def missing(names: list[str]) -> list[str]:
    query = ["dpkg-query", "-W", "-f", "${Package}:${Architecture} ${db:Status-Status}\n"]
    installed = subprocess.run(query, capture_output=True, text=True, check=False).stdout.splitlines()
    return [name for name in names if f"{name} installed" not in installed]


def main(names: list[str]) -> None:
    wait_for_dpkg()
    if any(os.scandir("/var/lib/dpkg/updates")) or os.path.exists("/var/lib/dpkg/lock-interrupted"):
        run("dpkg", "--configure", "-a")  # an interrupted run left packages half-configured
    _, why = run("dpkg", "--add-architecture", "i386")
    # A failed update is not an error: with some proxies one index fails, but the install works.
    updated, update_why = apt("update")
    _, install_why = apt("install", "--yes", "--no-install-recommends", "--fix-broken", *names)
    if left := missing(names):
        if update_why or not updated:  # apt-get update also exits 0 if it got nothing
            print("the package mirror is not reachable or incomplete", file=sys.stderr)
        for line in dict.fromkeys([*why, *update_why, *install_why][:6]):
            print(line, file=sys.stderr)
        sys.exit(f"not installed: {' '.join(left)}; check /etc/apt/sources.list and the route to the mirror")


if __name__ == "__main__":
    main(sys.argv[1:])
