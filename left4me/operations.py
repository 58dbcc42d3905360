"""The operations of a deploy: atomic files, layers and builds, servers, and the report of what is pending."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pyinfra import logger
from pyinfra.api.command import StringCommand
from pyinfra.context import host

from left4me import facts, manifest, model, pending, pyinfra_hooks, shapes, wanted_versions, web_page
from left4me.lock.client import operation
from left4me.manifest import Item
from left4me_host import cockpit as cockpit_host
from left4me_host import layout
from left4me_host.instance import plain

Commands = Generator[StringCommand, None, None]


def _log(lines: Iterable[str], log: Callable[[str], object] = logger.info) -> None:
    for line in lines:
        log(f"{host.print_prefix}{plain(line)}")


def _is_confirmed() -> bool:
    """Return whether the operator has seen what this run will do."""
    return host.state.is_executing and host.state.should_check_for_changes()


def _is_as_declared(item: Item, state: shapes.HostState) -> bool:
    if any(f"{item.path}/".startswith(f"{mount}/") for mount in state["mounts"] if mount != "/"):
        return True  # an overlay covers the path; deploys change nothing in overlays
    found = state["entries"].get(item.path)
    if found is None or found["type"] != {"secret": "file"}.get(item.do, item.do):
        return False
    if item.do == "symlink":
        return found["content"] == item.target
    text = {"file": hashlib.sha256(item.text.encode()).hexdigest(), "directory": ""}.get(item.do, found["content"])
    declared = (item.mode, item.owner, item.group, text)
    return (found["mode"], found["owner"], found["group"], found["content"]) == declared


@operation
def apply_files(items: Sequence[Item]) -> Commands:
    """Write the files, directories and symlinks that differ, in one command; each write is atomic.

    + items: what the host must have, parents first
    """
    state = facts.host_state()
    different = [asdict(item) for item in items if not _is_as_declared(item, state)]
    if different:
        yield facts.program("apply_files", stdin=json.dumps(different))
    else:
        host.noop("all as declared")


@operation
def apparmor() -> Commands:
    """Load the AppArmor profile of servers, and write its file, from which Debian loads it at each boot."""
    state = facts.host_state()
    is_loaded = state["apparmor"]
    item = manifest.profile(has_apparmor=is_loaded is not None)
    if _is_as_declared(item, state) and is_loaded is not False:
        host.noop("as declared")
    else:
        if is_loaded is None and not _is_confirmed():
            _log([manifest.NO_APPARMOR])
        yield facts.program("apply_files", stdin=json.dumps([asdict(item)]))


@operation
def packages() -> Commands:
    if missing := facts.missing_packages():
        yield facts.program("install_packages", *missing)
    else:
        host.noop("all installed")


@operation
def accounts() -> Commands:
    """Create the group left4me, the user left4me, who owns the game, and a user for each server."""
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


def _versions(state: shapes.HostState) -> set[str]:
    """Return the paths of all builds and layer versions on the host."""
    found = {f"{layout.RELEASES}/{name}" for name in state["releases"]}
    return found | {f"{layout.OVERLAYS}/{layer}/{name}" for layer, names in state["overlays"].items() for name in names}


def _outdated(trees: Sequence[wanted_versions.Tree], state: shapes.HostState) -> list[wanted_versions.Tree]:
    """Return the trees that are missing on the host or not current."""
    on_host, entries = _versions(state), state["entries"]
    links = {path: entry["content"] for path, entry in entries.items() if entry["type"] == "symlink"}
    return [tree for tree in trees if links.get(tree.link) != tree.target or f"{tree.place}/{tree.name}" not in on_host]


def _build(trees: Sequence[wanted_versions.Tree], state: shapes.HostState) -> facts.Command:
    """Return the command that uploads local files, builds the trees on the host and makes them current."""
    on_host, entries = _versions(state), state["entries"]
    # Only the difference from the current version is sent.
    bases = {}
    for tree in trees:
        if tree.source["source"] == "control" and tree.link in entries and f"{tree.place}/{tree.name}" not in on_host:
            current = f"{tree.place}/{Path(entries[tree.link]['content']).name}"
            if current in on_host:
                bases[tree.place] = f"{current}/{tree.source.get('into') or ''}"
    listings = facts.ask("filetree", *bases.values()) if bases else {}
    known = {place: (path, listings[path]) for place, path in bases.items()}
    return facts.Command(manifest.CONTENT, "build", stdin=wanted_versions.Upload(trees, known, on_host))


@operation
def layers() -> Commands:
    """Build the servers' layers and make each current by a rename. Running servers keep their versions."""
    declares = facts.declared_host()
    state = facts.host_state()
    if not host.state.is_executing and facts.missing_packages():
        yield StringCommand("true")
        return
    if host.state.is_executing:
        for line in wanted_versions.missing_items(declares):
            logger.warning(f"{host.print_prefix}{plain(line)}")
    if outdated := _outdated(wanted_versions.layers(declares), state):
        yield _build(outdated, state)
    else:
        host.noop("all are current")


@operation
def game() -> Commands:
    """Make the declared build current after its smoke test. Does not update a build from Steam."""
    declares = facts.declared_host()
    state, tree = facts.host_state(), wanted_versions.game(declares)
    if host.state.is_executing and (links := state["installation"].get("leads_out")):
        shown = ", ".join(links[:5]) + (f" and {len(links) - 5} more" if len(links) > 5 else "")
        warning = f"servers cannot follow these links out of game.path: {shown}; copy what they point to"
        logger.warning(f"{host.print_prefix}{plain(warning)}")
    if not _outdated([tree], state):
        return host.noop("the build is current")
    yield StringCommand("systemctl", "daemon-reload")  # the smoke test starts a unit that this deploy may have changed
    if isinstance(declares.game, model.GameFromSteam) and tree.name not in state["releases"]:
        # `game update` only follows a unit. It closes the fence's descriptor, so that after an interrupted deploy the
        # next deploy need not wait for it.
        yield facts.Command("exec", "sh", "-c", 'exec "$@" 9<&-', "sh", layout.CTL, "game", "update", stream=True)
    else:
        yield _build([tree], state)
    return None


@operation
def collect_garbage() -> Commands:
    if facts.ask("gc"):
        yield facts.Command(manifest.CONTENT, "prune")
    else:
        host.noop("all are in use")


def _systemd() -> dict[str, Any]:
    """Return the current states of left4me's units, and whether systemd needs a reload: see daemon_reload.py."""
    declares = facts.declared_host()
    names = [*map(layout.unit, declares.present), *([manifest.TIMER] if declares.update_at else [])]
    units: dict[str, Any] = facts.ask("daemon_reload", *names)
    return units


def undeclared() -> tuple[set[str], set[str]]:
    """Return the undeclared servers on the host: servers to remove, and servers to keep for their players."""
    declares = facts.declared_host()
    state = facts.host_state()
    unit = re.escape(layout.unit("#")).replace("\\#", "([^/]+)")
    places = rf"{layout.SERVERS}/([^/]+)|{layout.SECRETS}/([^/]+)|{layout.OWN_UNITS}/(?:.*/)?{unit}(?:\.d)?"
    names = {next(filter(None, found.groups())) for path in state["entries"] if (found := re.fullmatch(places, path))}
    names |= {*state["runtime"], *state["held"]}
    names = {name for name in names if re.fullmatch(layout.SERVER_ID, name)} - set(declares.present)
    running = {name for name in names & set(state["running"]) if name not in declares.servers}  # absent: do not wait
    asked = sorted(name for name in running if f"{layout.SERVERS}/{name}" in state["entries"])
    played = _played(running, asked)
    return names - played, played


def _played(running: set[str], asked: Sequence[str]) -> set[str]:
    """Return the servers in `running` that have or may have players. l4d2ctl can query only `asked`."""
    rows = facts.once("status", *asked) if asked else {}
    return {each for each in running if each not in rows or rows[each]["players"] != 0}


@operation
def remove_servers() -> Commands:
    """Stop undeclared servers without players and move their files to the attic."""
    if removed := undeclared()[0]:
        yield facts.Command(f"{layout.LIBEXEC}/left4me-remove", *sorted(removed))
    else:
        host.noop("no server to remove")


@operation
def remove_undeclared() -> Commands:
    """Remove undeclared managed paths, except paths of servers that are kept for their players."""
    declares = facts.declared_host()
    kept = tuple(
        place
        for server in undeclared()[1]
        for place in (
            f"{layout.SERVERS}/{server}",
            f"{layout.SECRETS}/{server}",
            f"{layout.OWN_UNITS}/{layout.unit(server)}.d",
            f"{layout.WANTS}/{layout.unit(server)}",
        )
    )
    known = {item.path for item in manifest.everything(declares, facts.host_state()["system"])}
    known |= {layout.INSTALLATION, *map(manifest.link_of, manifest.layers(declares))}
    if declares.game.source == "steamcmd":
        known.add(layout.FAILED_UPDATE)
    if web_page.is_foreign(facts.host_state()["cockpit"]):
        known.discard(cockpit_host.DROP_IN)
    unknown = [path for path in facts.host_state()["entries"] if path not in known]
    removed = [path for path in unknown if not any(path == each or path.startswith(f"{each}/") for each in kept)]
    if f"{layout.UNITS}/{manifest.TIMER}" in removed:
        yield StringCommand("systemctl", "stop", manifest.TIMER)  # without its file, the timer would fail
    if layout.FAILED_UPDATE in removed:  # the game no longer comes from Steam
        yield StringCommand("systemctl", "reset-failed", layout.GAME_UNIT, "2>/dev/null", "||", "true")
    if removed:
        yield facts.program("apply_files", stdin=json.dumps([{"do": "remove", "path": path} for path in removed]))
    else:
        host.noop("nothing undeclared")


@operation
def reload_systemd() -> Commands:
    """Run daemon-reload if the unit files on disk differ from those that systemd has loaded; apply changed limits."""
    found = _systemd()
    if found["reload"]:
        apply = ("&&", *layout.APPLY_LIMITS) if facts.host_state()["running"] else ()
        yield StringCommand("systemctl", "daemon-reload", *apply)
    elif found["limits"]:  # an interrupted run, or another daemon-reload meanwhile
        yield StringCommand(*layout.APPLY_LIMITS)
    else:
        host.noop("systemd has loaded the files on disk")


@operation
def sysctl() -> Commands:
    """Have systemd apply the declared settings of the kernel if the kernel has others."""
    declared, found = facts.declared_host().sysctl, facts.host_state()["sysctl"]
    if any(found[name] != declared[name] for name in found):
        yield facts.program("load_sysctl", json.dumps(declared))
    else:
        host.noop("as declared" if found or not declared else "a container cannot change them")


def running_ports() -> dict[str, int]:
    """Return the ports on which servers run now, by id; a removed server that stays for its players is one of them."""
    state, removed = facts.host_state(), undeclared()[0]
    started = {name: record.get("LEFT4ME_PORT", "") for name, record in state["running"].items()}
    known = {name: int(port) for name, port in started.items() if port.isdigit()}
    known |= {name: state["ports"][name] for name in started if name not in known and name in state["ports"]}
    return {name: port for name, port in known.items() if name not in removed and not name.startswith("_")}


@operation
def firewall() -> Commands:
    """Load the firewall's table if the loaded one differs; a login over a new connection confirms it."""
    declares, state = facts.declared_host(), facts.host_state()
    loaded = state["firewall"]["version"]
    if not declares.firewall:
        if loaded is None:
            return host.noop("not declared")
        yield facts.program("load_firewall", "remove")
        return None
    item = manifest.firewall_file(declares.with_ports(state["ports"]), running_ports())
    if _is_as_declared(item, state) and loaded == manifest.firewall_version(item):
        return host.noop("as declared")
    if loaded is None and not _is_confirmed():
        effects = _effects_of_firewall(declares.with_ports(state["ports"]), state["firewall"]["others"])
        _log(effects, logger.warning)
    yield facts.program("load_firewall", "load", stdin=item.text)
    yield facts.program("load_firewall", "confirm", by=facts.NewLogin)
    return None


def _effects_of_firewall(declares: model.Host, others: Sequence[str]) -> Generator[str, None, None]:
    """Yield what the first firewall of a host closes, and what the host's other firewalls must let through."""
    ports = ", ".join(str(each.port) for each in declares.present.values())
    allowed = f" except {', '.join(declares.rcon_from)}" if declares.rcon_from else ""
    yield f"the firewall closes RCON (TCP {ports}) to other machines{allowed}; to allow addresses: rcon_from"
    yield "it keeps servers from connecting to this host, such as to a plugin's database; to allow: game_may_reach"
    for name in others:
        if name == "Docker":
            yield f"Docker is active; a container that publishes UDP {ports} takes that server's packets"
        elif name == "ufw":
            command = f"ufw allow proto udp to any port {ports.replace(' ', '')}"
            yield f"ufw is active and blocks players until you run on the host: {command}"
        else:
            yield f"the host's {name} drops by default: players play only if it accepts UDP {ports}"


@operation
def remove_cockpit() -> Commands:
    """Remove a page that is not declared, and the Cockpit that an earlier deploy installed for it."""
    state = facts.host_state()
    seen = state["cockpit"]
    is_there = seen["recorded"] or seen["settings"] == "ours" or cockpit_host.PAGE in state["entries"]
    if facts.declared_host().web or not is_there:
        host.noop("nothing to remove")
        return
    if seen["recorded"] and not _is_confirmed():
        _log(["removes Cockpit, which an earlier deploy installed: sessions in Cockpit end"])
    command = facts.program("remove_cockpit")
    command.stream = True
    yield command


@operation
def cockpit() -> Commands:
    """Install Cockpit for the page and let it listen as declared; somebody else's Cockpit stays as it is."""
    declares, state = facts.declared_host(), facts.host_state()
    seen, web = state["cockpit"], declares.web
    if web is None or web_page.is_foreign(seen):
        _log(web_page.warnings(declares, seen), logger.warning)
        return host.noop("not declared" if web is None else "somebody else's")
    settings = web_page.settings(web, seen)
    files = [manifest.cockpit_drop_in(web), *([settings] if settings else [])]
    different = [asdict(item) for item in files if not _is_as_declared(item, state)]
    outdated = [] if settings or seen["settings"] != "ours" else [{"do": "remove", "path": cockpit_host.SETTINGS}]
    plan = [*web_page.plan(web, seen)]
    if not (different or outdated or plan):
        _log(web_page.warnings(declares, seen), logger.warning)
        return host.noop("as declared")
    if not _is_confirmed():
        _log(plan)
    # Before Cockpit starts: without the drop-in it listens on every address.
    if different:
        yield facts.program("apply_files", stdin=json.dumps(different))
    yield facts.program("set_up_cockpit", web.listen)
    if outdated:  # not before Cockpit has left the address that other machines reach
        yield facts.program("apply_files", stdin=json.dumps(outdated))
        yield StringCommand("systemctl", "try-restart", cockpit_host.SERVICE)
    if host.state.is_executing:
        after = facts.ask("cockpit", web.listen, declares.operators or "")
        _log(web_page.warnings(declares, after), logger.warning)
        if seen["listens"] != after["listens"]:
            name = host.data.get("ssh_hostname") or host.name
            _log([f"the page: {web_page.reached(web, name)}", web_page.login(declares, after)])
    return None


def _is_down(unit: Mapping[str, str] | None) -> bool:
    """Return whether a unit is down; `unit` is None if systemd does not know it."""
    return unit is None or unit["ActiveState"] in ("inactive", "failed")


def _explained(command: str, units: Sequence[str]) -> StringCommand:
    """Return a systemctl command that prints the journal of the units if it fails."""
    names = " ".join(map(shlex.quote, units))
    why = f"{{ journalctl --no-pager --quiet --lines=10 $(printf -- '-u %s ' {names}) >&2; exit 1; }}"
    return StringCommand(f"{command.format(names)} || {why}")


def _declared_stopped() -> tuple[set[str], set[str]]:
    """Return the servers that are up but declared stopped: servers to stop, and servers to keep for now."""
    declares = facts.declared_host()
    stopped = {name for name, each in declares.present.items() if each.state == "stopped"}
    units = _systemd()["units"] if stopped else {}
    up = {each for each in stopped if not _is_down(units[layout.unit(each)])}
    running = up & set(facts.host_state()["running"])
    played = _played(running, sorted(running))
    return up - played, played


@operation
def stop_servers() -> Commands:
    """Stop the servers that are declared stopped, except those with players."""
    if up := [layout.unit(name) for name in sorted(_declared_stopped()[0])]:
        # systemctl stop succeeds even if a server could not be unmounted; then its unit is failed.
        yield _explained("systemctl stop {0} && ! systemctl --quiet is-failed {0}", up)
    else:
        host.noop("none to stop")


@operation
def start_servers() -> Commands:
    """Start the timer and the declared servers that are down, unless stopped by hand or in a reset."""
    declares, state = facts.declared_host(), facts.host_state()
    units = _systemd()["units"]
    startable = [
        layout.unit(name)
        for name, server in declares.present.items()
        if server.state == "running" and name not in state["held"]
    ]
    # Repaired by this deploy, a server that waits for its automatic restart must not be near its start limit still.
    states = ("inactive", "failed", "deactivating")
    down = [
        unit
        for unit in startable
        if units[unit]["ActiveState"] in states or units[unit]["SubState"].startswith("auto-restart")
    ]
    ended = undeclared()[0] | _declared_stopped()[0]  # in a dry run, they still run
    ended |= {name for name in state["running"] if _is_down(units.get(layout.unit(name)))}
    taken = {record.get("LEFT4ME_PORT"): name for name, record in state["running"].items() if name not in ended}
    for name, server in declares.with_ports(state["ports"]).present.items():
        if layout.unit(name) in down and taken.get(str(server.port), name) != name:
            down.remove(layout.unit(name))  # another server still has its port: report_pending() names both
    if declares.update_at and units[manifest.TIMER]["ActiveState"] != "active":
        yield StringCommand("systemctl", "start", manifest.TIMER)
    elif not down:
        host.noop("all are running, stopped by hand, or in an unfinished reset")
    if down:
        # After its start limit, a unit can start only after reset-failed.
        yield _explained("systemctl reset-failed {0} 2>/dev/null; systemctl start {0}", down)


@operation
def record_starts() -> Commands:
    """Write the start records of running servers that have none (see generation.py)."""
    if unrecorded := _unrecorded():
        yield facts.program("generation", "--record", *unrecorded)
    else:
        host.noop("all are recorded")


def _unrecorded() -> list[str]:
    return [name for name, started in facts.host_state()["running"].items() if not started]


def restarts(items: Sequence[Item]) -> list[str]:
    """Return the running servers that require a restart, now or after this deploy."""
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
    """Report the host's pending states and the commands that end them; changes nothing.

    + items: the servers' files; a dry run predicts from these which servers will require a restart
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
    else:  # before pyinfra asks for confirmation
        for line in pending.lines(found):
            logger.info(f"{host.print_prefix}{line}")
    host.noop("; ".join(pending.lines(found)) or "nothing is pending")
    yield from ()
