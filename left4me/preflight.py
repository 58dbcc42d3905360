"""Checks a host before a deploy changes anything, and refuses it if it cannot be deployed."""

from __future__ import annotations

from collections.abc import Iterator

from pyinfra import logger
from pyinfra.context import host

from left4me import facts, manifest, model, pyinfra_connection, pyinfra_hooks, revision, shapes, web_page
from left4me.lock import client as lock
from left4me_host.instance import plain

_NO_QUOTAS = (
    "the filesystem of /var/lib/left4me enforces no project quotas: "
    'mount it with them (docs/servers.md, "A limit of disk space"), or set disk_max to "infinity"'
)


def problems(seen: shapes.HostState, declares: model.Host) -> Iterator[str]:
    """Yield each reason why this host cannot be deployed, with what to do."""
    if seen["python"] is None:
        yield "python3 is missing: apt-get install python3"
        return
    if seen["system"] not in shapes.SYSTEMS:
        yield f"runs {seen['system']}; only Debian 12 and 13 are supported"
        return
    if not seen["root"]:
        yield "the SSH user is not root: set _sudo = True in the host's data"
        return
    if seen["architecture"] != "amd64":
        yield f"is {seen['architecture']}; the game runs on amd64 only"
    if seen["init"] != "systemd":
        yield f"PID 1 is {seen['init']}; left4me needs systemd"
    if not seen["overlay"]:
        yield "its kernel has no overlayfs: check /lib/modules, or ask the provider if it is a container"
    unknown = [name for name, value in seen["sysctl"].items() if value is None]
    yield from (f"sysctl: the kernel of this host has no number {name}: remove it" for name in unknown)
    if isinstance(declares.game, model.GameOnHost) and not seen["installation"]:
        yield f"game.path: {declares.game.path} has no srcds_run: it must be the directory of an installed L4D2 server"
    builds = {"game.build": declares.game.build}
    builds |= {f"servers.{name}.build": server.build for name, server in declares.present.items()}
    for key, build in builds.items():
        if build and build not in seen["releases"] and not (key == "game.build" and declares.game.source == "steamcmd"):
            yield f"{key}: {build} is not on this host: set it to {' or '.join(['None', *seen['releases']])}"
    if not facts.missing_packages() and (error := facts.workshop().get("error")):
        yield f"Steam's workshop: {error}; deploy again later"
    if declares.operators and declares.operators not in seen["groups"]:
        yield f"operators: group {declares.operators} does not exist: groupadd {declares.operators}"
    yield from _disks(seen, declares)
    yield from _accounts(seen, declares)
    yield from _ports(seen, declares)


def _ports(seen: shapes.HostState, declares: model.Host) -> Iterator[str]:
    ports = {f"servers.{name}.port": each.port for name, each in declares.with_ports(seen["ports"]).present.items()}
    if declares.firewall and (why := seen["firewall"]["refusal"]):
        yield f"nftables does not work here ({why}): set firewall = False"
    ports["trial_port"] = declares.trial_port
    if web := declares.web:
        ports["web.listen"] = web.port
        is_taken = seen["cockpit"]["unbound"] == "in use" and not web_page.is_foreign(seen["cockpit"])
        if is_taken and web.port not in seen["firewall"]["ssh_ports"]:
            yield f"web.listen: something else listens on port {web.port} of this host: choose another"
    for key, port in ports.items():
        if port in seen["firewall"]["ssh_ports"]:
            yield f"{key}: {port} is the port of sshd on this host: choose another"


def _disks(seen: shapes.HostState, declares: model.Host) -> Iterator[str]:
    whole = seen["project_quotas"]
    for name, server in declares.present.items():
        if server.disk_bytes and whole is None:
            yield f"servers.{name}.disk_max: {_NO_QUOTAS}"
        elif server.disk_bytes and whole is not None and server.disk_bytes >= whole:
            size = f"the filesystem of /var/lib/left4me has {whole >> 20} MiB"
            yield f"servers.{name}.disk_max: {server.disk_max} limits nothing: {size}; set less"


def _accounts(seen: shapes.HostState, declares: model.Host) -> Iterator[str]:
    uids = {user: uid for user, (uid, _group, _shell) in seen["users"].items()}
    for key, kind, own, declared, ids in (
        ("uid", "user", "left4me", declares.uid, uids),
        ("gid", "group", manifest.GROUP, declares.gid, seen["groups"]),
    ):
        for name, number in ids.items():
            if name == own and number != declared:
                yield f"{key} {declared} is declared, but {kind} {name} already has {number}: set `{key}` to {number}"
            elif name != own and number == declared:
                yield f"{key} {number} is already taken by {kind} {name}: choose another `{key}`"


def going_back(deployed: str) -> str:
    """Return a warning if a host's revision is not part of this checkout's history, else ""."""
    theirs, ours = deployed.removesuffix("+"), revision.checked_out().removesuffix("+")
    return {
        "": "",
        "newer": f"its revision {theirs} is newer than this checkout ({ours}): this deploy downgrades it. "
        "If that is not intended: git pull",
        "diverged": f"its revision {theirs} is on another branch than this checkout ({ours}): this deploy removes "
        f"the changes of that branch. If that is not intended: git merge {theirs}",
        "missing": f"its revision {theirs} is unknown to this checkout ({ours}): this deploy may downgrade it. "
        "To find out: git fetch, then deploy again",
    }[revision.history(deployed)]


def refusals() -> list[str]:
    """Lock (except in a dry run) and check the host; return each reason why it cannot be deployed."""
    unlocked = []
    try:
        if why := "" if pyinfra_hooks.changes_nothing() else lock.take(host):
            return [why]
    except lock.NoAnswer as error:
        unlocked = [f"its lock cannot be taken: {error}"]
    # If the host does not answer, host_state() reports why.
    try:
        return list(problems(facts.host_state(), facts.declared_host())) or unlocked
    except pyinfra_connection.OneSession as error:
        return [str(error)]


def preflight() -> None:
    """Lock and check the host; end its deploy with one line if it cannot be deployed."""
    if found := refusals():
        facts.refuse(f"refused, nothing changed: {'; '.join(found)}")
    if warning := going_back(facts.host_state()["revision"]):
        logger.warning(f"{host.print_prefix}{plain(warning)}")
