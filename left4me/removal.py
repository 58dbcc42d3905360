"""Take left4me off a host: left4me/remote/remove_everything.py does it there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pyinfra import logger
from pyinfra.context import host

from left4me import facts, manifest, pyinfra_hooks
from left4me.lock import client as lock
from left4me.operations import Commands
from left4me_host import layout

_OURS = [
    *manifest.MANAGED,
    *(layout.VAR, layout.CTL, f"{manifest.COMPLETIONS}/l4d2ctl"),
    *("/run/left4me", "/run/left4me-attic", "/var/cache/left4me/usr"),  # what l4d2ctl compiled, named after its place
]
_SHARED = [
    "/var/cache/left4me",
    *(layout.UNITS, str(Path(layout.UNITS).parent)),
    *(manifest.COMPLETIONS, str(Path(manifest.COMPLETIONS).parent)),
    *(manifest.NEEDRESTART, str(Path(manifest.NEEDRESTART).parent)),
]
"""The system's directories that a deploy makes where they are missing, each before the one that it is in.

Not /usr/local/libexec, which Debian 13 makes by itself.
"""
_NEEDED_ANYHOW = ("util-linux:amd64", "sudo:amd64", "ca-certificates:all")
"""Packages that no host should lose with a game."""


def _request(act: str) -> str:
    """Return the argument of the program on the host at hand."""
    packages = [name for name in manifest.packages(facts.declared_host()) if name not in _NEEDED_ANYHOW]
    keep = pyinfra_hooks.REMOVAL.get("keep") != "no"
    return json.dumps(
        {"act": act, "host": host.name, "keep": keep, "ours": _OURS, "shared": _SHARED, "packages": packages}
    )


def _look() -> dict[str, Any]:
    """Return what is there now; leave the host where it cannot be taken away."""
    seen: dict[str, Any] = facts.ask("remove_everything", _request("look"))
    if "python" in seen:
        facts.refuse("refused, nothing changed: python3 is missing: apt-get install python3")
    if not seen["root"]:
        facts.refuse("refused, nothing changed: the SSH user is not root: set _sudo = True in its data")
    if seen["refused"]:
        facts.refuse(f"refused, nothing changed: {'; '.join(seen['refused'])}")
    return seen


def _locked() -> None:
    """Take the host's lock unless this run changes nothing; leave the host where that is another's."""
    try:
        why = "" if pyinfra_hooks.changes_nothing() else lock.take(host)
    except lock.NoAnswer as error:
        why = f"its lock cannot be taken: {error}"
    if why:
        facts.refuse(f"refused, nothing changed: {why}")


def _plan(seen: dict[str, Any]) -> list[str]:
    """Return what this run will do, a line for each kind of thing."""
    names = {"paths": "files and directories", "units": "units", "users": "users", "groups": "groups"}
    lines = [f"stops the servers that run: {', '.join(seen['running'])}"] if seen["running"] else []
    lines += [f"removes {names[kind]}: {' '.join(found)}" for kind, found in seen["found"].items()]
    if seen["archives"]:
        lines.append(f"keeps what servers wrote and the attic in one archive: {seen['archives'][0]}")
    elif pyinfra_hooks.REMOVAL.get("keep") == "no":
        lines.append("keeps nothing of what servers wrote (--data keep=no)")
    if seen["packages"]:
        lines.append(f"packages stay: {' '.join(seen['packages'])}")
    return lines


@lock.operation
def _remove() -> Commands:
    """Stop the servers, archive what they wrote, and remove all that is left4me's."""
    command = facts.program("remove_everything", _request("remove"))
    command.stream = True
    yield command


def removal() -> None:
    """Show what is there and take it away; a host that has nothing of left4me is left as it is."""
    if not _look()["found"]:
        logger.info(f"{host.print_prefix}nothing to remove")
        return
    _locked()
    for line in _plan(_look()):
        logger.info(f"{host.print_prefix}{line}")
    _remove(name="Take left4me off the host", _timeout=14400)
