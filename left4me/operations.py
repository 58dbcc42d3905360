"""Operations that pyinfra lacks: atomic privileged files, builds and layers, a reload where one is needed."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pyinfra import logger
from pyinfra.api.command import StringCommand
from pyinfra.context import host

from left4me import facts, manifest, model, pending, pyinfra_hooks, wanted_versions
from left4me.lock.client import operation
from left4me.manifest import Item
from left4me_host import layout

Commands = Generator[StringCommand, None, None]


def _is_as_declared(item: Item, state: facts.HostState) -> bool:
    if any(f"{item.path}/".startswith(f"{mount}/") for mount in state["mounts"] if mount != "/"):
        return True  # what is seen there is an overlay's, and not for a deploy to touch
    found = state["entries"].get(item.path)
    if found and item.shared and found.get("to_directory"):
        return True  # the system's own, which an administrator laid elsewhere
    if found is None or found["type"] != {"secret": "file"}.get(item.do, item.do):
        return False
    if item.shared:
        return True
    if item.do == "symlink":
        return found["content"] == item.target
    text = {"file": hashlib.sha256(item.text.encode()).hexdigest(), "directory": ""}.get(item.do, found["content"])
    wanted = (item.mode, item.owner, item.group, text)
    return (found["mode"], found["owner"], found["group"], found["content"]) == wanted


@operation
def apply_files(items: Sequence[Item]) -> Commands:
    """Put files, directories and symlinks in place: only those that differ, all in one command, each atomically.

    + items: what has to be there, parents before what is in them

    A file is never half-written, never anyone's but root's to write, and on disk before the operation ends.
    """
    state = facts.host_state()
    different = [asdict(item) for item in items if not _is_as_declared(item, state)]
    if different:
        yield facts.program("apply_files", stdin=json.dumps(different))
    else:
        host.noop("all as declared")


@operation
def packages() -> Commands:
    """Install the Debian packages that the game needs; judged by what is installed."""
    if missing := facts.missing_packages():
        yield facts.program("install_packages", *missing)
    else:
        host.noop("all installed")


@operation
def accounts() -> Commands:
    """Make the group and user left4me, which own the game, and a user in that group for each server, which runs it."""
    declares = facts.declared_host()
    state = facts.host_state()
    shell = "/usr/sbin/nologin"
    lines = [f"g {manifest.GROUP} {declares.gid}", f'u left4me {declares.uid}:{declares.gid} "left4me" / {shell}']
    users = {"left4me": lines[1]}
    for server in declares.instances:
        user = layout.user(server)
        users[user] = f'u {user} -:{declares.gid} "Left 4 Dead 2 server {server}" / {shell}'
    missing = [line for user, line in users.items() if user not in state["users"]]
    if missing or manifest.GROUP not in state["groups"]:
        yield StringCommand("systemd-sysusers", "--inline", *(shlex.quote(line) for line in [lines[0], *missing]))
    for user in users:
        if user in state["users"] and tuple(state["users"][user][1:]) != (manifest.GROUP, shell):
            yield StringCommand("usermod", "--gid", manifest.GROUP, "--shell", shell, user)


def _versions(state: facts.HostState) -> set[str]:
    """Return the path of every version of the game and of a layer that is on a host."""
    found = {f"{layout.RELEASES}/{name}" for name in state["releases"]}
    return found | {f"{layout.OVERLAYS}/{layer}/{name}" for layer, names in state["overlays"].items() for name in names}


def _due(trees: Sequence[wanted_versions.Tree], state: facts.HostState) -> list[wanted_versions.Tree]:
    """Return which versions are not there, or not current."""
    there, entries = _versions(state), state["entries"]
    current = {path: entry["content"] for path, entry in entries.items() if entry["type"] == "symlink"}
    return [tree for tree in trees if current.get(tree.link) != tree.target or f"{tree.place}/{tree.name}" not in there]


def _built(due: Sequence[wanted_versions.Tree], state: facts.HostState) -> facts.Command:
    """Return the command that builds versions and makes them current, with what it needs of this machine."""
    there, entries = _versions(state), state["entries"]
    # What changed since the version before is all that is sent.
    bases = {
        tree.place: f"{tree.place}/{Path(entries[tree.link]['content']).name}"
        for tree in due
        if tree.source["source"] == "control" and tree.link in entries and f"{tree.place}/{tree.name}" not in there
    }
    bases = {place: path for place, path in bases.items() if path in there}
    known = facts.ask("filetree", *bases.values()) if bases else {}
    sent = wanted_versions.Upload(due, {place: (Path(path).name, known[path]) for place, path in bases.items()}, there)
    return facts.Command(manifest.CONTENT, "build", stdin=sent)


@operation
def layers() -> Commands:
    """Have the layers that servers have on the host, each version whole and made current by one rename.

    The versions that servers run on stay as they are.
    """
    declares = facts.declared_host()
    state = facts.host_state()
    if not host.state.is_executing and facts.missing_packages():
        yield StringCommand("true")
        return
    if host.state.is_executing:
        for line in wanted_versions.missing_items(declares):
            logger.warning(f"{host.print_prefix}{line}")
    if due := _due(wanted_versions.layers(declares), state):
        yield _built(due, state)
    else:
        host.noop("all are current")


@operation
def game() -> Commands:
    """Have the declared build of the game current, once it has been tried; what Steam updates stays as it is."""
    declares = facts.declared_host()
    state, tree = facts.host_state(), wanted_versions.game(declares)
    if host.state.is_executing and (links := state["installation"].get("leads_out")):
        shown = ", ".join(links[:5]) + (f" and {len(links) - 5} more" if len(links) > 5 else "")
        logger.warning(f"{host.print_prefix}game.path: links that lead out of it, where a server sees nothing: {shown}")
    if not _due([tree], state):
        return host.noop("the build is current")
    yield StringCommand("systemctl", "daemon-reload")  # a build is tried in a unit that may be as new as the host
    if isinstance(declares.game, model.GameFromSteam) and tree.name not in state["releases"]:
        # It only follows the unit that does the work. Where its deploy has died, no other has to wait for it.
        yield facts.Command("exec", "sh", "-c", 'exec "$@" 9<&-', "sh", layout.CTL, "game", "update", stream=True)
    else:
        yield _built([tree], state)
    return None


@operation
def collect_garbage() -> Commands:
    """Remove the versions of layers and the builds of the game that nobody uses any more."""
    if facts.ask("gc"):
        yield facts.Command(manifest.CONTENT, "prune")
    else:
        host.noop("all are in use")


def _systemd() -> dict[str, Any]:
    """Return how systemd sees left4me's units now, and whether it needs a reload: see daemon_reload.py."""
    declares = facts.declared_host()
    names = [*map(layout.unit, declares.present), *([manifest.TIMER] if declares.update_at else [])]
    units: dict[str, Any] = facts.ask("daemon_reload", *names)
    return units


def undeclared() -> tuple[set[str], set[str]]:
    """Return which servers on the host are not to be there: those to remove, and those that have players."""
    declares = facts.declared_host()
    state = facts.host_state()
    unit = re.escape(layout.unit("#")).replace("\\#", "([^/]+)")
    places = rf"{layout.SERVERS}/([^/]+)|{layout.SECRETS}/([^/]+)|{layout.OWN_UNITS}/(?:.*/)?{unit}(?:\.d)?"
    there = {next(filter(None, found.groups())) for path in state["entries"] if (found := re.fullmatch(places, path))}
    there = {
        each for each in there | set(state["runtime"]) | set(state["held"]) if re.fullmatch(layout.SERVER_ID, each)
    }
    there -= set(declares.present)
    running = {each for each in there & set(state["running"]) if each not in declares.servers}  # absent does not wait
    asked = sorted(each for each in running if f"{layout.SERVERS}/{each}" in state["entries"])
    played = _played(running, asked)
    return there - played, played


def _played(running: set[str], asked: Sequence[str]) -> set[str]:
    """Return which of the running servers have players, or do not answer, which does not mean that they have none."""
    rows = facts.once("status", *asked) if asked else {}
    return {each for each in running if each not in rows or rows[each]["players"] != 0}


@operation
def remove_servers() -> Commands:
    """Stop the servers that are not declared any more and put what they wrote into the attic, but none with players."""
    gone = undeclared()[0]
    if gone:
        yield facts.Command(f"{layout.LIBEXEC}/left4me-remove", *sorted(gone))
    else:
        host.noop("no server to remove")


@operation
def remove_undeclared() -> Commands:
    """Remove what nobody declared from the managed places, but nothing of a server that is left alone."""
    declares = facts.declared_host()
    state = facts.host_state()
    wanted = {item.path for item in manifest.everything(declares)}
    _gone, played = undeclared()
    kept = tuple(
        place
        for server in played
        for place in (
            f"{layout.SERVERS}/{server}",
            f"{layout.SECRETS}/{server}",
            f"{layout.OWN_UNITS}/{layout.unit(server)}.d",
            f"{layout.WANTS}/{layout.unit(server)}",
        )
    )
    known = {*wanted, layout.INSTALLATION, *map(manifest.link_of, manifest.layers(declares))}
    if declares.game.source == "steamcmd":
        known.add(layout.FAILED_UPDATE)
    foreign = [path for path in state["entries"] if path not in known]
    gone = [path for path in foreign if not any(path == each or path.startswith(f"{each}/") for each in kept)]
    if f"{layout.UNITS}/{manifest.TIMER}" in gone:
        yield StringCommand("systemctl", "stop", manifest.TIMER)  # without its file systemd calls it failed
    if layout.FAILED_UPDATE in gone:  # the game does not come from Steam any more
        yield StringCommand("systemctl", "reset-failed", layout.GAME_UNIT, "2>/dev/null", "||", "true")
    if gone:
        yield facts.program("apply_files", stdin=json.dumps([{"do": "remove", "path": path} for path in gone]))
    else:
        host.noop("nothing undeclared")


@operation
def reload_systemd() -> Commands:
    """daemon-reload exactly when what systemd holds is not what the disk says, whichever run changed the disk."""
    if _systemd()["reload"]:
        yield StringCommand("systemctl", "daemon-reload")
    else:
        host.noop("systemd has read what is on disk")


def _is_down(unit: Mapping[str, str] | None) -> bool:
    """Tell whether systemd has a unit as down, None for one that it does not know."""
    return unit is None or unit["ActiveState"] in ("inactive", "failed")


def _explained(command: str, units: Sequence[str]) -> StringCommand:
    """Return a systemctl command that shows the journal where it fails."""
    names = " ".join(map(shlex.quote, units))
    why = f"{{ journalctl --no-pager --quiet --lines=10 $(printf -- '-u %s ' {names}) >&2; exit 1; }}"
    return StringCommand(f"{command.format(names)} || {why}")


def _declared_stopped() -> tuple[set[str], set[str]]:
    """Return which servers run and are declared stopped: those to stop, and those that have players."""
    declares = facts.declared_host()
    stopped = {name for name, each in declares.present.items() if each.state == "stopped"}
    units = _systemd()["units"] if stopped else {}
    up = {each for each in stopped if not _is_down(units[layout.unit(each)])}
    running = up & set(facts.host_state()["running"])
    played = _played(running, sorted(running))
    return up - played, played


@operation
def stop_servers() -> Commands:
    """Stop the servers that are declared stopped, but none that has players."""
    up = [layout.unit(name) for name in sorted(_declared_stopped()[0])]
    if up:
        # Of a server that could not be unmounted the stop itself says nothing.
        yield _explained("systemctl stop {0} && ! systemctl --quiet is-failed {0}", up)
    else:
        host.noop("none to stop")


@operation
def start_servers() -> Commands:
    """Start the timer and the servers that do not run; touches none that does, was stopped by hand or is in a reset."""
    declares = facts.declared_host()
    units = _systemd()["units"]
    held = facts.host_state()["held"]
    gone = undeclared()[0]
    running = [name for name, each in declares.present.items() if each.state == "running" and name not in held]
    down = [
        unit
        for unit in map(layout.unit, running)
        if units[unit]["ActiveState"] in ("inactive", "failed", "deactivating")
    ]
    ended = gone | _declared_stopped()[0]  # the latter where this run only shows what it would do
    ended |= {each for each in facts.host_state()["running"] if _is_down(units.get(layout.unit(each)))}
    taken = {
        record.get("LEFT4ME_PORT"): each for each, record in facts.host_state()["running"].items() if each not in ended
    }
    for name, each in declares.with_ports(facts.host_state()["ports"]).present.items():
        if layout.unit(name) in down and taken.get(str(each.port), name) != name:
            down.remove(layout.unit(name))  # it waits for the other one's restart: report_pending() names both
    if declares.update_at and units[manifest.TIMER]["ActiveState"] != "active":
        yield StringCommand("systemctl", "start", manifest.TIMER)
    elif not down:
        host.noop("all run, or were stopped by hand with l4d2ctl stop, or have a reset to finish")
    if down:
        # A server that reached its start limit is not started again before its failure is forgotten.
        yield _explained("systemctl reset-failed {0} 2>/dev/null; systemctl start {0}", down)


@operation
def record_starts() -> Commands:
    """Record what servers were started with that run since before left4me recorded it."""
    if unrecorded := _unrecorded():
        yield facts.program("generation", "--record", *unrecorded)
    else:
        host.noop("all are recorded")


def _unrecorded() -> list[str]:
    return [name for name, started in facts.host_state()["running"].items() if not started]


def restarts(items: Sequence[Item]) -> list[str]:
    """Return the running servers that would be started with something else once `items` and the versions are in place.

    Also those whose restart is required already.
    """
    declares, running = facts.declared_host(), dict(facts.host_state()["running"])
    if unrecorded := _unrecorded():
        running |= facts.once("generation", *unrecorded)
    texts = {item.path: item.text for item in items}
    trees = [wanted_versions.game(declares), *([] if facts.missing_packages() else wanted_versions.layers(declares))]
    paths = {tree.link: f"{tree.place}/{tree.name}" for tree in trees}
    found, stopped = [], _declared_stopped()[0]
    for name, server in declares.present.items():
        if name not in running or name in stopped:
            continue
        build = f"{layout.RELEASES}/{server.build}" if server.build else paths[layout.INSTALLATION]
        lowers = [*(paths.get(manifest.link_of(layer), "?") for layer in server.lowers), build]
        environment = texts[f"{layout.SERVERS}/{name}/server.env"].splitlines()
        same = f'LEFT4ME_GENERATION="{running[name].get("LEFT4ME_GENERATION")}"' in environment
        if not same or running[name].get("LOWERS") != ":".join(lowers):
            found.append(name)
    return found


@operation
def report_pending(items: Sequence[Item]) -> Commands:
    """Say what is pending on the host, and the command that ends each; changes nothing.

    + items: the servers' files, from which a run that changes nothing foretells who requires a restart
    """
    declares = facts.declared_host()
    if host.state.is_executing:
        found = pending.pending(facts.ask("status").values(), declares)
    else:
        rows = facts.once("status") if facts.host_state()["running"] or facts.host_state()["held"] else {}
        found = [each for each in pending.pending(rows.values(), declares) if each.what != pending.REQUIRED]
        found += [pending.Pending(pending.WILL_BE_REQUIRED, server, pending.RESTART) for server in restarts(items)]
    if host.state.is_executing or pyinfra_hooks.changes_nothing():
        pyinfra_hooks.PENDING[host.name] = found
    else:  # before pyinfra asks whether to go on
        for line in pending.lines(found):
            logger.info(f"{host.print_prefix}{line}")
    host.noop("; ".join(pending.lines(found)) or "nothing is pending")
    yield from ()
