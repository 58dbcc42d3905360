"""Operations that pyinfra lacks: atomic privileged files, a game release, a reload where one is due."""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
import subprocess
from collections.abc import Generator, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pyinfra import logger
from pyinfra.api.command import StringCommand
from pyinfra.api.operation import operation
from pyinfra.context import host

from left4me import declared, facts, model
from left4me.declared import Item

Commands = Generator[StringCommand, None, None]


def _is_as_declared(item: Item, state: facts.HostState) -> bool:
    if any(f"{item.path}/".startswith(f"{mount}/") for mount in state["mounts"] if mount != "/"):
        return True  # what is seen there is an overlay's, and not for a deploy to touch
    found = state["entries"].get(item.path)
    if found is None or found["type"] != item.do:
        return False
    if item.shared:
        return True
    if item.do == "symlink":
        return found["content"] == item.target
    text = hashlib.sha256(item.text.encode()).hexdigest() if item.do == "file" else ""
    return (found["mode"], found["owner"], found["group"], found["content"]) == (
        item.mode,
        item.owner,
        item.group,
        text,
    )


@operation()
def place(items: Sequence[Item], declares: model.Host) -> Commands:
    """Put files, directories and symlinks in place: only those that differ, all in one command, each atomically.

    + items: what has to be there, parents before what is in them
    + declares: what the host declares

    A file is never half-written, never anyone's but root's to write, and on disk before the operation ends.
    """
    state = facts.look(host, declares)
    different = [item.as_json() for item in items if not _is_as_declared(item, state)]
    if different:
        yield facts.Program("place", stdin=json.dumps(different))
    else:
        host.noop("all as declared")


@operation()
def packages(names: Sequence[str], declares: model.Host) -> Commands:
    """Install Debian packages, named with their architecture; judged by what is installed.

    + names: such as libc6:i386
    + declares: what the host declares
    """
    missing = [name for name in names if name not in facts.look(host, declares)["packages"]]
    if missing:
        yield facts.Program("packages", *missing)
    else:
        host.noop("all installed")


@operation()
def accounts(declares: model.Host) -> Commands:
    """Make the group and user left4me, which own the game, and a user in that group for each server, which runs it.

    + declares: what the host declares
    """
    state = facts.look(host, declares)
    shell = "/usr/sbin/nologin"
    lines = [f"g {declared.GROUP} {declares.gid}", f'u left4me {declares.uid}:{declares.gid} "left4me" / {shell}']
    users = {"left4me": lines[1]}
    for server in declares.servers:
        user = declared.user_of(server)
        users[user] = f'u {user} -:{declares.gid} "Left 4 Dead 2 server {server}" / {shell}'
    missing = [line for user, line in users.items() if user not in state["users"]]
    if missing or declared.GROUP not in state["groups"]:
        yield StringCommand("systemd-sysusers", "--inline", *(shlex.quote(line) for line in [lines[0], *missing]))
    for user in users:
        if user in state["users"] and tuple(state["users"][user][1:]) != (declared.GROUP, shell):
            yield StringCommand("usermod", "--gid", declared.GROUP, "--shell", shell, user)


@cache
def fingerprint(directory: str) -> str:
    """Return a digest of all names, modes and contents below a directory on this machine."""
    lines = []
    for path in Path(directory).rglob("*"):
        name = path.relative_to(directory)
        if path.is_symlink():
            lines.append(f"{name}\0link\0{path.readlink()}\n")
        elif path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            lines.append(f"{name}\0{path.stat().st_mode & 0o111}\0{digest}\n")
    return hashlib.sha256("".join(sorted(lines)).encode("utf-8", "surrogateescape")).hexdigest()


class TarLines(list[str]):
    """A directory as a tar in lines of base64, made while it is sent; pyinfra takes lists of text only."""

    def __init__(self, directory: str) -> None:
        super().__init__()
        self.directory = directory

    def __iter__(self) -> Iterator[str]:
        """Yield the lines, the last of them a dot: all is there. Raises OSError where tar fails."""
        command = ["tar", "--create", "--directory", self.directory, "."]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as tar:
            assert tar.stdout
            while chunk := tar.stdout.read(48 * 1024):
                yield base64.b64encode(chunk).decode("ascii")
        if tar.returncode:
            raise OSError(f"{' '.join(command)} failed with exit code {tar.returncode}")
        yield "."

    def __bool__(self) -> bool:
        """There is always something to send."""
        return True


def release_name(declares: model.Host, state: facts.HostState) -> str:
    """Return the name below releases/ of the game that a host declares: it changes when the source does."""
    if isinstance(declares.game, model.GameOnControl):
        return f"control-{fingerprint(declares.game.path)[:12]}"
    assert state["installation"]
    return f"host-{state['installation']['digest'][:12]}"


def current(declares: model.Host) -> dict[str, str]:
    """Return what the symlinks of the layers and of the installation name once this deploy is done."""
    state = facts.look(host, declares)
    found = {path: state["entries"][path]["content"] for path in declared.links(declares) if path in state["entries"]}
    return found | {declared.INSTALLATION: f"releases/{release_name(declares, state)}"}


@operation()
def game(declares: model.Host) -> Commands:
    """Put the declared game in releases/ as a directory of its own, whole, and make it current by one rename.

    A release that no server runs any more goes; so does what a killed run left there.

    + declares: what the host declares
    """
    state = facts.look(host, declares)
    name = release_name(declares, state)
    current = state["entries"].get(declared.INSTALLATION)
    mounted = {lower for lowers in state["mounts"].values() for lower in lowers}
    unused = [each for each in state["releases"] if each != name and f"{declared.RELEASES}/{each}" not in mounted]
    if current and current["content"] == f"releases/{name}" and name in state["releases"] and not unused:
        host.noop(f"release {name} is current")
    elif isinstance(declares.game, model.GameOnHost):
        yield facts.Program("release", name, declares.game.path)
    else:
        stdin = TarLines(declares.game.path) if name not in state["releases"] else None
        yield facts.Program("release", name, stdin=stdin)


def _systemd(declares: model.Host) -> dict[str, Any]:
    """Return how systemd sees left4me's units now, and whether it needs a reload: see facts.Units."""
    return host.get_fact(facts.Units, names=" ".join(map(declared.unit_of, declares.servers)))


@operation()
def remove_undeclared(declares: model.Host) -> Commands:
    """Remove what nobody declared from the managed places, but nothing of a server that runs or is mounted.

    + declares: what the host declares
    """
    state = facts.look(host, declares)
    wanted = {item.path for item in declared.everything(declares)}
    wanted |= {declared.INSTALLATION, *declared.links(declares)}
    foreign = [path for path in state["entries"] if path not in wanted]
    if not foreign:
        return host.noop("nothing undeclared")
    units = _systemd(declares)["units"]
    in_use = [name for name, unit in units.items() if unit["ActiveState"] not in ("inactive", "failed")]
    busy = {name.partition("@")[2].removesuffix(".service") for name in in_use if "@" in name}
    busy |= {mount.split("/")[-2] for mount in state["mounts"] if mount.startswith(f"{declared.VAR}/runtime/")}
    for server in sorted(busy - set(declares.servers)):
        logger.warning(
            f"{host.print_prefix}server {server} is not declared and still runs or is mounted: left alone. "
            f"systemctl stop {declared.unit_of(server)}, then deploy again"
        )
    kept = tuple(
        place
        for server in busy - set(declares.servers)
        for place in (
            f"{declared.ETC}/servers/{server}",
            f"{declared.OWN_UNITS}/{declared.unit_of(server)}.d",
            f"{declared.WANTS}/{declared.unit_of(server)}",
        )
    )
    gone = [path for path in foreign if not any(path == each or path.startswith(f"{each}/") for each in kept)]
    if gone:
        yield facts.Program("place", stdin=json.dumps([{"do": "remove", "path": path} for path in gone]))
    return None


@operation()
def reload_systemd(declares: model.Host) -> Commands:
    """daemon-reload exactly when what systemd holds is not what the disk says, whichever run changed the disk.

    + declares: what the host declares
    """
    if _systemd(declares)["reload"]:
        yield StringCommand("systemctl", "daemon-reload")
    else:
        host.noop("systemd has read what is on disk")


@operation()
def start_servers(declares: model.Host) -> Commands:
    """Start the declared servers that do not run; touches none that does, was stopped by hand or is in a reset.

    + declares: what the host declares
    """
    units = _systemd(declares)["units"]
    held = facts.look(host, declares)["held"]
    down = [
        shlex.quote(unit)
        for server, unit in ((server, declared.unit_of(server)) for server in declares.servers)
        if server not in held and units[unit]["ActiveState"] in ("inactive", "failed", "deactivating")
    ]
    if down:
        names = " ".join(down)
        why = f"{{ journalctl --no-pager --quiet --lines=10 $(printf -- '-u %s ' {names}) >&2; exit 1; }}"
        # A server that reached its start limit is not started again before its failure is forgotten.
        yield StringCommand(f"systemctl reset-failed {names} 2>/dev/null; systemctl start {names} || {why}")
    else:
        host.noop("all run, or were stopped by hand with l4d2ctl stop, or have a reset to finish")
