"""The host's Cockpit, which shows left4me's page. The machine that deploys uses the paths.

A deploy installs Cockpit, and reconfigures and removes only what it installed: RECORD has these packages.
"""

from __future__ import annotations

import errno
import glob
import grp
import json
import os
import pwd
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_address
from typing import Any

from left4me_host import apt, instance, layout, procfs

PACKAGES = ("cockpit-ws", "cockpit-system")
"""The web server, and Cockpit's own pages; the bridge comes with them."""
RECORD = f"{layout.VAR}/web-packages"
"""The packages that deploys installed for the page, one a line, written before they are installed."""
PAGES = "/usr/local/share/cockpit"
PAGE = f"{PAGES}/left4me"
SOCKET = "cockpit.socket"
SERVICE = "cockpit.service"
DROP_INS = f"{layout.OWN_UNITS}/{SOCKET}.d"
DROP_IN = f"{DROP_INS}/left4me.conf"
SETTINGS = "/etc/cockpit/cockpit.conf"
MARK = "# Deployed by left4me"
"""How a line of a cockpit.conf begins that is left4me's."""
REFUSED = "/etc/cockpit/disallowed-users"


def recorded() -> list[str]:
    return procfs.read(RECORD).split()


def record(names: list[str]) -> None:
    """Add packages to RECORD; it is on disk before this returns."""
    new = f"{RECORD}.new"
    with open(new, "w", encoding="ascii") as file:
        file.writelines(f"{name}\n" for name in sorted({*recorded(), *names}))
        file.flush()
        os.fsync(file.fileno())
    os.rename(new, RECORD)
    instance.sync_directory(layout.VAR)


def settings() -> str:
    """Return whose cockpit.conf there is: "ours", "closed" or "open" for somebody else's, or "" for none.

    "closed" is one with LoginTo = false: nobody uses this host to log in to others.
    """
    text = procfs.read(SETTINGS)
    if text.startswith(MARK):
        return "ours"
    if re.search(r"^\s*LoginTo\s*=\s*(false|no|0)\s*$", text, re.MULTILINE | re.IGNORECASE):
        return "closed"
    return "open" if os.path.lexists(SETTINGS) else ""


def endpoint(address: str, port: int) -> str:
    """Return an address and a port as systemd writes them."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def parsed(listen: str) -> tuple[str, int]:
    """Return address and port of an endpoint."""
    address, _, port = listen.rpartition(":")
    return address.strip("[]"), int(port)


def _bound(pid: str) -> set[str]:
    """Return where a process listens; nothing if it has ended."""
    inodes = set()
    with suppress(FileNotFoundError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(FileNotFoundError):  # just closed
                inodes.add(os.readlink(f"/proc/{pid}/fd/{name}"))
    found = set()
    for line in (procfs.read("/proc/net/tcp") + procfs.read("/proc/net/tcp6")).splitlines():
        fields = line.split()
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:  # proc_net_tcp.rst: TCP_LISTEN
            words, _, port = fields[1].partition(":")
            raw = b"".join(bytes.fromhex(words[at : at + 8])[::-1] for at in range(0, len(words), 8))
            found.add(endpoint(str(ip_address(raw)), int(port, 16)))
    return found


def _properties(unit: str, *names: str) -> dict[str, str]:
    show = ["systemctl", "show", f"--property={','.join(names)}", unit]
    lines = subprocess.run(show, capture_output=True, text=True, check=True).stdout.splitlines()
    found: dict[str, str] = {}
    for key, _, value in (line.partition("=") for line in lines):
        found[key] = f"{found[key]}\n{value}" if key in found else value
    return found


def listens() -> list[str]:
    """Return where cockpit.socket listens; [] unless it does so now and after a reboot."""
    shown = _properties(SOCKET, "ActiveState", "UnitFileState", "Listen")
    ends = [line.removesuffix(" (Stream)") for line in shown.get("Listen", "").splitlines()]
    is_up = (shown["ActiveState"], shown["UnitFileState"]) == ("active", "enabled")
    # After a daemon-reload, systemd shows addresses that it has read and not bound.
    return ends if is_up and _bound("1").issuperset(ends) else []


def _ports() -> set[int]:
    """Return the ports on which Cockpit listens, also on other addresses, or since before a daemon-reload."""
    return {parsed(end)[1] for end in [*listens(), *_bound(_properties(SERVICE, "MainPID")["MainPID"])]}


def _why_unbound(listen: str) -> str:
    """Return why nothing can listen on an endpoint now: "in use", "no address", or ""."""
    address, port = parsed(listen)
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # not for what has just been closed
        try:
            probe.bind((address, port))
        except OSError as error:
            return {errno.EADDRINUSE: "in use", errno.EADDRNOTAVAIL: "no address"}.get(error.errno or 0, "")
    return ""


def is_outdated() -> bool:
    """Return whether Cockpit runs since before left4me's cockpit.conf was changed."""
    shown = _properties(SERVICE, "ActiveState", "InactiveExitTimestampMonotonic")
    if shown["ActiveState"] != "active" or settings() != "ours":
        return False
    began = time.time() - time.monotonic() + int(shown["InactiveExitTimestampMonotonic"]) / 1e6
    return os.stat(SETTINGS).st_ctime >= began


def _without_password(group: str) -> list[str]:
    """Return the members of a group who have no password on this host, which Cockpit asks for."""
    try:
        members = grp.getgrnam(group)
    except KeyError:
        return []
    names = {*members.gr_mem, *(user.pw_name for user in pwd.getpwall() if user.pw_gid == members.gr_gid)}
    # Users of a directory service are not in this file.
    hashes = dict(line.split(":")[:2] for line in procfs.read("/etc/shadow").splitlines())
    return sorted(name for name in names if hashes.get(name, "x")[:1] in ("", "!", "*"))


def state(listen: str | None, group: str | None) -> dict[str, Any]:
    """Return the Cockpit of shapes.py. Without `listen`, that is without the page, it does not look further."""
    found: dict[str, Any] = {"recorded": recorded(), "settings": settings(), "installed": [], "listens": []}
    found |= {"unbound": "", "outdated": False, "root_may": False, "without_password": []}
    if not listen:
        return found
    return found | {
        "installed": apt.installed([*PACKAGES]),
        "listens": listens(),
        "unbound": "" if parsed(listen)[1] in _ports() else _why_unbound(listen),
        "outdated": is_outdated(),
        "root_may": "root" not in procfs.read(REFUSED).split(),
        "without_password": _without_password(group) if group else [],
    }


def reload() -> None:
    """Let systemd read the drop-in. Raises Failed."""
    if why := _systemctl("daemon-reload"):
        raise instance.Failed(f"systemd does not reload its files: {why}")


def start(listen: str) -> None:
    """Let cockpit.socket listen as its drop-in says, which ends the sessions in Cockpit. Raises Failed."""
    for command in (("enable", SOCKET), ("restart", SOCKET)):
        if why := _systemctl(*command):
            raise instance.Failed(f"{SOCKET} does not listen on {listen}: {why}")
    if (found := listens()) != [listen]:
        where = ", ".join(found) or "nothing"
        raise instance.Failed(f"{SOCKET} listens on {where}, must on {listen}: see systemctl cat {SOCKET}")


def restart() -> None:
    """Let Cockpit read its cockpit.conf, which ends the sessions in Cockpit. Raises Failed."""
    if why := _systemctl("try-restart", SERVICE):
        raise instance.Failed(f"cannot restart {SERVICE}: {why}")


def _systemctl(*words: str) -> str:
    """Run systemctl; return why it failed, or ""."""
    done = subprocess.run(["systemctl", "--quiet", *words], capture_output=True, text=True, check=False)
    return (" ".join(done.stderr.split())[:600] or f"exit code {done.returncode}") if done.returncode else ""


def remove() -> Iterator[str]:
    """Remove the page and the Cockpit that a deploy installed, and yield what an operator must know. Raises Failed.

    The socket stops before it loses its drop-in, without which it would listen on every address.
    """
    if ours := recorded():
        if "cockpit-ws" in apt.installed(ours) and (why := _systemctl("disable", "--now", SOCKET)):
            raise instance.Failed(f"cannot stop {SOCKET}: {why}")
        if others := apt.purge([name for name in PACKAGES if name in ours], ours):
            way = f"systemctl enable --now {SOCKET}"
            yield f"Cockpit stays, since {', '.join(others)} need it, but does not listen; to use it: {way}"
        else:
            _remove_files(glob.glob("/etc/cockpit/ws-certs.d/0-self-signed*") if "cockpit-ws" in ours else [])
    _remove_files([DROP_IN, *([SETTINGS] if settings() == "ours" else [])])
    if os.path.isdir(PAGE):
        shutil.rmtree(PAGE)
    for path in ("/etc/cockpit/ws-certs.d", "/etc/cockpit", DROP_INS, PAGES):
        with suppress(OSError):  # somebody else's files are in it
            os.rmdir(path)
    reload()
    _remove_files([RECORD])


def _remove_files(paths: list[str]) -> None:
    for path in paths:
        with suppress(FileNotFoundError):
            os.unlink(path)


if __name__ == "__main__":
    print(json.dumps(state(*sys.argv[1:])))
