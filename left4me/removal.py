"""Removes left4me from a host; see left4me/remote/remove_everything.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pyinfra import logger
from pyinfra.context import host

from left4me import facts, manifest, pyinfra_hooks
from left4me.lock import client as lock
from left4me.operations import Commands
from left4me_host import cockpit, layout
from left4me_host.instance import plain

_OWN = [
    *manifest.MANAGED,
    *(layout.VAR, layout.CTL, f"{manifest.COMPLETIONS}/l4d2ctl"),
    *("/run/left4me", "/run/left4me-attic", "/var/cache/left4me/usr"),  # bytecode of l4d2ctl
    layout.PINS,
    f"/var/cache/apparmor/*/{Path(layout.PROFILE).name}",
]
_SHARED = [
    "/var/cache/left4me",
    *(layout.UNITS, str(Path(layout.UNITS).parent)),
    *(manifest.COMPLETIONS, str(Path(manifest.COMPLETIONS).parent)),
    manifest.NFTABLES,
    "/etc/sysctl.d",
    *(cockpit.DROP_INS, cockpit.PAGES),
    *(manifest.NEEDRESTART, str(Path(manifest.NEEDRESTART).parent)),
]
"""System directories that a deploy creates if they are missing, children first.

/usr/local/libexec is not listed: Debian 13 has it.
"""
_KEPT_PACKAGES = (
    *("util-linux:amd64", "dbus:amd64", "sudo:amd64", "ca-certificates:all", "nftables:amd64", "apparmor:amd64"),
)
"""Packages that other programs of a host may need."""


def _request(act: str) -> str:
    """Return the argument of remove_everything.py for the current host."""
    packages = [name for name in manifest.packages(facts.declared_host()) if name not in _KEPT_PACKAGES]
    keep = pyinfra_hooks.REMOVAL.get("keep") != "no"
    return json.dumps(
        {"act": act, "host": host.name, "keep": keep, "ours": _OWN, "shared": _SHARED, "packages": packages}
    )


def _look() -> dict[str, Any]:
    """Return what left4me has on the current host; end the run for this host if it cannot be removed now."""
    seen: dict[str, Any] = facts.ask("remove_everything", _request("look"))
    if "python" in seen:
        facts.refuse("refused, nothing changed: python3 is missing: apt-get install python3")
    if not seen["root"]:
        facts.refuse("refused, nothing changed: the SSH user is not root: set _sudo = True in the host's data")
    if seen["refused"]:
        facts.refuse(f"refused, nothing changed: {'; '.join(seen['refused'])}")
    return seen


def _plan(seen: dict[str, Any]) -> list[str]:
    """Return what this run will do, line by line."""
    names = {"paths": "files and directories", "units": "units", "users": "users", "groups": "groups"}
    lines = [f"stops running servers: {', '.join(seen['running'])}"] if seen["running"] else []
    lines += [f"removes {names[kind]}: {' '.join(found)}" for kind, found in seen["found"].items()]
    if seen["archives"]:
        lines.append(f"keeps what servers wrote and the attic in one archive: {seen['archives'][0]}")
    elif pyinfra_hooks.REMOVAL.get("keep") == "no":
        lines.append("deletes what servers wrote (--data keep=no)")
    if seen["cockpit"]:
        lines.append("removes Cockpit, which a deploy installed for the page, and the packages that only it needs")
    if seen["packages"]:
        lines.append(f"packages stay: {' '.join(seen['packages'])}")
    return lines


@lock.operation
def _remove() -> Commands:
    """Stop the servers, archive what they wrote, and remove everything of left4me."""
    command = facts.program("remove_everything", _request("remove"))
    command.stream = True
    yield command


def removal() -> None:
    """Show what left4me has on the current host and remove it."""
    if not _look()["found"]:
        logger.info(f"{host.print_prefix}nothing to remove")
        return
    try:
        why = "" if pyinfra_hooks.changes_nothing() else lock.take(host)
    except lock.NoAnswer as error:
        why = f"its lock cannot be taken: {error}"
    if why:
        facts.refuse(f"refused, nothing changed: {why}")
    for line in _plan(_look()):
        logger.info(f"{host.print_prefix}{plain(line)}")
    _remove(name="Remove left4me from the host", _timeout=14400)
