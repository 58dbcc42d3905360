"""reader.py QUESTION: read a deployed host. QUESTION is a JSON object; the answer is JSON on standard output.

It runs on the host, so it uses only the standard library of Python 3.11 (Debian 12). It changes nothing, except that
a question with `cycle` stops and starts that server, if it has no players.
"""

from __future__ import annotations

import ctypes
import glob
import grp
import hashlib
import json
import os
import pwd
import re
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

VAR = "/var/lib/left4me"
PAGE = "/usr/local/share/cockpit/left4me"
COCKPITS = ("/usr/local/share/cockpit", "/etc/cockpit/cockpit.conf", "/etc/cockpit/disallowed-users")
WHOLE = ("/etc/left4me", "/usr/local/libexec/left4me", "/usr/local/lib/left4me")
# systemd.unit(5), "Unit File Load Path": the directories whose units can override or extend ours.
UNIT_DIRECTORIES = (
    *("/etc/systemd/system.control", "/run/systemd/system.control", "/run/systemd/transient"),
    *("/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system"),
)
OVERLAYFS = 0x794C7630  # statfs(2), OVERLAYFS_SUPER_MAGIC
RUN = "/run/left4me"
ARGUMENTS = 6 << 20  # bytes of arguments and environment, execve(2), "Limits on size"
ANSWER_SECONDS = 10.0  # a server is silent while it loads a map; a datagram may be lost
STARTING_SECONDS = 2.0  # for a server that was just started: without an answer it is pending
STARTED_SECONDS = 120.0  # a first start on a slow disk
STOPPED_SECONDS = 90.0  # systemd takes at most four times TimeoutStopSec=15s, plus a margin
SERVER_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,19}")


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def name_of(uid: int) -> str:
    """Return the user name of a uid, or its digits if it has no name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def group_of(gid: int) -> str:
    """Return the group name of a gid, or its digits if it has no name."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


# -- files


def entry(path: str) -> dict[str, Any]:
    """Return type, mode, owner and group of a path, and its content: sha256 and text, or a link's target."""
    about = os.lstat(path)
    kinds = {stat.S_IFDIR: "directory", stat.S_IFREG: "file", stat.S_IFLNK: "symlink"}
    found: dict[str, Any] = {
        "type": kinds.get(stat.S_IFMT(about.st_mode), "special"),
        "mode": f"{stat.S_IMODE(about.st_mode):04o}",
        "owner": name_of(about.st_uid),
        "group": group_of(about.st_gid),
    }
    if found["type"] == "symlink":
        found["target"] = os.readlink(path)
        found["since"] = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(about.st_mtime))
    if found["type"] == "file" and not path.startswith(VAR):
        with open(path, "rb") as file:
            content = file.read(1 << 20)
        found["sha256"] = hashlib.sha256(content).hexdigest()
        found["text"] = content[: 1 << 16].decode(errors="replace")
    return found


def walk(top: str) -> Iterator[str]:
    """Yield a path and everything below it."""
    if os.path.lexists(top):
        yield top
    for base, directories, files in os.walk(top):
        for name in directories + files:
            yield os.path.join(base, name)


def children(directory: str) -> list[str]:
    """Return the paths in a directory, including hidden ones; none if it is missing."""
    return glob.glob(f"{glob.escape(directory)}/*", include_hidden=True)


def paths() -> Iterator[str]:
    """Yield every path that the checks look at."""
    for top in WHOLE:
        yield from walk(top)
    for directory in UNIT_DIRECTORIES:
        for path in walk(directory):
            if re.search(r"/\.?left4me", path):
                yield path
    for directory in ("/etc/apparmor.d", "/etc/sudoers.d", "/etc/needrestart/conf.d"):
        yield from (path for path in children(directory) if re.search(r"/\.?left4me", path))
    yield "/etc/sysctl.d/50-left4me.conf"
    yield from ("/usr/local/sbin", "/usr/local/sbin/l4d2ctl", "/usr/local/share/bash-completion/completions/l4d2ctl")
    yield from walk(PAGE)
    yield from COCKPITS
    yield from ("/usr", "/usr/local", "/usr/local/libexec", "/usr/local/lib", "/usr/local/lib/systemd", "/etc")
    yield from (VAR, *children(VAR), f"{VAR}/game/verdicts", *children(f"{VAR}/releases"), *children(f"{VAR}/overlays"))
    for name in children(f"{VAR}/overlays"):
        yield from children(name)
    yield from walk(f"{VAR}/secrets")
    yield from children(f"{VAR}/held")
    for runtime in children(f"{VAR}/runtime"):
        yield from (runtime, f"{runtime}/upper", f"{runtime}/work", f"{runtime}/merged", f"{runtime}/reset")


def entries() -> dict[str, dict[str, Any]]:
    """Return the entries of all of paths() that exist."""
    return {path: entry(path) for path in sorted(set(paths())) if os.path.lexists(path)}


def tree(top: str, content: bool) -> dict[str, list[Any]]:
    """Return type and sha256 (mtime if not `content`) or link target of all files below `top`, by relative path."""
    found: dict[str, list[Any]] = {}
    for path in walk(top):
        about = os.lstat(path)
        if stat.S_ISREG(about.st_mode) and content:
            with open(path, "rb") as file:
                found[os.path.relpath(path, top)] = ["file", hashlib.file_digest(file, "sha256").hexdigest()]
        elif stat.S_ISREG(about.st_mode):
            found[os.path.relpath(path, top)] = ["file", int(about.st_mtime)]
        elif stat.S_ISLNK(about.st_mode):
            found[os.path.relpath(path, top)] = ["symlink", os.readlink(path)]
    return found


# -- secrets


def passwords(servers: list[str]) -> dict[str, str]:
    """Return the RCON passwords on the host. They are only searched for here and never leave the host."""
    found = {}
    for server in servers:
        for path in children(f"{VAR}/secrets/{server}"):
            with open(path, encoding="utf-8", errors="replace") as file:
                password = re.search(r'rcon_password "([^"]+)"', file.read())
            if password:
                found[server] = password[1]
    return found


def leaks(secrets: dict[str, str], texts: dict[str, str]) -> dict[str, list[str]]:
    """Return for each server the places that show its password but must not."""
    texts = {**texts, "the journal": run("journalctl", "--no-pager", "--quiet", "--lines=20000", "--output=cat").stdout}
    for server in secrets:
        unit = f"left4me-server@{server}.service"
        texts[f"systemctl show {unit}"] = run("systemctl", "show", "--no-pager", unit).stdout
    found = {server: [place for place, text in texts.items() if secret in text] for server, secret in secrets.items()}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        # An operator's environment may contain a password, if they deploy the host that they are on.
        for name in ("cmdline", "environ") if is_ours(pid) else ("cmdline",):
            try:
                with open(f"/proc/{pid}/{name}", "rb") as file:
                    text = file.read(ARGUMENTS)  # not more: prctl(2) lets a process make them any size
            except OSError:
                continue  # it has ended
            for server, secret in secrets.items():
                if secret.encode() in text:
                    found[server].append(f"the {name} of process {pid}")
    return found


def is_ours(pid: str) -> bool:
    """Return whether a process belongs to a unit of left4me."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8") as file:
            return re.search(r"/left4me[^/\n]*\.service", file.read()) is not None
    except OSError:
        return False


# -- systemd


def show(units: list[str], properties: list[str]) -> dict[str, dict[str, str]]:
    """Return properties by unit, as systemctl shows them; a repeated property gets several lines."""
    command = ["systemctl", "show", "--all", "--no-pager", f"--property={','.join(['Id', *properties])}", *units]
    shown: dict[str, dict[str, str]] = {}
    for block in run(*command).stdout.strip().split("\n\n"):
        unit: dict[str, str] = {}
        for line in block.splitlines():
            key, _, value = line.partition("=")
            unit[key] = f"{unit[key]}\n{value}" if key in unit else value
        shown[unit["Id"]] = unit
    return shown


def units(servers: list[str], properties: list[str]) -> dict[str, Any]:
    """Return the properties of left4me's units and the output of systemd-analyze about them."""
    instances = [f"left4me-server@{server}.service" for server in servers]
    listed = run("systemctl", "list-units", "--all", "--plain", "--no-legend", "--no-pager", "left4me*").stdout
    names = {line.split()[0] for line in listed.splitlines() if line.split()}
    names |= {*instances, "left4me-server@_check.service", "left4me.slice", "left4me-finish-resets.service"}
    shown = show(sorted(names), properties)
    # Only for running servers: the ExecStart of others is missing, because their overlay is not mounted.
    up = [unit for unit in instances if shown[unit]["ActiveState"] == "active"]
    verify = run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *up, "left4me.slice")
    exposure = {}
    for unit in instances:
        output = run("systemd-analyze", "security", "--no-pager", unit).stdout
        found = re.search(r"exposure level for \S+: ([0-9.]+)", output)
        exposure[unit] = float(found[1]) if found else None
    return {
        "units": shown,
        "verify": (verify.stdout + verify.stderr).splitlines(),
        "verify_exit": verify.returncode,
        "exposure": exposure,
    }


# -- mounts and their holders


def mounts(pid: str = "1") -> list[dict[str, Any]]:
    """Return the mounts of a process, from proc_pid_mountinfo(5)."""
    found = []
    with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            left, _, right = line.partition(" - ")
            fields, (kind, _source, rest) = left.split(), right.split(" ", 2)
            options = dict(option.partition("=")[::2] for option in rest.strip().split(","))
            found.append(
                {
                    "id": int(fields[0]),
                    "point": fields[4],
                    "flags": fields[5].split(","),
                    "type": kind,
                    "options": options,
                }
            )
    return found


def overlays() -> list[dict[str, Any]]:
    """Return the overlay mounts below /var/lib/left4me in PID 1's mount namespace."""
    return [each for each in mounts() if each["type"] == "overlay" and each["point"].startswith(f"{VAR}/")]


def references(pid: str) -> Iterator[tuple[str, str]]:
    """Yield kind (cwd, root, exe, fd, map) and /proc link of everything that a process refers to."""
    for kind in ("cwd", "root", "exe"):
        yield kind, f"/proc/{pid}/{kind}"
    for kind, directory in (("fd", "fd"), ("map", "map_files")):
        try:
            names = os.listdir(f"/proc/{pid}/{directory}")
        except OSError:
            continue
        for name in names:
            yield kind, f"/proc/{pid}/{directory}/{name}"


def overlay_of(link: str) -> int | None:
    """Return the id of the overlay mount that the target of a /proc link is on, or None if it is on no overlay."""
    fd = os.open(link, os.O_PATH)
    try:
        about = ctypes.create_string_buffer(256)  # struct statfs; f_type is its first word
        ctypes.CDLL(None).fstatfs(fd, about)
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
            number = re.search(r"^mnt_id:\s+(\d+)", file.read(), re.MULTILINE)
        return int(number[1]) if number and int.from_bytes(about.raw[:8], sys.byteorder) == OVERLAYFS else None
    finally:
        os.close(fd)


def attached_mounts() -> set[int]:
    """Return the ids of all mounts in all mount namespaces."""
    ids: set[int] = set()
    seen = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            namespace = os.readlink(f"/proc/{pid}/ns/mnt")
            if namespace not in seen:
                ids |= {mount["id"] for mount in mounts(pid)}
                seen.add(namespace)
        except OSError:
            continue  # it has ended
    return ids


def holders(below: str, attached: set[int] | None = None) -> list[dict[str, Any]]:
    """Return the processes that refer to a file below a path.

    With `attached`, the ids of all attached mounts: to a file on an overlay there, or on a detached one (umount -l).
    """
    found = {}  # a library is mapped several times
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            # Read before the links: nsenter leaves merged before it executes the helper.
            with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
                comm = file.read().strip()
        except OSError:
            continue  # it has ended
        for kind, link in references(pid):
            try:
                target = os.readlink(link)
                inside, detached = f"{target}/".startswith(f"{below}/"), False
                if attached is not None:
                    overlay = overlay_of(link) if target.startswith("/") else None
                    inside, detached = inside and overlay is not None, overlay is not None and overlay not in attached
            except OSError:
                continue  # it has ended
            if inside or detached:
                holder = {"pid": int(pid), "comm": comm, "kind": kind, "path": target, "detached": detached}
                found[pid, kind, target] = holder
    return list(found.values())


def process(pid: int) -> dict[str, Any] | None:
    """Return user, command line and AppArmor's label of a process, or None if it has ended."""
    try:
        user = name_of(os.stat(f"/proc/{pid}").st_uid)
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            line = file.read(1 << 16).rstrip(b"\0").split(b"\0")
    except OSError:
        return None
    try:
        label = text_of(f"/proc/{pid}/attr/apparmor/current")
    except OSError:  # AppArmor is off, or the process has ended
        label = ""
    command = [word.decode(errors="replace") for word in line]
    return {"user": user, "command": command, "confined_by": label.rstrip("\0\n")}


# -- pending states


def written(path: str) -> str:
    """Return the mtime of a file in the host's time, or an empty string if it is missing."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(os.stat(path).st_mtime))
    except FileNotFoundError:
        return ""


def text_of(path: str) -> str:
    """Return the first 64 KB of a file, or an empty string if it is missing."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(1 << 16)
    except FileNotFoundError:
        return ""


def record(server: str) -> dict[str, str]:
    """Return the record of a server's start; empty if it is missing."""
    lines = text_of(f"{RUN}/{server}.started").splitlines()
    return {key: value for key, _, value in (line.partition("=") for line in lines)}


def configuration_unread(server: str, began: float) -> str:
    """Return when the cfg files changed, if the game has not read them since; otherwise an empty string.

    The game reads them at each map load. `began` is the start of the game, in seconds since the epoch.
    """
    names = [f"/etc/left4me/servers/{server}/server.cfg", f"/etc/left4me/servers/{server}/admins_simple.ini"]
    paths = [path for path in [*names, *children(f"{VAR}/secrets/{server}")] if os.path.exists(path)]
    changed = max((os.stat(path).st_ctime for path in paths), default=0.0)
    if changed <= began:
        return ""
    look = ["journalctl", "--quiet", "--no-pager", "--output=cat", "--lines=1", f"--since=@{changed:.6f}"]
    echoed = (text_of(names[0]).splitlines() or [""])[-1].partition(" ")[2]
    look += [f"--grep=^{re.escape(echoed)}$", f"_SYSTEMD_UNIT=left4me-server@{server}.service"]
    return "" if run(*look).stdout else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(changed))


def circumstances(server: str, unit: dict[str, str]) -> dict[str, Any]:
    """Return the facts from which the pending states of a server follow."""
    age = time.monotonic() - int(unit.get("ExecMainStartTimestampMonotonic") or 0) / 1e6
    runs = unit["ActiveState"] == "active"
    held = f"{VAR}/held/{server}"
    return {
        "record": record(server),
        "age": round(age, 1) if runs else None,
        "since": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time.time() - age)) if runs else "",
        "held": {"since": written(held), "by": text_of(held).strip()} if os.path.exists(held) else None,
        "reset": written(f"{VAR}/runtime/{server}/reset"),
        "declared": written(f"/etc/left4me/servers/{server}/server.env"),
        "unread": configuration_unread(server, time.time() - age) if runs else "",
    }


# -- A2S_INFO (https://developer.valvesoftware.com/wiki/Server_queries)


def text(data: bytes) -> tuple[str, bytes]:
    """Return the zero-terminated string at the start of data, and the rest."""
    head, _, rest = data.partition(b"\0")
    return head.decode(errors="replace"), rest


def ask(address: str, port: int, seconds: float) -> dict[str, Any] | None:
    """Return a server's A2S_INFO, or None if it does not answer in time."""
    request = b"\xff\xff\xff\xffTSource Engine Query\0"
    challenge, end = b"", time.monotonic() + seconds
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.settimeout(1)
        udp.connect((address, port))
        while time.monotonic() < end:
            try:
                udp.send(request + challenge)
                answer = udp.recv(4096)
            except TimeoutError:
                continue
            except ConnectionRefusedError:
                time.sleep(0.05)  # no process has the port yet, so the error comes at once
                continue
            if answer[:5] == b"\xff\xff\xff\xffA":
                challenge = answer[5:9]
            elif answer[:5] == b"\xff\xff\xff\xffI" and (found := parse(answer[6:])):
                return found
    return None


def parse(data: bytes) -> dict[str, Any] | None:
    """Return an A2S_INFO from what follows its header and protocol version, or None if it is cut short."""
    name, rest = text(data)
    current_map, rest = text(rest)
    folder, rest = text(rest)
    _game, rest = text(rest)
    if len(rest) < 5:
        return None
    return {"name": name, "map": current_map, "folder": folder, "players": rest[2], "bots": rest[4]}


# -- the firewall


def firewall() -> dict[str, Any] | None:
    """Return what is loaded of left4me's table, None if it is not loaded."""
    nft = "/usr/sbin/nft"
    if not os.path.exists(nft) or (listed := run(nft, "--terse", "list", "table", "inet", "left4me")).returncode:
        return None
    comment = re.search(r'^\tcomment "([^"]*)"$', listed.stdout, re.MULTILINE)
    whole = json.loads(run(nft, "--json", "--terse", "list", "table", "inet", "left4me").stdout)["nftables"]
    chains = [each["chain"] for each in whole if "chain" in each]
    hooks = {chain["hook"]: chain["prio"] for chain in chains if "hook" in chain}
    sets = {name: elements(nft, name) for name in ("game", "rcon_from", "game_may_reach")}
    return {"version": comment[1] if comment else "", "hooks": hooks, **sets}


def elements(nft: str, name: str) -> list[Any]:
    """Return the elements of a set: numbers or addresses as they are, 10.0.0.0/8, 10.0.0.1-10.0.0.9, 127.0.0.1:3306."""
    found = []
    for each in json.loads(run(nft, "--json", "list", "set", "inet", "left4me", name).stdout)["nftables"]:
        for value in each.get("set", {}).get("elem", []):
            if isinstance(value, dict) and "prefix" in value:
                found.append(f"{value['prefix']['addr']}/{value['prefix']['len']}")
            elif isinstance(value, dict) and "range" in value:
                found.append("-".join(value["range"]))
            elif isinstance(value, dict) and "concat" in value:
                found.append(":".join(map(str, value["concat"])))
            else:
                found.append(value)
    return found


def is_container() -> bool:
    return run("systemd-detect-virt", "--container").returncode == 0


def has_apparmor() -> bool:
    """Return whether AppArmor is on; in a container, programs may not load profiles."""
    return text_of("/sys/module/apparmor/parameters/enabled") == "Y\n" and not is_container()


def pins() -> list[str] | None:
    """Return the names of pinned BPF programs, None in a container, which may not use BPF."""
    return None if is_container() else [os.path.basename(path) for path in children("/sys/fs/bpf/left4me")]


def sysctl(names: list[str]) -> dict[str, str | None]:
    """Return settings of the kernel, None for an unknown one; {} in a container, where systemd changes none."""
    if is_container():
        return {}
    paths = {name: f"/proc/sys/{name.replace('.', '/')}" for name in names}
    return {name: text_of(path).strip() or None for name, path in paths.items()}


# -- the page


def web() -> dict[str, Any]:
    """Return the packages that a deploy installed for the page, the state of cockpit.socket, and who listens where."""
    shown = show(["cockpit.socket"], ["ActiveState", "UnitFileState", "Listen", "NeedDaemonReload"])
    listening = []
    # ss(8): State, Recv-Q, Send-Q, Local Address:Port, Peer Address:Port, Process
    for line in run("ss", "--tcp", "--listening", "--numeric", "--processes", "--no-header").stdout.splitlines():
        fields = line.split(maxsplit=5)
        by = re.findall(r'"([^"]+)"', fields[5]) if len(fields) > 5 else []
        listening.append({"at": re.sub(r"^\*:", "[::]:", fields[3]), "by": by})
    return {
        "packages": text_of(f"{VAR}/web-packages").split(),
        "socket": shown["cockpit.socket"],
        "listening": listening,
    }


# -- the answer


def accounts() -> dict[str, Any]:
    """Return left4me's users and groups."""
    return {
        "users": {
            user.pw_name: {"uid": user.pw_uid, "group": group_of(user.pw_gid), "shell": user.pw_shell}
            for user in pwd.getpwall()
            if user.pw_name.startswith("left4me")
        },
        "groups": {group.gr_name: group.gr_gid for group in grp.getgrall() if group.gr_name.startswith("left4me")},
    }


def memory() -> int:
    """Return the bytes of memory of which systemd takes a percentage: a container may have less than the machine."""
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as file:
            limit = file.read().strip()
    except OSError:  # the root of the machine itself has none
        return whole
    return min(whole, int(limit)) if limit.isdigit() else whole


def cgroups() -> dict[str, dict[str, str]]:
    """Return what limits CPU and memory in the cgroups of left4me.slice and of its units.

    {} if this host limits neither: a container may have no controllers.
    """
    top, found = "/sys/fs/cgroup/left4me.slice", {}
    for path in (top, *filter(os.path.isdir, children(top))):
        values = {name: text_of(f"{path}/{name}").strip() for name in ("cpu.weight", "memory.max")}
        if all(values.values()):
            found[os.path.basename(path)] = values
    return found


def disks() -> dict[str, dict[str, int]]:
    """Return the size of the filesystem as each server's upper shows it: a project's limit, if it has one."""
    whole, found = os.statvfs(VAR), {}
    for runtime in children(f"{VAR}/runtime"):
        if SERVER_ID.fullmatch(server := os.path.basename(runtime)) and os.path.isdir(f"{runtime}/upper"):
            upper = os.statvfs(f"{runtime}/upper")
            sizes = {"bytes": upper.f_blocks * upper.f_frsize, "files": upper.f_files}
            found[server] = sizes | {"whole": whole.f_blocks * whole.f_frsize}
    return found


def system() -> str:
    """Return the host's distribution and its version, such as `debian 12`."""
    release = dict(re.findall(r'^(ID|VERSION_ID)="?([^"\n]*)"?$', text_of("/etc/os-release"), re.MULTILINE))
    return f"{release.get('ID')} {release.get('VERSION_ID')}"


def packages() -> list[str]:
    """Return name:architecture of every installed package."""
    output = run("dpkg-query", "-W", "-f", "${Package}:${Architecture} ${db:Status-Status}\n").stdout
    return [line.split()[0] for line in output.splitlines() if line.endswith(" installed")]


def missing_cfgs(upper: str, lowers: list[str], names: list[str]) -> list[str]:
    """Return the cfg files that are in none of a server's layers. `lowers` has the topmost first."""

    def exists(name: str) -> bool:
        for layer in [upper, *lowers]:
            path = f"{layer}/left4dead2/cfg/{name}"
            if os.path.lexists(path):
                return os.path.isfile(path)  # not a whiteout of overlayfs
        return False

    return [name for name in names if not exists(name)]


def links_out(top: str) -> dict[str, str]:
    """Return target by path of the links below `top` that point outside it, except those to system libraries."""
    found = {}
    for base, names, files in os.walk(top):
        for full in (os.path.join(base, name) for name in names + files):
            if os.path.islink(full):
                target = os.readlink(full)
                full_target = os.path.normpath(os.path.join(base, target))
                seen = (f"{top}/", "/usr/", "/lib/", "/lib32/", "/lib64/")
                if full_target != top and not full_target.startswith(seen):
                    found[os.path.relpath(full, top)] = target
    return found


def look(question: dict[str, Any]) -> dict[str, Any]:
    servers: list[str] = question["servers"]
    # Including servers that are no longer declared: the deploy keeps those with players.
    known = sorted({*servers, *filter(SERVER_ID.fullmatch, map(os.path.basename, children("/etc/left4me/servers")))})
    with ThreadPoolExecutor(max(1, len(known))) as pool:
        names = [f"left4me-server@{each}.service" for each in known]
        states = show(names, ["ActiveState", "ExecMainStartTimestampMonotonic"]) if known else {}
        found_of = {each: circumstances(each, states[unit]) for each, unit in zip(known, names, strict=True)}
        # Only running servers can answer.
        asked = {
            each: pool.submit(ask, *address_of(each, about["record"]), patience(about["age"], question["grace"]))
            for each, about in found_of.items()
            if about["age"] is not None
        }
        found = {
            "system": system(),
            "servers": found_of,
            "entries": entries(),
            "overlays": overlays(),
            "holders": holders(f"{VAR}/runtime", attached_mounts()),
            **units(servers, question["properties"]),
            **accounts(),
            "packages": packages(),
            "firewall": firewall(),
            "sysctl": sysctl(question["sysctl"]),
            "apparmor": has_apparmor(),
            "pins": pins(),
            "web": web(),
            "memory": memory(),
            "disks": disks(),
            "cgroups": cgroups(),
        }
        texts = {path: about["text"] for path, about in found["entries"].items() if "text" in about}
        found["leaks"] = leaks(passwords(servers), texts)
        found["trees"] = {
            layer: tree(os.path.realpath(f"{VAR}/overlays/{layer}/current"), content)
            for layer, content in question["trees"].items()
        }
        found["links_out"] = links_out(os.path.realpath(f"{VAR}/installation")) if question["links"] else {}
        found["missing_cfgs"] = {
            server: missing_cfgs(f"{VAR}/runtime/{server}/upper", about["lowers"], about["names"])
            for server, about in question["exec"].items()
        }
        mains = {unit: int(shown.get("MainPID") or 0) for unit, shown in found["units"].items()}
        found["processes"] = {unit: process(pid) for unit, pid in mains.items() if pid}
        found["answers"] = {each: answer.result() for each, answer in asked.items()}
    return found


def address_of(server: str, started: dict[str, str]) -> tuple[str, int]:
    """Return address and port for queries of a running server: those that it was started with."""
    address, port = started.get("LEFT4ME_ADDRESS", "0.0.0.0"), started.get("LEFT4ME_PORT", "")
    return "127.0.0.1" if address == "0.0.0.0" else address, int(port) if port.isdigit() else port_of(server)


def patience(age: float, grace: float) -> float:
    """Return how long to query a server, in seconds.

    A server that was just started is pending without an answer. Any other one may be loading a map.
    """
    return STARTING_SECONDS if age < grace else max(ANSWER_SECONDS, grace)


def port_of(server: str) -> int:
    """Return the port that the host assigned to a server, or 0 if it has none yet."""
    try:
        with open(f"/etc/left4me/servers/{server}/server.env", encoding="utf-8") as file:
            found = re.search(r'^LEFT4ME_PORT="(\d+)"$', file.read(), re.MULTILINE)
    except FileNotFoundError:
        return 0
    return int(found[1]) if found else 0


def refusal(unit: str, answer: dict[str, Any] | None) -> str:
    """Return why a server must not be stopped now, or an empty string."""
    if answer is None:
        return f"{unit} was not stopped: it does not answer A2S, so its players are unknown"
    if answer["players"] > answer["bots"]:
        return f"{unit} was not stopped: it has players ({answer['players'] - answer['bots']})"
    return ""


def belongs(pid: int, unit: str) -> bool:
    """Return whether a process belongs to a unit."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8") as file:
            return f"/{unit}\n" in file.read()
    except OSError:
        return False


def cycle(server: str, address: str, declared_port: int | None) -> dict[str, Any]:
    """Stop a server without players, record the holders of its overlay meanwhile, and start it again."""
    unit, merged = f"left4me-server@{server}.service", f"{VAR}/runtime/{server}/merged"
    # The declared port may have changed since the start.
    main = process(int(show([unit], ["MainPID"])[unit]["MainPID"]))
    words = main["command"] if main else []
    port = int(words[words.index("-port") + 1]) if "-port" in words else declared_port or port_of(server)
    refused = refusal(unit, ask(address, port, ANSWER_SECONDS))
    if refused:
        return {"refused": refused}
    own = {holder["pid"] for holder in holders(merged) if belongs(holder["pid"], unit)}
    seen: dict[str, dict[str, Any]] = {}
    begin = time.monotonic()
    with subprocess.Popen(["systemctl", "stop", unit]) as stop:
        while stop.poll() is None and time.monotonic() < begin + STOPPED_SECONDS:
            for holder in holders(merged):
                if holder["pid"] not in own:
                    seen[f"{holder['pid']} {holder['comm']} {holder['kind']}"] = holder
        seconds = time.monotonic() - begin
        stop.terminate()
    result = {
        "seconds": round(seconds, 3),
        "holders": list(seen.values()),
        "unit": show([unit], ["ActiveState", "Result", "ExecStopPostEx"])[unit],
        "left": [each["point"] for each in overlays() if each["point"] == merged],
        "holders_left": holders(merged, attached_mounts()),
    }
    # This start must not count against the start limit, which could refuse it.
    run("systemctl", "reset-failed", unit)
    started = run("systemctl", "start", unit)
    return result | {"start": started.stderr.strip(), "answer": ask(address, port, STARTED_SECONDS)}


def main(question: dict[str, Any]) -> None:
    if os.geteuid() != 0:
        sys.exit("the SSH user is not root: set _sudo = True in the host's data")
    print(json.dumps(cycle(*question["cycle"]) if "cycle" in question else look(question)))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
