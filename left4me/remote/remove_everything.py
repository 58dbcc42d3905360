"""Take left4me off this host: remove_everything.py REQUEST, as JSON: act, host, keep, ours, shared and packages.

With act `look` it prints as JSON what is there, and why it cannot be taken away now; it changes nothing. With `remove`
it looks again and takes all of it away, a line for each step. `ours` are patterns of paths, `shared` directories of the
system that go where nothing else is in them, `packages` those that stay. Whatever ends it, the next run finds what is
left: what tells how a server is unmounted goes last, and what servers wrote goes only when its archive is on disk.
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

from left4me_host import layout, mountinfo, procfs

ARCHIVES = "/root"
REMOVED = f"{layout.VAR}/.removed"
"""What is in an archive by now and not yet removed."""
SERVER_UNIT = re.compile(r"/left4me-server@([^/\n]+)\.service(?:/|$)", re.MULTILINE)
OUR_UNIT = re.compile(r"/left4me[^/\n]*\.service(?:/|$)", re.MULTILINE)


class Failed(Exception):
    """Why it goes no further, and what to do then."""


def run(*command: str) -> str:
    """Run a command and return what it prints; raise Failed with what it says where it fails."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[:600]
        raise Failed(f"{os.path.basename(command[0])}: {said or f'exit code {done.returncode}'}")
    return done.stdout


def processes() -> list[str]:
    """Return the ids of all processes."""
    return [name for name in os.listdir("/proc") if name.isdigit()]


def running() -> list[str]:
    """Return the servers that have a process: the kernel's word, by the cgroups of all processes."""
    return sorted({each for pid in processes() for each in SERVER_UNIT.findall(procfs.read(f"/proc/{pid}/cgroup"))})


def there(patterns: list[str]) -> list[str]:
    """Return the paths that match, but nothing below another of them."""
    # glob's * leaves out hidden names: a killed run's temporary file is one.
    found = {path for pattern in patterns for path in glob.glob(pattern, include_hidden=True)}
    found |= {path for path in patterns if os.path.lexists(path)}
    return sorted(path for path in found if not any(path.startswith(f"{other}/") for other in found))


def units(*states: str) -> list[str]:
    """Return left4me's units that systemd knows now, of these states or of all."""
    names = ("left4me*", "system-left4me*")
    which = f"--state={','.join(states)}" if states else "--all"
    listed = run("systemctl", "list-units", which, "--plain", "--no-legend", "--no-pager", *names)
    return [line.split()[0] for line in listed.splitlines() if line.strip()]


def users() -> list[str]:
    """Return the users of the servers, and at last their game's."""
    try:
        gid = grp.getgrnam("left4me").gr_gid
    except KeyError:
        gid = -1
    found = [each.pw_name for each in pwd.getpwall() if each.pw_name.startswith("left4me-") and each.pw_gid == gid]
    return [*sorted(found), *[each.pw_name for each in pwd.getpwall() if each.pw_name == "left4me"]]


def groups() -> list[str]:
    """Return left4me's group, where it is there."""
    return [each.gr_name for each in grp.getgrall() if each.gr_name == "left4me"]


def runtimes() -> list[str]:
    """Return who has a runtime directory: servers, and what builds of the game are tried with."""
    path = layout.RUNTIME
    return sorted(os.listdir(path)) if os.path.isdir(path) else []


def mounts() -> list[str]:
    """Return where something is mounted, as PID 1 sees it."""
    return [mount.point for mount in mountinfo.mounts()]


def overlaid() -> list[str]:
    """Return whose overlay is mounted, or may still be in use though it is not."""
    mounted = mounts()
    notes = {each: layout.overlay_note(each) for each in runtimes()}
    noted = {each for each, note in notes.items() if os.path.islink(note) and os.readlink(note) != layout.OVERLAY_GONE}
    return [each for each in runtimes() if each in noted or layout.merged(each) in mounted]


def played(servers: list[str]) -> Iterator[str]:
    """Yield why running servers cannot be stopped; nobody plays where a build of the game is tried."""
    servers = [each for each in servers if not each.startswith("_")]
    asked = (
        [each for each in servers if os.path.isdir(f"{layout.SERVERS}/{each}")] if os.path.exists(layout.CTL) else []
    )
    rows = {row["id"]: row for row in json.loads(run(layout.CTL, "status", "--json", *asked))} if asked else {}
    for server in servers:
        if server not in rows:
            yield f"server {server} runs and is not declared, so nobody knows who plays there: l4d2ctl stop {server}"
        elif rows[server]["players"] is None:
            why = "does not answer, so nobody knows who plays there"
            yield f"server {server} {why}: wait, or l4d2ctl stop {server}"
        elif count := rows[server]["players"]:
            yield f"server {server} has {count} player{'s' * (count != 1)}: wait, or l4d2ctl stop {server}"


def held(servers: list[str]) -> Iterator[str]:
    """Yield which process would keep an overlay when its server is stopped."""
    if not servers or not os.path.exists(layout.CTL):
        return
    for server, holders in json.loads(run(layout.CTL, "holders", "--json", *servers)).items():
        for each in holders:
            if SERVER_UNIT.findall(procfs.read(f"/proc/{each['pid']}/cgroup")) != [server]:
                by = f"pid {each['pid']} ({each['command']}) by its {each['kind']}: {each['path']}"
                yield f"server {server}: its overlay is held by {by}. End that first"


def others() -> Iterator[str]:
    """Yield who runs as one of the users and is in no unit of left4me."""
    ours = {pwd.getpwnam(each).pw_uid: each for each in users()}
    for pid in processes():
        found = re.search(r"^Uid:\s+(\d+)", status := procfs.read(f"/proc/{pid}/status"), re.MULTILINE)
        if found and int(found[1]) in ours and not OUR_UNIT.search(procfs.read(f"/proc/{pid}/cgroup")):
            name = status.partition("\n")[0].partition("\t")[2]
            yield f"pid {pid} ({name}) runs as {ours[int(found[1])]}: end that first"


def reasons(paths: list[str]) -> Iterator[str]:
    """Yield each reason why left4me cannot be taken away now, with what to do about it."""
    yield from played(running())
    yield from held(overlaid())
    yield from others()
    merged = {layout.merged(each) for each in runtimes()}
    for point in mounts():
        if point not in merged and any(point.startswith(f"{path}/") for path in paths):
            yield f"{point} is mounted there, and not by left4me: umount {point}"


def look(request: dict[str, Any]) -> dict[str, Any]:
    """Return what is there, by its kind, and why it cannot be taken away now."""
    if os.geteuid() != 0:
        return {"root": False}
    found = {"paths": there(request["ours"]), "units": units(), "users": users(), "groups": groups()}
    return {
        "root": True,
        "found": {kind: names for kind, names in found.items() if names},
        "servers": [each for each in runtimes() if not each.startswith("_")],
        "running": running(),
        "refused": list(reasons(found["paths"])),
        "packages": installed(request["packages"]),
        "archives": [] if not request["keep"] or not written() else [archive_of(request["host"])],
    }


def installed(names: list[str]) -> list[str]:
    """Return which of these packages, named with their architecture, are installed, and what goes with them."""
    told = run("dpkg-query", "-W", "-f", "${Package}:${Architecture} ${db:Status-Status}\n").splitlines()
    found = {name for name in names if f"{name} installed" in told}
    if "libc6:i386" in found:
        # It and others of its architecture depend on each other, and apt refuses to remove it without their names.
        found |= {line.split()[0] for line in told if line.endswith(":i386 installed")}
    return sorted(name.removesuffix(":amd64").removesuffix(":all") for name in found)


def stop() -> None:
    """Stop what works by itself, then the servers, and unmount. Raises Failed where an overlay is held."""
    # One whose file is gone already may be known and inactive, and would not be stopped.
    known = units("active", "reloading", "activating", "deactivating", "failed")
    servers = [name for name in known if name.startswith("left4me-server@")]
    slices = [name for name in known if name.endswith(".slice")]
    # The timer before what it starts, and all that could start a server before the servers.
    alone = sorted(set(known) - set(servers) - set(slices), key=lambda name: not name.endswith(".timer"))
    for name in alone:
        run("systemctl", "stop", name)
    if servers:
        say(f"stopping {' '.join(servers)}")
        run("systemctl", "stop", *servers)
    if left := running():
        raise Failed(f"server {left[0]} runs still after its stop: see journalctl -u left4me-server@{left[0]}")
    for server in overlaid():
        try:
            run(*layout.OVERLAY_HELPER, "umount", server)
        except Failed as failed:
            raise Failed(f"server {server} is stopped and its overlay is held: {failed}. End that") from None
    if slices:
        run("systemctl", "stop", *slices)


def remove_units(paths: list[str]) -> None:
    """Take away what systemd and sudo read, so that from here on nothing starts, whoever asks or boots."""
    remove([path for path in paths if re.search(r"/systemd/system/|^/etc/sudoers\.d/", path)])
    run("systemctl", "daemon-reload")
    if left := units():
        run("systemctl", "reset-failed", *left)


def written() -> list[str]:
    """Return the directories of what servers wrote: uppers, what an undo was bringing back, the attic."""
    found = []
    for server in runtimes():
        if not server.startswith("_"):
            found += [f"runtime/{server}/{name}" for name in ("upper", "undo")]
    attic = layout.ATTIC
    names = sorted(os.listdir(attic)) if os.path.isdir(attic) else []
    # What else an entry holds is root's: the RCON password of a removed server is not for an archive.
    found += [f"attic/{name}/upper" for name in names if not name.startswith(".gone-")]
    return [path for path in found if os.path.isdir(f"{layout.VAR}/{path}") and os.listdir(f"{layout.VAR}/{path}")]


def archive_of(host: str) -> str:
    """Return a new name for what the servers of a host wrote."""
    plain = re.sub(r"[^A-Za-z0-9.-]", "-", host)
    return f"{ARCHIVES}/left4me-{plain}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.tar.gz"


def archive(path: str, members: list[str]) -> None:
    """Write all members into one archive, which is there whole or not at all. Raises Failed, or OSError."""
    folder, name = os.path.split(path)
    new = f"{folder}/.{name}.new"
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    # An overlay marks what a server removed or replaced by devices and trusted.* attributes.
    kept = ["--one-file-system", "--sparse", "--xattrs", "--xattrs-include=*"]
    tar = ["tar", "--create", "--gzip", *kept, f"--directory={layout.VAR}", "--", *members]
    try:
        done = subprocess.run(tar, stdin=subprocess.DEVNULL, stdout=fd, stderr=subprocess.PIPE, check=False)
        if done.returncode:
            said = " ".join(done.stderr.decode(errors="replace").split())[:600]
            raise Failed(f"what servers wrote does not get into {path}: {said}. Mend that (or --data keep=no)")
        os.fsync(fd)
        os.rename(new, path)
    except BaseException:
        os.unlink(new)
        raise
    finally:
        os.close(fd)
    sync_directory(folder)


def sync_directory(path: str) -> None:
    """Put on disk what names a directory holds."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(fd)
    os.close(fd)


def put_aside() -> None:
    """Rename what is in the archive by now, so that no later run takes it for something to keep."""
    os.makedirs(REMOVED, mode=0o700, exist_ok=True)
    for name in ("attic", "runtime"):
        if os.path.lexists(f"{layout.VAR}/{name}"):
            os.rename(f"{layout.VAR}/{name}", f"{REMOVED}/{name}.{time.time_ns()}")
    sync_directory(layout.VAR)


def remove(paths: list[str]) -> None:
    """Remove paths with all below them; rm follows no symlink in there, nor does it go into what is mounted."""
    gone = []
    for path in paths:
        # A disk of the operator's that is mounted there stays, empty.
        gone += [f"{path}/{name}" for name in os.listdir(path)] if os.path.ismount(path) else [path]
    if gone:
        run("rm", "--recursive", "--force", "--one-file-system", "--", *gone)


def remove_accounts() -> None:
    """Remove the users, then the group where it did not go with its user."""
    for name in users():
        run("userdel", name)
    for name in groups():
        run("groupdel", name)


def say(line: str) -> None:
    """Print a line for whoever waits."""
    print(line, flush=True)


def remove_all(request: dict[str, Any]) -> None:
    """Take all of it away. Raises Failed, or OSError; the same again goes on."""
    seen = look(request)
    if seen["refused"]:
        raise Failed(f"refused, nothing changed: {'; '.join(seen['refused'])}")
    for path in glob.glob(f"{ARCHIVES}/.left4me-*.tar.gz.new", include_hidden=True):
        os.unlink(path)  # of a run that was killed
    stop()
    remove_units(there(request["ours"]))
    members = written()
    if request["keep"] and members:
        path = archive_of(request["host"])
        say(f"what servers wrote goes into {path}")
        archive(path, members)
    if os.path.isdir(layout.VAR):
        put_aside()
    say("removing files, users and the group")
    # The programs and what was declared go after what they are needed for, the lock of this run last of all.
    paths = there(request["ours"])
    remove([path for path in paths if path == layout.VAR])
    remove_accounts()
    remove([path for path in paths if path not in (layout.VAR, layout.RUN)])
    for path in request["shared"]:
        if os.path.isdir(path) and not os.listdir(path):
            os.rmdir(path)
    for path in sorted(glob.glob(f"{ARCHIVES}/left4me-*.tar.gz")):
        say(f"kept: {path} ({os.path.getsize(path) / 1e6:.1f} MB), what servers wrote; docs/removing.md unpacks it")
    if seen["packages"]:
        say(f"packages stay; where nothing else needs them: apt-get autoremove --purge {' '.join(seen['packages'])}")
    remove([path for path in paths if path == layout.RUN])
    say("left4me is off this host")


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    try:
        if asked["act"] == "look":
            print(json.dumps(look(asked)))
        else:
            remove_all(asked)
    except (Failed, OSError, subprocess.SubprocessError) as error:
        sys.exit(f"{error}; then the same command again" if asked["act"] == "remove" else str(error))
