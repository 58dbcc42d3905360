"""What the box tests share: an inventory of boxes, pyinfra as an operator starts it, looks at a box from outside."""

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
DEPLOYED = (
    "/etc/left4me /etc/needrestart /etc/sudoers.d /etc/systemd/system /usr/local/lib/left4me /usr/local/lib/systemd "
    "/usr/local/libexec /usr/local/sbin /usr/local/share/bash-completion /var/lib/left4me"
)
# What a deploy manages, and what it might touch on the way.
MANAGED = f"{DEPLOYED} /etc/passwd /etc/group /etc/shadow /etc/gshadow /etc/apt /var/lib/dpkg /var/lib/apt/lists"
# What running servers themselves change.
_GAMES = "-path '/var/lib/left4me/runtime/*/merged' -prune -o -path '/var/lib/left4me/runtime/*/[uw]*/*' -prune -o"


def write_inventory(
    path: Path, boxes: Iterable[Box], user: str = "root", hosts: Mapping[str, Any] | None = None, **data: Any
) -> Path:
    """Write an inventory file of boxes; `data` is every host's, `hosts` what one host has of its own by its name."""
    common = {"game": GAME, "servers": dict(SERVERS), "ssh_config_file": "/dev/null", **data}
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
    """Start pyinfra in the repository's root, as an operator does; it is dead when the block ends."""
    # No spinner, and no agent of whoever runs the tests.
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
    """Run pyinfra to its end; raises TimeoutExpired, and has then killed it."""
    with started(*arguments) as process:
        out, err = process.communicate(timeout=timeout)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def deploy(inventory: Path, *arguments: str) -> dict[str, Any]:
    """Deploy, which must succeed, and return pyinfra's results."""
    done = pyinfra(inventory, "deploy.py", "-y", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    results: dict[str, Any] = json.loads(done.stdout)["results"]
    return results


def checkout(folder: Path) -> Path:
    """Copy what git has of this checkout, as it is now; the state of the boxes is shared."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name, follow_symlinks=False)
    (folder / ".boxes").symlink_to(ROOT / ".boxes")
    return folder


SILENCE = 12
"""Seconds for which an impatient_checkout() hears nothing before it gives up."""


def impatient_checkout(folder: Path) -> Path:
    """Copy this checkout with a shorter silence and heartbeat of the lock, in their proportion: 60 and 15 seconds."""
    path = checkout(folder) / "left4me/lock/protocol.py"
    text = path.read_text(encoding="utf-8")
    for shipped, here in (("SILENCE = 60\n", f"SILENCE = {SILENCE}\n"), ("HEARTBEAT = 15\n", "HEARTBEAT = 3\n")):
        assert text.count(shipped) == 1
        text = text.replace(shipped, here)
    path.write_text(text, encoding="utf-8")
    return folder


def assert_idle(results: Mapping[str, Any], boxes: Iterable[Box]) -> None:
    """Assert that every operation ran on every one of these boxes and changed nothing."""
    totals = results["totals"]
    assert (totals["success"], totals["error"], results["failed_hosts"]) == (0, 0, []), changed(results)
    assert results["operations"]
    names = sorted(box.name for box in boxes)
    assert [each["no_change"] for each in results["operations"]] == [names] * len(results["operations"])


def changed(results: Mapping[str, Any]) -> list[str]:
    """Return the names of the operations that changed a host; everything has to have succeeded."""
    assert results["totals"]["error"] == 0, results
    return [each["name"] for each in results["operations"] if each["success"]]


def properties(box: Box, unit: str, *names: str) -> dict[str, str]:
    """Return properties of a unit as systemd reports them."""
    out = box.run(f"systemctl show {unit} -p {','.join(names)}").stdout
    return dict(line.split("=", 1) for line in out.splitlines())


def overlays(box: Box) -> list[str]:
    """Return the mount points of left4me's overlays in a box, as its PID 1 has them, read from outside."""
    lines = Path(f"/proc/{box.leader}/mountinfo").read_text(encoding="utf-8").splitlines()
    return [fields[4] for fields in map(str.split, lines) if "/left4me/" in fields[4] and "overlay" in fields]


def inodes(box: Box, paths: str = MANAGED) -> str:
    """Return inode, ctime and name of everything below `paths`: two equal answers mean that nothing was changed."""
    # Twice: the overlay that is a box's root marks some directories when they are first looked into.
    find = f"find {paths} {_GAMES} -printf '%i %C@ %p\\n'"
    return box.run(f"{find} >/dev/null; {find} | sort -k3").stdout


def standing(box: Box) -> dict[str, str]:
    """Return what a deploy that has nothing to do leaves as it is.

    Inodes, PID 1's last reload and what its journal says of it and of left4me, and the servers' PIDs.
    """
    # UnitsLoadFinishTimestamp is that of the boot; this one is that of the last daemon-reload, 0 before the first.
    about = "journalctl --quiet --output=short-monotonic --grep='left4me|Reloading' _PID=1"
    servers = box.run("systemctl list-units --plain --no-legend 'left4me-server@*' | cut -d' ' -f1 | sort").stdout
    return {
        "inodes": inodes(box),
        "reload": box.run("systemctl show -p UnitsLoadTimestampMonotonic").stdout,
        "journal": box.run(f"journalctl --sync; {about} || true").stdout,
        **{unit: properties(box, unit, "MainPID")["MainPID"] for unit in servers.split()},
    }


def listing(box: Box) -> list[str]:
    """Return type, mode, owner, name, target and content of everything deployed, the packages, and the accounts.

    Not the content of secrets, which each host makes for itself.
    """
    script = f"""
        find {DEPLOYED} {_GAMES} -printf '%M %u %g %p %l\\n'
        find {DEPLOYED} {_GAMES} -type f ! -path '*/secrets/*/rcon.cfg' -print0 | xargs -0 sha256sum
        dpkg-query -W -f '${{binary:Package}} ${{Version}} ${{Status}}\\n'
        dpkg --print-foreign-architectures
        getent passwd; getent group
        systemctl list-units --plain --no-legend 'left4me*' | awk '{{ print $1, $2, $3, $4 }}'
    """
    return sorted(box.run(script).stdout.splitlines())


def bare(box: Box) -> None:
    """Take away all that a deploy brought but the packages."""
    box.run("""
        systemctl stop 'left4me-server@*' left4me.slice
        rm -rf /etc/left4me /usr/local/libexec/left4me /usr/local/lib/systemd/system/*left4me* /var/lib/left4me
        rm -rf /etc/systemd/system/*left4me* /etc/systemd/system/*/*left4me* /etc/sudoers.d/left4me
        rm -rf /usr/local/lib/left4me /usr/local/sbin/l4d2ctl /usr/local/share/bash-completion
        systemctl daemon-reload; systemctl reset-failed
        for user in $(getent passwd | grep -o '^left4me[^:]*'); do userdel $user; done
        ! getent group left4me >/dev/null || groupdel left4me
    """)


def name_over_a2s(box: Box, port: int) -> str:
    """Ask a server for its name from outside the box; raises TimeoutError where nobody answers."""
    return str(a2s.info((str(box.address), port), timeout=1.0).server_name)


def wait_for(what: str, condition: Callable[[], bool], limit: float = 20) -> None:
    """Return when `condition` holds; fail after `limit` seconds, saying `what` did not come."""
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, f"not within {limit} s: {what}"
        time.sleep(0.02)


def wait_for_server(box: Box, port: int, limit: float = 20) -> None:
    """Return when a server answers A2S."""

    def answers() -> bool:
        try:
            return bool(name_over_a2s(box, port))
        except OSError:
            return False

    wait_for(f"{box.name}:{port} answers A2S", answers, limit)


def rounds(test: int, soak: int) -> int:
    """Return how often a counted test does its thing: `soak` times with SOAK=1 in the environment."""
    return soak if os.environ.get("SOAK") else test


@dataclass(frozen=True)
class SmallDisk:
    """A small filesystem at /var/lib/left4me of a box."""

    box: Box

    def fill(self) -> None:
        """Fill it to the last byte and inode."""
        self.box.run("""
            cd /var/lib/left4me; mkdir .inodes
            head -c 1G /dev/zero >.fill 2>/dev/null
            n=0; while : 2>/dev/null >.inodes/$n; do n=$((n+1)); done; true
        """)

    def empty(self) -> None:
        """Remove what filled it."""
        self.box.run("cd /var/lib/left4me && rm -rf .fill .inodes")


@contextmanager
def small_disk(box: Box) -> Iterator[SmallDisk]:
    """Have /var/lib/left4me on a small disk with room to spare; all servers are stopped before and started after it."""
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
    """Return major:minor of a server's overlay as the box's PID 1 has it, read from outside."""
    lines = Path(f"/proc/{box.leader}/mountinfo").read_text(encoding="utf-8").splitlines()
    [found] = [line.split()[2] for line in lines if line.split()[4] == f"/var/lib/left4me/runtime/{server}/merged"]
    return found


def devices(box: Box, server: str) -> set[str]:
    """Return major:minor of every overlay over a server's upper in any mount namespace of a box: one, or damage."""
    found = set()
    upper = f",upperdir=/var/lib/left4me/runtime/{server}/upper,"
    mine = os.readlink(f"/proc/{box.leader}/ns/pid")
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.readlink(process / "ns/pid") == mine:
                lines = (process / "mountinfo").read_text(errors="replace").splitlines()
                found |= {line.split()[2] for line in lines if upper in line}
    return found


def having(box: Box, server: str, runs: bool = False) -> list[str]:
    """Return which processes of a box have something of a server's runtime directory, found from outside by its path.

    A working directory, a root, a program, an open file, a mapping, or a mount in their namespace. Where it `runs`, all
    of a box have the mount, and what is of its unit does not count.
    """
    found = []
    path = f"/var/lib/left4me/runtime/{server}/"
    mine = os.readlink(f"/proc/{box.leader}/ns/pid")
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.readlink(process / "ns/pid") != mine:
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
