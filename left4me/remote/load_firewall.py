"""Load the firewall's table, and keep it only if a new login confirms it: load_firewall.py ACT.

The act `load` reads the table from standard input. If nobody confirms it within SECONDS, systemd loads the former table
again, or removes the table if there was none. The act `confirm` keeps it; the deploy runs it over a new connection,
which shows that SSH still works. The act `remove` removes the table.
"""

from __future__ import annotations

import os
import subprocess
import sys

from left4me_host import firewall, instance, layout

NEW = f"{layout.RUN}/firewall.nft"
"""The table that is loaded but not confirmed."""
CANDIDATE = f"{NEW}.new"
UNDO = "left4me-firewall-undo"
SECONDS = 30


def run(*command: str) -> str:
    """Run a command and return why it failed, or ""."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else " ".join((done.stderr or done.stdout).split())[:600] or "no reason given"


def must(what: str, *command: str) -> None:
    """Run a command; end this program with one line if it fails."""
    if why := run(*command):
        sys.exit(f"{what}: {why}")


def write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o644)
    with open(fd, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(fd)


def stop_undo() -> None:
    run("systemctl", "stop", f"{UNDO}.timer", f"{UNDO}.service")


def load(text: str) -> None:
    os.makedirs(layout.RUN, exist_ok=True)
    write(CANDIDATE, text)
    if why := run(firewall.NFT, "--check", "--file", CANDIDATE):
        sys.exit(f"nft refuses the firewall's rules, nothing changed: {why}; to go on without: firewall = False")
    stop_undo()  # of an interrupted run
    os.rename(CANDIDATE, NEW)
    delete = f"{firewall.NFT} delete table {' '.join(firewall.TABLE)}"
    undo = f"rm -f {NEW}; if [ -e {layout.FIREWALL} ]; then {firewall.NFT} -f {layout.FIREWALL}; else {delete}; fi"
    timer = ["--quiet", "--collect", f"--unit={UNDO}", f"--on-active={SECONDS}", "--timer-property=AccuracySec=1s"]
    must(
        "cannot schedule the return to the former firewall, so the new one is not loaded",
        "systemd-run",
        *timer,
        "/bin/sh",
        "-c",
        undo,
    )
    must("nft cannot load the firewall's rules", firewall.NFT, "--file", NEW)


def confirm() -> None:
    stop_undo()
    temporary = f"{layout.ETC}/.firewall.nft.new"
    try:
        with open(NEW, encoding="utf-8") as file:
            write(temporary, file.read())
    except FileNotFoundError:
        sys.exit(f"the new login came later than {SECONDS} s, and the host has its former firewall again: deploy again")
    os.rename(temporary, layout.FIREWALL)
    instance.sync_directory(layout.ETC)
    os.unlink(NEW)
    must("the firewall is loaded, but its unit does not start", "systemctl", "start", layout.FIREWALL_UNIT)


def remove() -> None:
    """Remove the table; its unit's file may be removed already."""
    run("systemctl", "stop", layout.FIREWALL_UNIT)
    if firewall.loaded():
        must("cannot remove the firewall", firewall.NFT, "delete", "table", *firewall.TABLE)


if __name__ == "__main__":
    os.umask(0o022)
    act = sys.argv[1]
    if act == "load":
        load(sys.stdin.read())
    else:
        {"confirm": confirm, "remove": remove}[act]()
