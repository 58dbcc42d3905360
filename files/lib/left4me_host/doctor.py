"""Find problems on this host, and fix those that can be fixed without touching a running server."""

from __future__ import annotations

import grp
import os
import pwd
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from left4me_host import (
    builds,
    daemon_reload,
    disk_space,
    firewall,
    game,
    gc,
    holders,
    instance,
    layout,
    quota,
    reset,
    server_lock,
    server_removal,
)


@dataclass(frozen=True)
class Finding:
    """A problem and what to `do`. `fix` takes the server's id and returns what it did; None if no fix is safe."""

    server: str
    what: str
    do: str
    fix: Callable[[str], str] | None = None


def _umount(server: str) -> str:
    # The server may have started since examine(); the helper would unmount its overlay.
    if instance.properties([server], "ActiveState")[server]["ActiveState"] not in ("inactive", "failed"):
        raise instance.Failed(f"server {server} was started meanwhile; run l4d2ctl doctor again")
    failed, why = instance.Command(*layout.OVERLAY_HELPER, "umount", server).wait()
    if failed:
        raise instance.Failed(why)
    return "unmounted, and work/work removed"


def _difference(mounted: list[str], current: list[str]) -> str:
    """Return how a running server's mounted layers differ from those that a restart would mount."""
    pairs = [(old, new) for old, new in zip(mounted, current, strict=False) if old != new]
    if len(mounted) != len(current) or any(os.path.dirname(old) != os.path.dirname(new) for old, new in pairs):
        return "runs with other layers than declared"
    names = {layout.RELEASES: "the game"}
    return "; ".join(
        f"{names.get(folder := os.path.dirname(old), folder.rpartition('/')[2])}: {os.path.basename(old)} is mounted"
        f"{'' if os.path.isdir(old) else ' but deleted'}, a restart mounts {os.path.basename(new)}"
        for old, new in pairs
    )


def _mounts(servers: list[str], running: set[str]) -> Iterator[Finding]:
    for mount, several in instance.overlays().items():
        server = mount.removeprefix(f"{layout.RUNTIME}/").partition("/")[0]
        if mount != layout.merged(server):
            yield Finding(server, f"{mount} is mounted, but not by left4me", f"umount {mount}")
        elif server not in running:
            yield Finding(server, f"{mount} is mounted, but its unit is not running", "l4d2ctl doctor --fix", _umount)
        elif server in servers:
            do = f"l4d2ctl restart {server} when convenient"
            if several[0] != (now := instance.lowers(server)):
                yield Finding(server, _difference(several[0], now), do)
            if not instance.started_with(server):
                yield Finding(server, "runs, but what it was started with is not recorded", do)
        if len(several) > 1 and server in running:
            do = f"l4d2ctl stop {server} && l4d2ctl start {server}"
            yield Finding(server, f"{mount} is mounted {len(several)} times", do)


def _unused() -> Iterator[Finding]:
    """Find versions of layers and builds of the game that nothing uses."""
    try:
        paths = sorted(gc.unused())
    except FileNotFoundError as error:
        yield Finding("", f"{error.filename} is missing: cannot find unused versions", "deploy this host")
        return
    if paths:
        yield Finding("", f"unused versions: {' '.join(paths)}", "l4d2ctl doctor --fix", _collect_garbage)


def _game() -> Iterator[Finding]:
    """Find a missing current build, without which no server starts, and a failed update."""
    do = "l4d2ctl game update; if the game is not from Steam, deploy this host"
    if not os.path.islink(layout.INSTALLATION):
        yield Finding("", "there is no build of the game yet", do)
    elif not os.path.isdir(layout.INSTALLATION):
        name = os.path.basename(os.readlink(layout.INSTALLATION))
        yield Finding("", f"the current build {name} is not on this host", do)
    if not game.is_updating() and (why := builds.failure()):
        yield Finding("", why, "l4d2ctl game update")


def _disk_space() -> Iterator[Finding]:
    """Find a filesystem that is nearly full, on which servers cannot start, and name what uses most of it."""
    left = disk_space.left()
    if left.part >= disk_space.LOW:
        return
    amount = f"{left.amount >> 20:,} MiB are" if left.kind == "bytes" else f"{left.amount:,} inodes are"
    what, server, do = f"the disk is nearly full: {amount} left for {layout.VAR}", "", "see what else is on that disk"
    if found := disk_space.largest(left.kind):
        path, used = found
        in_attic = path.startswith(f"{layout.ATTIC}/")
        server = (os.path.basename(path).partition("@") if in_attic else path.split("/")[-2:])[0]
        much = f"{used >> 20:,} MiB" if left.kind == "bytes" else f"{used:,} inodes"
        what += f"; of the servers, most is used by {path} ({much})"
        do = f"rm -r {path}" if in_attic else f"l4d2ctl stop {server}, and remove files below {path}"
    yield Finding(server, what, do)


def _firewall() -> Iterator[Finding]:
    """Find a firewall that is not loaded as deployed, and floods that it drops."""
    if (deployed := firewall.deployed_version()) is None:
        return
    table = firewall.loaded()
    if not table or table.version != deployed:
        what = "the firewall is not loaded" if not table else "the loaded firewall is not the deployed one"
        yield Finding("", what, f"systemctl restart {layout.FIREWALL_UNIT}", _load_firewall)
    for port, (rate, reason) in (firewall.attacks(table) if table else {}).items():
        what = f"under attack: port {port}: {rate:,} packets a second dropped, most of them {firewall.DROPPED[reason]}"
        yield Finding("", what, "nothing, as long as players stay connected; otherwise ask the provider")


def _load_firewall(_server: str) -> str:
    failed, why = instance.Systemctl("restart", layout.FIREWALL_UNIT).wait()
    if failed:
        raise instance.Failed(why)
    return "loaded"


def _collect_garbage(_server: str) -> str:
    from left4me_host import versions  # here: it imports every kind of source

    try:
        if not versions.prune(in_deploy=False):
            raise instance.Failed("a deploy is running and removes them itself")
    except ValueError as error:
        raise instance.Failed(str(error)) from None
    return "removed"


def _shared_uppers(servers: list[str]) -> Iterator[Finding]:
    spaces = [holders.mounts_of(tasks) for tasks in holders.spaces().values()]
    for server in servers:
        if (several := len({copy.device for mounts in spaces for copy in holders.copies(server, mounts)})) > 1:
            do = f"l4d2ctl stop {server}; end the processes listed by: l4d2ctl holders {server}"
            yield Finding(server, f"{several} overlays use {layout.runtime(server)}/upper", do)


def _leftovers(running: set[str], declared: list[str]) -> Iterator[Finding]:
    for server in sorted(os.listdir(layout.RUNTIME)):
        path = layout.runtime(server)
        if server in running or instance.mounted(server):
            continue
        if instance.noted(server):
            yield Finding(server, "its overlay may still be in use", f"see l4d2ctl holders {server}", _umount)
        if os.path.lexists(f"{path}/work/work"):
            yield Finding(server, f"{path}/work/work is left from an earlier mount", "l4d2ctl doctor --fix", _umount)
        if server not in declared and os.path.isdir(f"{path}/upper") and not os.listdir(f"{path}/upper"):
            yield Finding(server, f"{path} is from an interrupted deploy", "deploy this host")
        elif server not in declared:
            yield Finding(server, f"{path} belongs to no declared server", "l4d2ctl doctor --fix", _to_attic)
        elif os.path.lexists(f"{path}/reset"):
            yield Finding(server, "a reset did not finish", f"l4d2ctl reset {server}", _finish_reset)


def _to_attic(server: str) -> str:
    return f"moved to {server_removal.to_attic(server)}"


def _finish_reset(server: str) -> str:
    reset.reset(server)
    return "finished"


def _reload(_server: str) -> str:
    failed, why = instance.Systemctl("daemon-reload").wait()
    if failed:
        raise instance.Failed(why)
    _apply_limits("")
    return "reloaded"


def _apply_limits(_server: str) -> str:
    failed, why = instance.Command(*layout.APPLY_LIMITS).wait()
    if failed:
        raise instance.Failed(why)
    return "limits applied"


def _systemd(declared: list[str]) -> Iterator[Finding]:
    try:
        found = daemon_reload.look([layout.unit(server) for server in declared])
    except subprocess.CalledProcessError as error:
        raise instance.Failed(f"{error}: {error.stderr.strip()}") from None
    if found["reload"]:
        yield Finding("", "systemd has not read the unit files on disk", "l4d2ctl doctor --fix", _reload)
    elif found["limits"]:
        what = "the kernel has other limits of CPU or memory than systemd"
        yield Finding("", what, "l4d2ctl doctor --fix", _apply_limits)


def _owners(declared: list[str], running: set[str]) -> Iterator[Finding]:
    for server in declared:
        in_use = server in running or instance.mounted(server)
        user = f"left4me-{server}"
        expected = {"": ("root", "root", 0o700), "/upper": (user, "left4me", 0o755), "/work": ("root", "root", 0o700)}
        for below, (owner, group, mode) in expected.items():
            path = layout.runtime(server) + below
            try:
                about = os.lstat(path)
                uid, gid = pwd.getpwnam(owner).pw_uid, grp.getgrnam(group).gr_gid
            except (FileNotFoundError, KeyError):
                yield Finding(server, f"{path} or its owner {owner} is missing", "deploy this host")
                continue
            if (about.st_uid, about.st_gid, about.st_mode & 0o7777) != (uid, gid, mode):
                what = f"{path} is not {owner}:{group} {mode:04o}"
                if in_use:  # the directories of a mounted overlay must not change
                    yield Finding(server, what, f"l4d2ctl stop {server}, then l4d2ctl doctor --fix")
                else:
                    yield Finding(server, what, "l4d2ctl doctor --fix", _restore_owner(path, uid, gid, mode))


def _disk_limits(declared: list[str], running: set[str]) -> Iterator[Finding]:
    """Find servers near their disk_max, and running ones that the kernel does not limit."""
    for server in declared:
        started = instance.started_with(server) if server in running else {}
        most = quota.declared_of(started or instance.environment(server))
        if not most:
            continue
        usage = quota.usage(server, most)
        if usage is None and started:
            has_quotas = quota.enforced(layout.RUNTIME)
            why = "" if has_quotas else f": the filesystem of {layout.VAR} enforces no project quotas"
            do = "" if has_quotas else "mount it with prjquota (docs/servers.md), then "
            yield Finding(server, f"its disk_max is not in force{why}", f"{do}l4d2ctl restart {server}")
        elif usage and 10 * max(usage.used / usage.limit, usage.files / usage.files_limit) >= 9:
            what = f"{usage.used >> 20:,} of {usage.limit >> 20:,} MiB, {usage.files:,} of {usage.files_limit:,} files"
            do = f"l4d2ctl reset {server}, or declare a larger disk_max"
            yield Finding(server, f"has written almost all that disk_max allows: {what}", do)


def _restore_owner(path: str, uid: int, gid: int, mode: int) -> Callable[[str], str]:
    def fix(_server: str) -> str:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        os.fchown(fd, uid, gid)
        os.fchmod(fd, mode)
        os.close(fd)
        return "restored owner and mode"

    return fix


def apply_fix(finding: Finding, number: int = 0) -> str | None:
    """Fix a problem and return what was done; None if no fix is safe or the fix failed (stderr has the reason).

    `number` is that of the job.
    """
    if finding.fix is None:
        return None
    try:
        with server_lock.held([finding.server] if finding.server else []) as lock:
            lock.note(number, "doctor --fix")
            return finding.fix(finding.server)
    except (instance.Failed, OSError) as error:
        print(f"l4d2ctl: {finding.what}: {error}", file=sys.stderr)
        return None


def examine() -> list[Finding]:
    """Return all problems on this host, without changing anything. Raises Failed."""
    declared = instance.instances()
    known = sorted({*declared, *os.listdir(layout.RUNTIME)})
    states = instance.properties(
        [name for name in known if instance.ID.fullmatch(name.removeprefix("_"))], "ActiveState"
    )
    running = {server for server, state in states.items() if state["ActiveState"] not in ("inactive", "failed")}
    findings = [*_mounts(declared, running), *_shared_uppers(known), *_leftovers(running, declared)]
    # An unfinished reset may not have made the directories yet; it is reported separately.
    complete = [server for server in declared if not os.path.lexists(f"{layout.runtime(server)}/reset")]
    findings += [*_game(), *_disk_space(), *_firewall(), *_unused(), *_systemd(declared), *_owners(complete, running)]
    return [*findings, *_disk_limits(declared, running)]
