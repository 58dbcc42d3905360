"""Read the state of a host: gather.py QUESTION, a JSON object packed by zlib and base64; changes nothing.

Prints a HostState as JSON: see left4me.shapes.
"""

from __future__ import annotations

import base64
import contextlib
import glob
import grp
import hashlib
import json
import os
import pwd
import re
import stat
import subprocess
import sys
import zlib
from typing import Any

from left4me_host import cockpit, firewall, layout, mountinfo, procfs, quota


def user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def entry(path: str) -> dict[str, Any] | None:
    """Return the Entry of a path (see shapes.py), or None if the path does not exist."""
    try:
        about = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    found: dict[str, Any] = {
        "mode": stat.S_IMODE(about.st_mode),
        "owner": user(about.st_uid),
        "group": group(about.st_gid),
    }
    if stat.S_ISLNK(about.st_mode):
        return found | {"type": "symlink", "content": os.readlink(path)}
    if stat.S_ISDIR(about.st_mode):
        return found | {"type": "directory", "content": ""}
    if not stat.S_ISREG(about.st_mode):
        return found | {"type": "special", "content": ""}
    with open(path, "rb") as file:
        return found | {"type": "file", "content": hashlib.file_digest(file, "sha256").hexdigest()}


def below(patterns: list[str]) -> list[str]:
    """Return all paths that match a pattern, and everything below them."""
    found = set()
    for pattern in patterns:
        # Without include_hidden, * would not match stale temporary files.
        for top in glob.glob(pattern, include_hidden=True):
            found.add(top)
            if not os.path.islink(top):
                for base, names, files in os.walk(top):
                    found.update(os.path.join(base, name) for name in names + files)
    return sorted(found)


def packages(names: list[str]) -> list[str]:
    """Return which packages (NAME:ARCHITECTURE) are installed."""
    query = ["dpkg-query", "-W", "-f", "${Package}:${Architecture} ${db:Status-Status}\n"]
    bare = [name.partition(":")[0] for name in names]
    lines = subprocess.run([*query, *bare], capture_output=True, text=True, check=False).stdout.splitlines()
    return [name for name in names if f"{name} installed" in lines]


def has_overlay() -> bool:
    """Return whether the kernel has overlayfs, loaded or as a module."""
    module = f"/lib/modules/{os.uname().release}/kernel/fs/overlayfs/overlay.ko*"
    return "\toverlay\n" in procfs.read("/proc/filesystems") or bool(glob.glob(module))


def project_quotas() -> int | None:
    """Return the bytes of the filesystem that has VAR, or will have it; None if it enforces no limits of projects."""
    path = layout.VAR
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    about = os.statvfs(path)
    return about.f_blocks * about.f_frsize if quota.enforced(path) else None


def installation(path: str) -> dict[str, Any]:
    """Return the `name` of a build copied from this installation, and as `leads_out` the links that a copy breaks.

    Returns {} without srcds_run. The name is the current build's if the names, types, sizes and times of all files
    are equal; no file is read.
    """
    if not os.path.isfile(os.path.join(path, "srcds_run")):
        return {}
    files = listing(path)
    current = os.path.basename(os.path.realpath(layout.INSTALLATION))
    if current.startswith("host-") and files == listing(f"{layout.RELEASES}/{current}"):
        name = current.removeprefix("host-")
    else:
        lines = "".join(f"{at}\0{about}\n" for at, about in sorted(files.items()))
        name = hashlib.sha256(f"{path}\0{lines}".encode("utf-8", "surrogateescape")).hexdigest()[:12]
    links = {at: about[2] for at, about in files.items() if about[0] == "link"}
    return {"name": name, "leads_out": sorted(at for at, target in links.items() if leads_out(at, target))}


WRITTEN = re.compile(
    r"(^|/)(logs?|(sound|mission)?cache|downloads?|stats|lgsm|ems)(/|$)|^left4dead2/addons/sourcemod/data/"
    r"|^steamapps/(downloading|temp|shadercache|[^/]+\.(acf|vdf)$)|^left4dead2/(addonlist\.txt|voice_ban\.dt)$"
    r"|\.(log|cache|dem|dmp|mdmp|pid|sq3|sqlite)(-wal|-shm|-journal)?$|^left4dead2/cfg/banned_\w+\.cfg$|^\.steam(/|$)"
)
"""Ignored paths: running servers write them in an installation, or left4me writes them in a copy."""


def listing(path: str) -> dict[str, tuple[str, int, str]]:
    """Return type, mtime, and size or link target of all files, by path relative to `path`.

    Times are whole seconds, since some copies lose fractions.
    """
    found = {}
    for base, names, files in os.walk(path):
        for name in names + files:
            full = os.path.join(base, name)
            at = os.path.relpath(full, path)
            if WRITTEN.search(at):
                continue
            try:
                about = os.lstat(full)
                target = os.readlink(full) if stat.S_ISLNK(about.st_mode) else ""
            except FileNotFoundError:
                continue  # a running server has removed it
            if target:
                found[at] = ("link", 0, target)
            elif stat.S_ISREG(about.st_mode):
                found[at] = ("file", about.st_mtime_ns // 10**9, str(about.st_size))
            else:
                found[at] = ("directory" if stat.S_ISDIR(about.st_mode) else "special", 0, "")
    return found


def leads_out(at: str, target: str) -> bool:
    """Return whether a link at path `at` of a tree points to a path that servers cannot see."""
    if target.startswith("/"):
        return not target.startswith(("/usr/", "/lib/", "/lib32/", "/lib64/"))
    return os.path.normpath(os.path.join(os.path.dirname(at), target)).split("/")[0] == ".."


def mounts() -> list[str]:
    """Return the mount points of the servers' overlays, as PID 1 sees them; ignores other overlays, as of sysext."""
    servers = f"{layout.RUNTIME}/"
    return [mount.point for mount in mountinfo.mounts() if mount.kind == "overlay" and mount.point.startswith(servers)]


def ports() -> dict[str, int]:
    """Return the port of each server by id. A removed server in the attic has its former port, if that is free.

    New servers get former ports last.
    """
    found = {}
    for path in glob.glob(f"{layout.SERVERS}/*/server.env"):
        with open(path, encoding="utf-8", errors="replace") as file:
            values = [line.strip().removeprefix('LEFT4ME_PORT="').rstrip('"') for line in file if "_PORT=" in line]
        if values and values[0].isdigit():
            found[path.split("/")[-2]] = int(values[0])
    former = {}
    for path in sorted(glob.glob(f"{layout.ATTIC}/*@*/port")):
        with open(path, encoding="ascii", errors="replace") as file:
            text = file.read().strip()
        if text.isdigit() and int(text) not in found.values():
            former[path.split("/")[-2].partition("@")[0]] = int(text)
    return former | found


def running() -> dict[str, dict[str, str]]:
    """Return the start records by id of servers that have a process; a record is {} if it is missing."""
    servers = set()
    for path in glob.glob("/proc/[0-9]*/cgroup"):
        servers.update(re.findall(r"/left4me-server@([^/\n]+)\.service$", procfs.read(path), re.MULTILINE))
    return {server: record(server) for server in sorted(servers)}


def record(server: str) -> dict[str, str]:
    """Return a server's start record, which left4me-overlay writes; {} if it is missing or outdated.

    An outdated record is older than the overlay's note of the mount: an older revision of left4me-overlay, deployed in
    between, writes only the note.
    """
    path, note = layout.started_record(server), layout.overlay_note(server)
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            if os.path.lexists(note) and os.lstat(note).st_mtime_ns > os.fstat(file.fileno()).st_mtime_ns:
                return {}
            return {key: value for key, _, value in (line.rstrip("\n").partition("=") for line in file)}
    except FileNotFoundError:
        return {}


def firewall_state() -> dict[str, Any]:
    """Return the Firewall of this host: see shapes.py."""
    table = firewall.loaded()
    others = []
    with contextlib.suppress(FileNotFoundError), open("/etc/ufw/ufw.conf", encoding="utf-8", errors="replace") as file:
        others += ["ufw"] if re.search(r"^ENABLED=yes", file.read(), re.MULTILINE | re.IGNORECASE) else []
    others += ["Docker"] if os.path.exists("/run/docker.sock") else []
    chains: list[dict[str, Any]] = []
    refusal = ""
    if os.path.exists(firewall.NFT):
        listed = subprocess.run([firewall.NFT, "-j", "list", "chains"], capture_output=True, text=True, check=False)
        if listed.returncode:
            refusal = " ".join(listed.stderr.split())[:200] or f"exit code {listed.returncode}"
        else:
            chains = [each["chain"] for each in json.loads(listed.stdout)["nftables"] if "chain" in each]
    for chain in chains:
        own = (chain["family"], chain["table"]) == firewall.TABLE
        if not own and chain.get("hook") in ("input", "output") and chain.get("policy") == "drop":
            others.append(f"table {chain['family']} {chain['table']} ({chain['hook']})")
    return {
        "version": table.version if table else None,
        "others": others,
        "refusal": refusal,
        "ssh_ports": ssh_ports(),
    }


def ssh_ports() -> list[int]:
    """Return the ports on which sshd, or systemd for it, accepts connections; [] without OpenSSH."""
    settings = ""
    with contextlib.suppress(FileNotFoundError):
        settings = subprocess.run(["/usr/sbin/sshd", "-T"], capture_output=True, text=True, check=False).stdout
    found = {int(port) for port in re.findall(r"^(?:port |listenaddress .*:)(\d+)$", settings, re.MULTILINE)}
    command = ["systemctl", "show", "--property=Listen", "ssh.socket"]
    listens = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return sorted(found | {int(port) for port in re.findall(r":(\d+) \(Stream\)", listens)})


def revision() -> str:
    """Return the revision of the last complete deploy, "" before the first."""
    try:
        with open(layout.REVISION, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except FileNotFoundError:
        return ""


def groups(gid: int, operators: str | None) -> dict[str, int]:
    """Return the gids by name of the groups left4me and `operators`, and of groups with this gid."""
    found = {each.gr_name: each.gr_gid for each in grp.getgrall() if each.gr_name == "left4me" or each.gr_gid == gid}
    if operators:
        with contextlib.suppress(KeyError):  # looked up by name: a directory service may not list all groups
            found[operators] = grp.getgrnam(operators).gr_gid
    return found


def names_in(directory: str) -> list[str]:
    return sorted(os.listdir(directory)) if os.path.isdir(directory) else []


def sysctl(names: list[str]) -> dict[str, int | None]:
    """Return settings of the kernel, None for an unknown one; {} in a container, which may not change them."""
    if os.statvfs(procfs.SYSCTL).f_flag & os.ST_RDONLY:
        return {}
    return {name: procfs.sysctl(name) for name in names}


def apparmor() -> bool | None:
    """Return whether the kernel has loaded the servers' profile; None without AppArmor, or in a container."""
    on = procfs.read("/sys/module/apparmor/parameters/enabled") == "Y\n" and os.path.exists(
        f"{procfs.APPARMOR}/.replace"
    )
    if not on or subprocess.run(["systemd-detect-virt", "--container", "--quiet"], check=False).returncode == 0:
        return None
    return procfs.profile_mode() == "enforce"


def gather(question: dict[str, Any]) -> dict[str, Any]:
    with open("/etc/os-release", encoding="utf-8") as file:
        release = {key: value.strip().strip('"') for key, _, value in (line.partition("=") for line in file)}
    first = {
        "system": f"{release.get('ID')} {release.get('VERSION_ID')}",
        "python": list(sys.version_info[:2]),
        "root": os.geteuid() == 0,
    }
    if first["system"] not in question["systems"] or not first["root"]:
        return first  # preflight refuses this host, and the code below may not work on it
    dpkg = ["dpkg", "--print-architecture"]
    paths = sorted({*question["paths"], *below(question["managed"])})
    return first | {
        "architecture": subprocess.run(dpkg, capture_output=True, text=True, check=True).stdout.strip(),
        "init": procfs.read("/proc/1/comm").strip(),
        "overlay": has_overlay(),
        "project_quotas": project_quotas(),
        "packages": packages(question["packages"]),
        "entries": {path: found for path in paths if (found := entry(path))},
        "users": {
            each.pw_name: [each.pw_uid, group(each.pw_gid), each.pw_shell]
            for each in pwd.getpwall()
            if each.pw_name.startswith("left4me") or each.pw_uid == question["uid"]
        },
        "groups": groups(question["gid"], question["operators"]),
        "installation": installation(question["installation"]) if question["installation"] else {},
        "releases": names_in(layout.RELEASES),
        "overlays": {name: names_in(f"{layout.OVERLAYS}/{name}") for name in names_in(layout.OVERLAYS)},
        "runtime": names_in(layout.RUNTIME),
        "ports": ports(),
        "running": running(),
        # Stopped by hand, or in an unfinished reset.
        "held": names_in(layout.HELD) + [path.split("/")[-2] for path in glob.glob(f"{layout.RUNTIME}/*/reset")],
        "mounts": mounts(),
        "revision": revision(),
        "firewall": firewall_state(),
        "sysctl": sysctl(question["sysctl"]),
        "apparmor": apparmor(),
        "cockpit": cockpit.state(question["listen"], question["operators"]),
    }


if __name__ == "__main__":
    print(json.dumps(gather(json.loads(zlib.decompress(base64.b64decode(sys.argv[1]))))))
