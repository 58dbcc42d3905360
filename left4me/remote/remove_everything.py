"""Remove left4me from this host: remove_everything.py REQUEST, a JSON object: act, host, keep, ours, shared, packages.

The act `look` changes nothing: it prints as JSON what left4me has here and why that cannot be removed now. The act
`remove` looks again, removes everything, and prints a line for each step. `ours` are patterns of paths, `shared` system
directories to remove if empty, `packages` only reported. The next run finishes an interrupted run: the programs that
unmount are removed late, and what servers wrote is removed after its archive is on disk.
"""

from __future__ import annotations

import glob
import grp
import json
import os
import pwd
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from left4me_host import cockpit, firewall, instance, layout, mountinfo, procfs
from left4me_host.instance import Failed

ARCHIVES = "/root"
REMOVED = f"{layout.VAR}/.removed"
"""Directories wait here for removal once archived (or without `keep`)."""
SERVER_UNIT = re.compile(r"/left4me-server@([^/\n]+)\.service(?:/|$)", re.MULTILINE)
OUR_UNIT = re.compile(r"/left4me[^/\n]*\.service(?:/|$)", re.MULTILINE)


def run(*command: str) -> str:
    """Run a command and return its standard output. Raises Failed with its error output."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = " ".join((done.stderr or done.stdout).split())[:600]
        raise Failed(f"{os.path.basename(command[0])}: {errors or f'exit code {done.returncode}'}")
    return done.stdout


def processes() -> list[str]:
    return [name for name in os.listdir("/proc") if name.isdigit()]


def running() -> list[str]:
    """Return the servers that have a process, from the cgroups of all processes."""
    return sorted({each for pid in processes() for each in SERVER_UNIT.findall(procfs.read(f"/proc/{pid}/cgroup"))})


def matching(patterns: list[str]) -> list[str]:
    """Return the paths that match, except paths below another match."""
    # Without include_hidden, * would not match stale temporary files.
    found = {path for pattern in patterns for path in glob.glob(pattern, include_hidden=True)}
    found |= {path for path in patterns if os.path.lexists(path)}
    return sorted(path for path in found if not any(path.startswith(f"{other}/") for other in found))


def units(*states: str) -> list[str]:
    """Return left4me's loaded units, in these states or by default in all."""
    names = ("left4me*", "system-left4me*")
    which = f"--state={','.join(states)}" if states else "--all"
    listed = run("systemctl", "list-units", which, "--plain", "--no-legend", "--no-pager", *names)
    return [line.split()[0] for line in listed.splitlines() if line.strip()]


def users() -> list[str]:
    """Return the servers' users, then the user left4me."""
    gids = groups().values()
    servers = [each.pw_name for each in pwd.getpwall() if each.pw_name.startswith("left4me-") and each.pw_gid in gids]
    return [*sorted(servers), *(each.pw_name for each in pwd.getpwall() if each.pw_name == "left4me")]


def groups() -> dict[str, int]:
    return {each.gr_name: each.gr_gid for each in grp.getgrall() if each.gr_name == "left4me"}


def runtimes() -> list[str]:
    """Return the servers and test instances that have a runtime directory."""
    return sorted(os.listdir(layout.RUNTIME)) if os.path.isdir(layout.RUNTIME) else []


def overlaid() -> list[str]:
    """Return the servers and test instances whose overlay is mounted or may still be in use."""
    return [each for each in runtimes() if instance.noted(each) or instance.mounted(each)]


def played(servers: list[str]) -> Iterator[str]:
    """Yield a line for each server that may have players; ignores test instances."""
    servers = [each for each in servers if not each.startswith("_")]
    asked = [each for each in servers if os.path.exists(layout.CTL) and os.path.isdir(f"{layout.SERVERS}/{each}")]
    rows = {row["id"]: row for row in json.loads(run(layout.CTL, "status", "--json", *asked))} if asked else {}
    for server in servers:
        if server not in rows:
            yield f"server {server} runs but is not declared, so its players are unknown: l4d2ctl stop {server}"
        elif rows[server]["players"] is None:
            yield f"server {server} does not respond, so its players are unknown: wait, or l4d2ctl stop {server}"
        elif count := rows[server]["players"]:
            yield f"server {server} has {count} player{'s' * (count != 1)}: wait, or l4d2ctl stop {server}"


def busy(servers: list[str]) -> Iterator[str]:
    """Yield a line for each holder that is not a server's own process."""
    if not servers or not os.path.exists(layout.CTL):
        return
    for server, holders in json.loads(run(layout.CTL, "holders", "--json", *servers)).items():
        for each in holders:
            if SERVER_UNIT.findall(procfs.read(f"/proc/{each['pid']}/cgroup")) != [server]:
                holder = f"pid {each['pid']} ({each['command']}) keeps its overlay busy"
                yield f"server {server}: {holder} ({each['kind']}: {each['path']}): end that process first"


def foreign_processes() -> Iterator[str]:
    """Yield a line for each process of left4me's users outside left4me's units."""
    names = {pwd.getpwnam(each).pw_uid: each for each in users()}
    for pid in processes():
        found = re.search(r"^Uid:\s+(\d+)", status := procfs.read(f"/proc/{pid}/status"), re.MULTILINE)
        if found and int(found[1]) in names and not OUR_UNIT.search(procfs.read(f"/proc/{pid}/cgroup")):
            command = status.partition("\n")[0].partition("\t")[2]
            yield f"pid {pid} ({command}) runs as {names[int(found[1])]}: end that process first"


def reasons(paths: list[str]) -> Iterator[str]:
    """Yield each reason why left4me cannot be removed now, with what to do."""
    yield from played(running())
    yield from busy(overlaid())
    yield from foreign_processes()
    merged = {layout.merged(each) for each in runtimes()}
    for point in (mount.point for mount in mountinfo.mounts()):
        if point not in merged and any(point.startswith(f"{path}/") for path in paths):
            yield f"{point} is mounted, but not by left4me: umount {point}"


def look(request: dict[str, Any]) -> dict[str, Any]:
    """Return what left4me has on this host, and why it cannot be removed now."""
    if os.geteuid() != 0:
        return {"root": False}
    found = {"paths": matching(request["ours"]), "units": units(), "users": users(), "groups": [*groups()]}
    return {
        "root": True,
        "found": {kind: names for kind, names in found.items() if names},
        "running": running(),
        "refused": list(reasons(found["paths"])),
        "packages": installed(request["packages"]),
        "cockpit": cockpit.recorded() != [],
        "archives": [] if not request["keep"] or not written() else [archive_of(request["host"])],
    }


def installed(names: list[str]) -> list[str]:
    """Return the installed packages among `names` (NAME:ARCHITECTURE), and with libc6:i386 all of i386."""
    lines = run("dpkg-query", "-W", "-f", "${Package}:${Architecture} ${db:Status-Status}\n").splitlines()
    found = {name for name in names if f"{name} installed" in lines}
    if "libc6:i386" in found:  # apt removes it only together with all packages that depend on it
        found |= {line.split()[0] for line in lines if line.endswith(":i386 installed")}
    return sorted(name.removesuffix(":amd64").removesuffix(":all") for name in found)


def stop() -> None:
    """Stop left4me's units, the servers last, and unmount the overlays. Raises Failed if an overlay stays busy."""
    # Not inactive units: systemctl stop would fail if their file is removed already.
    known = units("active", "reloading", "activating", "deactivating", "failed")
    servers = [name for name in known if name.startswith("left4me-server@")]
    last = [*servers, *(name for name in known if name.endswith(".slice"))]
    # Timers before the units that they start, and everything that can start a server before the servers.
    for name in sorted(set(known) - set(last), key=lambda name: not name.endswith(".timer")):
        run("systemctl", "stop", name)
    if servers:
        say(f"stopping {' '.join(servers)}")
    if last:
        run("systemctl", "stop", *last)
    if left := running():
        raise Failed(f"server {left[0]} is still running after its stop: see journalctl -u left4me-server@{left[0]}")
    for server in overlaid():
        try:
            run(*layout.OVERLAY_HELPER, "umount", server)
        except Failed as failed:
            raise Failed(f"server {server} is stopped, but its overlay is busy: {failed}. End that process") from None


def unload_profile() -> None:
    """Remove the AppArmor profile from the kernel as apparmor_parser(8) does, without its package and the file."""
    if procfs.profile_mode():
        with open(f"{procfs.APPARMOR}/.remove", "w", encoding="ascii") as file:
            file.write(os.path.basename(layout.PROFILE))


def remove_units(paths: list[str]) -> None:
    """Remove the files that systemd and sudo read: from now on nothing starts, not even after a reboot."""
    remove([path for path in paths if re.search(r"/systemd/system/|^/etc/sudoers\.d/", path)])
    run("systemctl", "daemon-reload")
    if left := units():
        run("systemctl", "reset-failed", *left)


def written() -> list[str]:
    """Return the directories that servers wrote, relative to VAR: uppers, unfinished undos, the attic."""
    found = []
    for server in runtimes():
        if not server.startswith("_"):
            found += [f"runtime/{server}/{name}" for name in ("upper", "undo")]
    names = sorted(os.listdir(layout.ATTIC)) if os.path.isdir(layout.ATTIC) else []
    # Only `upper`: the archive must not hold the RCON password of a removed server.
    found += [f"attic/{name}/upper" for name in names if not name.startswith(".gone-")]
    return [path for path in found if os.path.isdir(f"{layout.VAR}/{path}") and os.listdir(f"{layout.VAR}/{path}")]


def archive_of(host: str) -> str:
    """Return a new path for the archive of a host."""
    plain = re.sub(r"[^A-Za-z0-9.-]", "-", host)
    return f"{ARCHIVES}/left4me-{plain}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.tar.gz"


def archive(path: str, members: list[str]) -> None:
    """Write all members into one archive, completely or not at all. Raises Failed or OSError."""
    new = f"{ARCHIVES}/.{os.path.basename(path)}.new"
    # overlayfs marks removed and replaced files by devices and trusted.* attributes.
    options = ["--one-file-system", "--sparse", "--xattrs", "--xattrs-include=*"]
    try:
        run("tar", "--create", "--gzip", *options, f"--file={new}", f"--directory={layout.VAR}", "--", *members)
        with open(new, "rb") as file:
            os.fsync(file.fileno())
        os.rename(new, path)
    except Failed as failed:
        raise Failed(f"cannot write the archive {path}: {failed}. Fix that, or use --data keep=no") from None
    finally:
        if os.path.exists(new):
            os.unlink(new)
    instance.sync_directory(ARCHIVES)


def put_aside() -> None:
    """Move the archived directories away, so that no later run archives them."""
    os.makedirs(REMOVED, mode=0o700, exist_ok=True)
    for name in ("attic", "runtime"):
        if os.path.lexists(f"{layout.VAR}/{name}"):
            os.rename(f"{layout.VAR}/{name}", f"{REMOVED}/{name}.{time.time_ns()}")
    instance.sync_directory(layout.VAR)


def remove(paths: list[str]) -> None:
    """Remove paths and everything below them; rm does not follow symlinks or enter mounts there."""
    removed = []
    for path in paths:
        # If an operator has mounted a disk at the path, only its contents are removed.
        removed += [f"{path}/{name}" for name in os.listdir(path)] if os.path.ismount(path) else [path]
    if removed:
        run("rm", "--recursive", "--force", "--one-file-system", "--", *removed)


def say(line: str) -> None:
    print(line, flush=True)


def remove_all(request: dict[str, Any]) -> None:
    """Remove everything. Raises Failed or OSError; the next run continues."""
    seen = look(request)
    if seen["refused"]:
        raise Failed(f"refused, nothing changed: {'; '.join(seen['refused'])}")
    for path in glob.glob(f"{ARCHIVES}/.left4me-*.tar.gz.new", include_hidden=True):
        os.unlink(path)  # of an interrupted run
    stop()
    for line in cockpit.remove():
        say(line)
    if firewall.loaded():
        run(firewall.NFT, "delete", "table", *firewall.TABLE)
    unload_profile()
    remove_units(matching(request["ours"]))
    members = written()
    if request["keep"] and members:
        path = archive_of(request["host"])
        say(f"archiving what servers wrote: {path}")
        archive(path, members)
    if os.path.isdir(layout.VAR):
        put_aside()
    say("removing files, users and the group")
    # VAR first, because the next run may need the programs and the declared files; RUN with this run's lock last.
    paths = matching(request["ours"])
    remove([path for path in paths if path == layout.VAR])
    for name in users():
        run("userdel", name)
    for name in groups():  # unless userdel has removed it
        run("groupdel", name)
    remove([path for path in paths if path not in (layout.VAR, layout.RUN)])
    for path in request["shared"]:
        if os.path.isdir(path) and not os.listdir(path):
            os.rmdir(path)
    for path in sorted(glob.glob(f"{ARCHIVES}/left4me-*.tar.gz")):
        say(f"kept: {path} ({os.path.getsize(path) / 1e6:.1f} MB), what servers wrote; see docs/removing.md")
    if seen["packages"]:
        say(f"packages stay; if nothing else needs them: apt-get autoremove --purge {' '.join(seen['packages'])}")
    remove([path for path in paths if path == layout.RUN])
    say("left4me is removed from this host")


if __name__ == "__main__":
    os.umask(0o077)  # for the archive
    request = json.loads(sys.argv[1])
    try:
        if request["act"] == "look":
            print(json.dumps(look(request)))
        else:
            remove_all(request)
    except (Failed, OSError, subprocess.SubprocessError) as error:
        sys.exit(f"{error}; then run the same command again" if request["act"] == "remove" else str(error))
