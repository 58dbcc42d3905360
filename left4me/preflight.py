"""Refuse a host that cannot become a game host, before anything on it is changed."""

from __future__ import annotations

from collections.abc import Iterator

from pyinfra import logger
from pyinfra.context import host

from left4me import facts, manifest, model, pyinfra_connection, pyinfra_hooks, revision
from left4me.lock import client as lock


def problems(seen: facts.HostState, declares: model.Host) -> Iterator[str]:
    """Yield each reason why this host cannot be deployed, with what to do about it."""
    if seen["python"] is None:
        yield "python3 is missing: apt-get install python3"
        return
    if seen["system"] not in facts.SYSTEMS:
        yield f"runs {seen['system']}; Debian 12 and 13 are supported"
        return
    if not seen["root"]:
        yield "the SSH user is not root: set _sudo = True in its data"
        return
    if seen["architecture"] != "amd64":
        yield f"is {seen['architecture']}; the game runs on amd64 only"
    if seen["init"] != "systemd":
        yield f"PID 1 is {seen['init']}, not systemd"
    if not seen["overlay"]:
        yield "its kernel has no overlayfs: check /lib/modules, or the provider of a container"
    if isinstance(declares.game, model.GameOnHost) and not seen["installation"]:
        yield f"game.path: {declares.game.path} holds no srcds_run: it must be an installed L4D2 server on the host"
    builds = {"game.build": declares.game.build}
    builds |= {f"servers.{name}.build": server.build for name, server in declares.present.items()}
    for key, build in builds.items():
        if build and build not in seen["releases"] and not (key == "game.build" and declares.game.source == "steamcmd"):
            yield f"{key}: {build} is not on this host, which has {', '.join(seen['releases']) or 'no build yet'}"
    if not facts.missing_packages() and (error := facts.workshop().get("error")):
        yield f"Steam's workshop cannot be asked: {error}"
    if declares.operators and declares.operators not in seen["groups"]:
        yield f"operators: there is no group {declares.operators} on this host: groupadd {declares.operators}"
    yield from _accounts(seen, declares)


def _accounts(seen: facts.HostState, declares: model.Host) -> Iterator[str]:
    for user, (uid, _group, _shell) in seen["users"].items():
        if (user == "left4me") != (uid == declares.uid):
            yield f"uid: user {user} has uid {uid}, the data says {declares.uid} for left4me: set uid in its data"
    for group, gid in seen["groups"].items():
        if (group == manifest.GROUP) != (gid == declares.gid):
            yield f"gid: group {group} has gid {gid}, the data says {declares.gid} for left4me: set gid in its data"


def going_back(deployed: str) -> str:
    """Return a warning where the revision that a host is at is not part of this checkout's history, else nothing."""
    theirs, ours = deployed.removesuffix("+"), revision.checked_out().removesuffix("+")
    return {
        "": "",
        "newer": f"deployed at a newer revision ({theirs}) than this checkout ({ours}): it goes back. "
        "git pull, if you did not mean that",
        "diverged": f"deployed at a revision ({theirs}) of another branch than this checkout ({ours}): it loses what "
        "only that one has. git merge it, if you did not mean that",
        "missing": f"deployed at a revision ({theirs}) that this checkout ({ours}) does not know: "
        "it may go back. git fetch, then deploy again, to be told",
    }[revision.history(deployed)]


def refusals() -> list[str]:
    """Lock the host unless this run changes nothing, and look at it; return each reason why it cannot be deployed."""
    unlocked = []
    try:
        if why := "" if pyinfra_hooks.changes_nothing() else lock.take(host):
            return [why]
    except lock.NoAnswer as error:
        unlocked = [f"its lock cannot be taken: {error}"]
    # What keeps a host from answering is told best by the look.
    try:
        return list(problems(facts.host_state(), facts.declared_host())) or unlocked
    except pyinfra_connection.OneSession as error:
        return [str(error)]


def preflight() -> None:
    """Lock the host and look at it; stop here with one line where it cannot be deployed."""
    if found := refusals():
        facts.refuse(f"refused, nothing changed: {'; '.join(found)}")
    if warning := going_back(facts.host_state()["revision"]):
        logger.warning(f"{host.print_prefix}{warning}")
