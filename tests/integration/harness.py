"""What the box tests share: inventories of boxes, running pyinfra, and reading a box from outside."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import a2s

from tests.boxes.boxes import Box

ROOT = Path(__file__).parent.parent.parent
PYINFRA = Path(sys.executable).with_name("pyinfra")
GAME = {"source": "control", "path": ".boxes/game"}
SERVERS: Mapping[str, Any] = {"3": {"port": 27015, "hostname": "three"}, "4": {"port": 27016, "hostname": "four"}}
RCON_FROM = ["198.18.0.0/15"]
"""Tests use RCON from this machine, whose address on the boxes' network is in RFC 2544's range."""
DEPLOYED = (
    "/etc/apparmor.d /etc/left4me /etc/needrestart /etc/sudoers.d /etc/systemd/system /usr/local/lib/left4me "
    "/usr/local/lib/systemd /usr/local/libexec /usr/local/sbin /usr/local/share/bash-completion /var/lib/left4me"
)
# All that a deploy manages, and what it may change as a side effect.
MANAGED = f"{DEPLOYED} /etc/passwd /etc/group /etc/shadow /etc/gshadow /etc/apt /var/lib/dpkg /var/lib/apt/lists"
# Excluded from find: files that running servers change, and the records of jobs.
_GAMES = "-path '/var/lib/left4me/runtime/*/merged' -prune -o -path '/var/lib/left4me/runtime/*/[uw]*/*' -prune -o"
_GAMES += " -path '/var/lib/left4me/jobs/*' -prune -o"


def write_inventory(
    path: Path, boxes: Iterable[Box], user: str = "root", hosts: Mapping[str, Any] | None = None, **data: Any
) -> Path:
    """Write an inventory of boxes; `data` is for every host, `hosts` has additional data by host name."""
    common: dict[str, Any] = {
        "game": GAME,
        "servers": dict(SERVERS),
        "ssh_config_file": "/dev/null",
        "rcon_from": RCON_FROM,
    }
    common |= data
    if common["rcon_from"] is None:  # for a revision that has no firewall
        del common["rcon_from"]
    if user != "root":
        common |= {"_sudo": True}
    listed = [
        (
            box.name,
            {
                "ssh_hostname": box.address,
                "ssh_user": user,
                "ssh_key": str(box.ssh_key),
                "ssh_known_hosts_file": str(box.known_hosts),
                "ssh_strict_host_key_checking": "yes",
                **common,
                **((hosts or {}).get(box.name, {})),
            },
        )
        for box in boxes
    ]
    path.write_text(f"boxes = {listed!r}\n", encoding="utf-8")
    return path


@contextmanager
def started(*arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """Start pyinfra in the repository's root; kill it when the block ends."""
    # Without the SSH agent of the user who runs the tests, and without a progress spinner.
    environment = {key: value for key, value in os.environ.items() if key != "SSH_AUTH_SOCK"}
    environment["PYINFRA_PROGRESS"] = "off"
    with subprocess.Popen(
        [str(PYINFRA), *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def pyinfra(*arguments: str | Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run pyinfra and wait for it. Kills it and raises TimeoutExpired after `timeout` seconds."""
    with started(*arguments) as process:
        out, err = process.communicate(timeout=timeout)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def deploy(inventory: Path, *arguments: str) -> dict[str, Any]:
    """Deploy, assert success, and return pyinfra's results."""
    done = pyinfra(inventory, "deploy.py", "-y", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    results: dict[str, Any] = json.loads(done.stdout)["results"]
    return results


def checkout(folder: Path) -> Path:
    """Copy the tracked files of this checkout, with local changes, to `folder`; .boxes is shared."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name, follow_symlinks=False)
    (folder / ".boxes").symlink_to(ROOT / ".boxes")
    return folder


SILENCE = 12
"""The silence limit of an impatient_checkout(), in seconds."""


def impatient_checkout(folder: Path) -> Path:
    """Copy this checkout with shorter limits of the lock for silence and heartbeat, in the same ratio."""
    path = checkout(folder) / "left4me/lock/protocol.py"
    text = path.read_text(encoding="utf-8")
    for shipped, here in (("SILENCE = 60\n", f"SILENCE = {SILENCE}\n"), ("HEARTBEAT = 15\n", "HEARTBEAT = 3\n")):
        assert text.count(shipped) == 1
        text = text.replace(shipped, here)
    path.write_text(text, encoding="utf-8")
    return folder


def assert_idle(results: Mapping[str, Any], boxes: Iterable[Box]) -> None:
    """Assert that every operation ran on all these boxes and changed nothing."""
    totals = results["totals"]
    assert (totals["success"], totals["error"], results["failed_hosts"]) == (0, 0, []), changed(results)
    assert results["operations"]
    names = sorted(box.name for box in boxes)
    assert [each["no_change"] for each in results["operations"]] == [names] * len(results["operations"])


def changed(results: Mapping[str, Any]) -> list[str]:
    """Assert that all operations succeeded, and return the names of those that changed a host."""
    assert results["totals"]["error"] == 0, results
    return [each["name"] for each in results["operations"] if each["success"]]


def properties(box: Box, unit: str, *names: str) -> dict[str, str]:
    """Return properties of a unit, as systemctl shows them."""
    out = box.run(f"systemctl show {unit} -p {','.join(names)}").stdout
    return dict(line.split("=", 1) for line in out.splitlines())


def overlays(box: Box) -> list[str]:
    """Return the mount points of left4me's overlays in the mount namespace of a box's PID 1, read from outside."""
    lines = Path(f"/proc/{box.leader}/mountinfo").read_text(encoding="utf-8").splitlines()
    return [fields[4] for fields in map(str.split, lines) if "/left4me/" in fields[4] and "overlay" in fields]


def inodes(box: Box, paths: str = MANAGED) -> str:
    """Return inode, ctime and name of everything below `paths`: they are equal if nothing was changed."""
    # Twice: the overlay of a box's root changes some directories when they are first read.
    find = f"find {paths} {_GAMES} -printf '%i %C@ %p\\n'"
    return box.run(f"{find} >/dev/null; {find} | sort -k3").stdout


def standing(box: Box) -> dict[str, str]:
    """Return all that a deploy without changes must not change.

    Inodes, PID 1's last daemon-reload, its journal about that and left4me, and the PIDs of the servers.
    """
    # UnitsLoadTimestamp is set by each daemon-reload, 0 before the first; UnitsLoadFinishTimestamp is set by the boot.
    about = "journalctl --quiet --output=short-monotonic --grep='left4me|Reloading' _PID=1"
    servers = box.run("systemctl list-units --plain --no-legend 'left4me-server@*' | cut -d' ' -f1 | sort").stdout
    return {
        "inodes": inodes(box),
        "reload": box.run("systemctl show -p UnitsLoadTimestampMonotonic").stdout,
        "journal": box.run(f"journalctl --sync; {about} || true").stdout,
        **{unit: properties(box, unit, "MainPID")["MainPID"] for unit in servers.split()},
    }


def listing(box: Box) -> list[str]:
    """Return type, mode, owner, name, target and content of everything deployed, packages, accounts and units.

    Without the content of secrets, which each host generates, and the records of jobs.
    """
    script = f"""
        find {DEPLOYED} {_GAMES} ! -path '*/jobs/*.json' -printf '%M %u %g %p %l\\n'
        find {DEPLOYED} {_GAMES} -type f ! -path '*/secrets/*/rcon.cfg' ! -path '*/jobs/*.json' -print0 |
            xargs -0 sha256sum
        dpkg-query -W -f '${{binary:Package}} ${{Version}} ${{Status}}\\n'
        dpkg --print-foreign-architectures
        getent passwd; getent group
        systemctl list-units --plain --no-legend 'left4me*' | awk '{{ print $1, $2, $3, $4 }}'
    """
    return sorted(box.run(script).stdout.splitlines())


def bare(box: Box) -> None:
    """Remove everything that a deploy created, except the packages."""
    box.run("""
        systemctl stop 'left4me-server@*' left4me.slice
        rm -rf /etc/left4me /usr/local/libexec/left4me /usr/local/lib/systemd/system/*left4me* /var/lib/left4me
        rm -rf /etc/systemd/system/*left4me* /etc/systemd/system/*/*left4me* /etc/sudoers.d/left4me
        rm -f /etc/apparmor.d/left4me-server
        rm -rf /usr/local/lib/left4me /usr/local/sbin/l4d2ctl /usr/local/share/bash-completion
        systemctl daemon-reload; systemctl reset-failed
        for user in $(getent passwd | grep -o '^left4me[^:]*'); do userdel $user; done
        ! getent group left4me >/dev/null || groupdel left4me
    """)


def name_over_a2s(box: Box, port: int) -> str:
    """Return the name that a server reports over A2S, asked from outside the box. Raises TimeoutError."""
    return str(a2s.info((str(box.address), port), timeout=1.0).server_name)


def wait_for(what: str, condition: Callable[[], bool], limit: float = 20) -> None:
    """Wait until `condition` holds; fail after `limit` seconds and name `what`."""
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, f"not reached within {limit} s: {what}"
        time.sleep(0.02)


def wait_for_server(box: Box, port: int, limit: float = 20) -> None:
    """Wait until a server answers A2S."""

    def answers() -> bool:
        try:
            return bool(name_over_a2s(box, port))
        except OSError:
            return False

    wait_for(f"{box.name}:{port} answers A2S", answers, limit)


def rounds(test: int, soak: int) -> int:
    """Return the number of repetitions of a counted test: `soak` with SOAK=1 in the environment, else `test`."""
    return soak if os.environ.get("SOAK") else test


@dataclass(frozen=True)
class SmallDisk:
    """A small filesystem on /var/lib/left4me of a box."""

    box: Box

    def fill(self) -> None:
        """Use all space and all inodes."""
        self.box.run("""
            cd /var/lib/left4me; mkdir .inodes
            head -c 1G /dev/zero >.fill 2>/dev/null
            n=0; while : 2>/dev/null >.inodes/$n; do n=$((n+1)); done; true
        """)

    def empty(self) -> None:
        """Remove the files of fill()."""
        self.box.run("cd /var/lib/left4me && rm -rf .fill .inodes")


@contextmanager
def small_disk(box: Box) -> Iterator[SmallDisk]:
    """Put /var/lib/left4me on a small disk with free space. Stops all servers before, and starts them afterwards."""
    var, small = "/var/lib/left4me", "/run/small"
    box.run(f"""
        l4d2ctl stop --all
        mkdir -p {small}; mount -t tmpfs -o mode=755,size=400M,nr_inodes=5000 small {small}
        cp -a {var}/. {small}; mount --bind {small} {var}
    """)
    disk = SmallDisk(box)
    yield disk
    disk.empty()
    box.run(f"l4d2ctl stop --all; umount {var} {small}; rmdir {small}; l4d2ctl start --all")


def device(box: Box, server: str) -> str:
    """Return major:minor of a server's overlay in the mount namespace of the box's PID 1, read from outside."""
    lines = Path(f"/proc/{box.leader}/mountinfo").read_text(encoding="utf-8").splitlines()
    [found] = [line.split()[2] for line in lines if line.split()[4] == f"/var/lib/left4me/runtime/{server}/merged"]
    return found


def devices(box: Box, server: str) -> set[str]:
    """Return major:minor of the overlays on a server's upper in all mount namespaces of a box; two are a bug."""
    found = set()
    upper = f",upperdir=/var/lib/left4me/runtime/{server}/upper,"
    box_pid_namespace = os.readlink(f"/proc/{box.leader}/ns/pid")
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.readlink(process / "ns/pid") == box_pid_namespace:
                lines = (process / "mountinfo").read_text(errors="replace").splitlines()
                found |= {line.split()[2] for line in lines if upper in line}
    return found


def having(box: Box, server: str, runs: bool = False) -> list[str]:
    """Return the names of a box's processes that hold a path in a server's runtime directory, found from outside.

    They hold it as working directory, root, program, open file, mapping, or mount in their namespace. If the server
    `runs`, mounts and the processes of its unit do not count: every process of the box sees the mount.
    """
    found = []
    path = f"/var/lib/left4me/runtime/{server}/"
    box_pid_namespace = os.readlink(f"/proc/{box.leader}/ns/pid")
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.readlink(process / "ns/pid") != box_pid_namespace:
                continue
            links = [process / "cwd", process / "root", process / "exe", *(process / "fd").iterdir()]
            names = [os.readlink(link) for link in links]
            text = (process / "maps").read_text(errors="replace")
            if not runs:
                text += (process / "mountinfo").read_text(errors="replace")
            elif f"/left4me-server@{server}.service" in (process / "cgroup").read_text():
                continue
            if any(f"{name}/".startswith(path) for name in names) or path in text:
                found.append((process / "comm").read_text().strip())
    return found
