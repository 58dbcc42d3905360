"""The Python interface to test boxes: ``up``, ``down``, ``boxes`` and the class Box.

Whether a box is up is read from its cgroup, never from a file, so that a killed call leaves no stale state.
A box's directory is complete before it gets its name.
"""

import contextlib
import json
import os
import re
import secrets
import select
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tests.boxes import image, network, requirements, vm
from tests.boxes.cgroup import Group, groups
from tests.boxes.system import CHECKOUT_ID, STATE, BoxError, allow_many, locked, tool, write

__all__ = ["Box", "BoxError", "boxes", "down", "up"]

# A hostname; also part of names with limits of their own.
NAME = re.compile(r"[a-z][a-z0-9-]{0,19}")
_PREFIX = f"left4me-box-{CHECKOUT_ID}-"
_KEY = STATE / "key"
_LOCK = STATE / ".lock"
_FACTS = "box.json"
_IDENTITY = (
    *("etc/machine-id", "etc/hostname", "etc/hosts", "etc/ssh/ssh_host_*", "etc/apt/apt.conf.d/90proxy"),
    *("root/.ssh", "home/admin/.ssh", "var/log/journal/*", "var/tmp/*"),
)
# A box starts in a second, one of a dozen in four seconds; a loaded CI machine needs several times that.
_START_SECONDS = 90
_STOP_SECONDS = 120  # systemd's limit for one unit, plus a margin
_SOCKET_PATH_LIMIT = 107 - len(
    ".0123456789abcdef"
)  # sun_path without the suffix that ssh appends while it creates the socket


@dataclass(frozen=True)
class Box:
    """One test box of this checkout."""

    name: str
    address: str
    debian: int
    index: int
    image: Path
    snapshot: Path | None = None
    """The files that another box had written when it was stopped: a layer between the image and this box's upper."""
    is_vm: bool = False
    """Whether the box is a full machine (vm.py)."""

    @property
    def directory(self) -> Path:
        """The directory with all files of the box."""
        return STATE / self.name

    @property
    def ssh_key(self) -> Path:
        """The private key for root and admin on every box of this checkout."""
        return _KEY

    @property
    def known_hosts(self) -> Path:
        """A known_hosts file with the box's host key."""
        return self.directory / "known_hosts"

    @property
    def ssh_config(self) -> Path:
        """An ssh_config(5) with the hosts NAME (user root) and NAME-admin (user admin)."""
        return self.directory / "ssh_config"

    @property
    def state(self) -> Literal["up", "stopped"]:
        """`up` if a process of the box is alive."""
        return "up" if self._group.alive() else "stopped"

    @property
    def leader(self) -> int:
        """The PID of the box's PID 1 on this machine. Raises BoxError if the box is not up."""
        # nspawn runs the container below `payload`; systemd moves itself into `init.scope`.
        listing = self._group.path / "payload/init.scope/cgroup.procs"
        if self._group.alive() and listing.exists():
            for pid in listing.read_text().split():
                status = Path("/proc", pid, "status").read_text()
                if re.search(r"^NSpid:\s+\d+\s+1$", status, re.MULTILINE):
                    return int(pid)
        raise BoxError(f"{self.name} is not up: it has no PID 1; start it with ./box start {self.name}")

    @property
    def _group(self) -> Group:
        return Group(_PREFIX + self.name)

    def run(
        self,
        command: str,
        *,
        user: Literal["root", "admin"] = "root",
        check: bool = True,
        input: bytes | None = None,  # noqa: A002 - the name that subprocess.run uses
        timeout: float = 60,
    ) -> "subprocess.CompletedProcess[str]":
        """Run a shell command in the box over ssh.

        Raises BoxError if it fails and ``check`` is set, or if it takes longer than ``timeout`` seconds.
        """
        host = self.name if user == "root" else f"{self.name}-admin"
        try:
            raw: subprocess.CompletedProcess[bytes] = subprocess.run(
                ["ssh", "-F", self.ssh_config, host, command],
                input=input or b"",
                capture_output=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise BoxError(f"{self.name}: {command!r} did not finish within {timeout:.0f} s") from None
        out, err = raw.stdout.decode(errors="replace"), raw.stderr.decode(errors="replace")
        if check and raw.returncode != 0:
            raise BoxError(f"{self.name}: {command!r}: exit {raw.returncode}: {err.strip() or out.strip()}")
        return subprocess.CompletedProcess(command, raw.returncode, out, err)

    def start(self) -> None:
        """Start the box if it is not up, and wait until it runs. Raises BoxError if it does not start."""
        with _locked():
            network.ensure()
            self._launch()
        self._await_running()  # without the lock

    def reboot(self) -> None:
        """Reboot cleanly from inside and wait until the box runs again."""
        self._end("reboot")
        self.start()

    def upgrade_kernel(self) -> None:
        """Reboot a full machine with the kernel that it has installed since it was made, and wait until it runs."""
        vm.take_kernel(self.ssh_config, self.name, self.directory / "disk")
        self.reboot()

    def crash(self) -> None:
        """Cut the power: kill PID 1, or the machine, and wait until all processes of the box have ended."""
        with _locked():
            if not self.is_vm:
                os.kill(self.leader, 9)
                self._group.wait_empty(30)
            self._stop()

    def keep(self, place: Path) -> None:
        """Shut the box down, save what it wrote as a snapshot at ``place``, and remove the box."""
        self._end("poweroff")
        with _locked():
            self._stop()
            new = place.with_name(f".{place.name}.new")
            new.mkdir(parents=True)
            for name in ("upper", "lib"):
                (self.directory / "disk" / name).rename(new / name)
            # Identity and journal are not part of the snapshot.
            for pattern in _IDENTITY:
                for path in (new / "upper").glob(pattern):
                    _remove_tree(path)
            (new / "lib/systemd/random-seed").unlink(missing_ok=True)
            tool("sync", "--file-system", new, timeout=300)
            new.rename(place)
            _remove(self)

    def _end(self, how: str) -> None:
        done = self.run(f"systemctl {how} --no-block", check=False)
        # 255 comes from ssh: the connection may end before the answer.
        if done.returncode not in (0, 255):
            raise BoxError(f"{self.name}: systemctl {how} failed: {done.stderr.strip()}")
        self._group.wait_empty(vm.STOP_SECONDS if self.is_vm else _STOP_SECONDS)

    def down(self) -> None:
        down([self.name])

    def journal(self) -> str:
        """Return the journal of all boots. Works for a stopped box too, unless it is a full machine."""
        if self.is_vm:
            return self.run("journalctl --no-pager --output=short-precise --quiet").stdout
        return tool(
            *("journalctl", "--no-pager", "--output=short-precise", "--quiet"),
            f"--directory={self.directory / 'disk/upper/var/log/journal'}",
        )

    def _launch(self) -> None:
        if self._group.alive():
            return
        self._stop()
        disk = self.directory / "disk"
        if self.is_vm:
            cable = (network.veth(self.index), network.BRIDGE, network.mac(self.index))
            self._group.start(vm.command(self.image, disk, *cable), self.directory / "console.log")
            return
        launch = Path(__file__).with_name("launch.sh")
        lowers = [*([self.snapshot / "upper"] if self.snapshot else []), self.image]
        # The disk is an overlay layer over exactly these directories; rebuilt ones would not match it.
        for lower in lowers:
            if not lower.is_dir():
                raise BoxError(
                    f"{self.name}: {lower} is missing; run ./box down {self.name}, then ./box up {self.name}"
                )
        # The overlay option lowerdir separates directories by colons.
        stack = ":".join(str(lower).replace(":", r"\:") for lower in lowers)
        argv = ["/bin/sh", str(launch), self.name, stack, str(disk)]
        argv += [network.BRIDGE, network.veth(self.index), network.mac(self.index), f"{self.address}/24"]
        self._group.start(argv, self.directory / "console.log")

    def _await_running(self) -> None:
        console = self.directory / "console.log"
        limit = vm.START_SECONDS if self.is_vm else _START_SECONDS
        try:
            network.await_port(self.address, 22, limit, self._group)
        except BoxError as error:
            last = (console.read_text(errors="replace").strip() or "no output").splitlines()[-1]
            raise BoxError(f"{self.name} does not start: {error}; last line of {console}: {last}") from None
        state = self.run("systemctl is-system-running --wait", check=False, timeout=limit)
        if state.stdout.strip() != "running":
            failed = self.run("systemctl list-units --failed --plain --no-legend", check=False).stdout
            tail = "\n".join([*failed.splitlines(), *self.journal().splitlines()[-20:]])
            raise BoxError(f"{self.name} is {state.stdout.strip() or state.stderr.strip()}; its journal:\n{tail}")

    def _stop(self) -> None:
        _close_connections(self.directory)
        self._group.remove()
        network.unplug(self.index)


def boxes() -> list[Box]:
    """Return the boxes of this checkout, up or stopped, sorted by name."""
    found = []
    for path in sorted(STATE.glob(f"[a-z]*/{_FACTS}")):
        try:
            facts = json.loads(path.read_text())
        except FileNotFoundError:  # being removed: listing takes no lock
            continue
        image_root, snapshot = Path(facts.pop("image")), facts.pop("snapshot", None)
        below = Path(snapshot) if snapshot else None
        found.append(Box(name=path.parent.name, image=image_root, snapshot=below, **facts))
    return found


def box(name: str) -> Box:
    """Return a box by name. Raises BoxError if it does not exist."""
    for one in boxes():
        if one.name == name:
            return one
    raise BoxError(f"there is no box {name}; create it with ./box up {name}, or see ./box list")


def up(
    names: list[str],
    debian: int = 13,
    packages: Sequence[str] = (),
    snapshot: Path | None = None,
    *,
    is_vm: bool = False,
) -> list[Box]:
    """Create or start these boxes in parallel and return them once systemd in each reports `running`.

    A new box gets `packages` and the files of `snapshot`, which must have been made over the same image.
    With `is_vm` the boxes are full machines.
    Raises BoxError for a bad name, for a box that exists with another Debian, and for one that does not start.
    """
    for name in names:
        if not NAME.fullmatch(name) or name.endswith("-admin"):
            raise BoxError(
                f"{name!r} is not a box name: use a lower-case letter, then up to 19 lower-case letters, digits or "
                "dashes, without -admin at the end"
            )
    requirements.ensure(requirements.FOR_MACHINES if is_vm else {})
    with _locked():
        allow_many()
        root = image.image(debian, [*packages, *(vm.PACKAGES if is_vm else ())])
        network.ensure()
        _make_key()
        selected = []
        for name in dict.fromkeys(names):
            existing = {one.name: one for one in boxes()}
            taken = {other.index for other in existing.values()}
            one = existing.get(name) or _create(Box(name, "", debian, 0, root, snapshot, is_vm), taken)
            if (one.debian, one.is_vm) != (debian, is_vm):
                kind = "full machine" if one.is_vm else "box"
                raise BoxError(
                    f"{name} already exists as a {kind} with Debian {one.debian}; run ./box down {name} first"
                )
            selected.append(one)
        for one in selected:
            one._launch()
    with ThreadPoolExecutor(len(selected) or 1) as pool:
        list(pool.map(Box._await_running, selected))
    return selected


def down(names: list[str] | None) -> None:
    """Remove these boxes, or all of this checkout. Raises BoxError for an unknown name before it removes any."""
    requirements.ensure()
    with _locked():
        for one in boxes() if names is None else [box(name) for name in names]:
            _remove(one)
        if not boxes():
            network.remove()


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    """Hold the lock on the boxes of this checkout, and first clean up after a killed call."""
    with locked(_LOCK):
        for leftover in (*STATE.glob(".*.new"), *STATE.glob(".*.gone")):
            _remove_tree(leftover)
        existing = boxes()
        for group in groups(_PREFIX):
            if group.name.removeprefix(_PREFIX) not in {one.name for one in existing}:
                group.remove()
        for one in existing:
            if one.state == "stopped":
                one._stop()
        if not existing:
            _close_connections(STATE)
            network.remove()
        yield


def _close_connections(directory: Path) -> None:
    """End the shared ssh connections whose sockets are in a directory: a dead network namespace sends no FIN.

    They are found by the title that ssh gives its process, because the socket may be missing.
    """
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if (process / "cmdline").read_bytes().startswith(b"ssh: " + os.fsencode(directory) + b"/"):
                handle = os.pidfd_open(int(process.name))
                signal.pidfd_send_signal(handle, signal.SIGTERM)
                select.select([handle], [], [], 5)
                os.close(handle)
    for socket in directory.glob("ssh-[ar]*"):
        socket.unlink(missing_ok=True)


def _make_key() -> None:
    if not _KEY.exists():
        new = STATE / ".key"
        for path in (new, new.with_suffix(".pub")):
            path.unlink(missing_ok=True)
        tool("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test boxes", "-f", new)
        new.with_suffix(".pub").rename(_KEY.with_suffix(".pub"))
        new.rename(_KEY)


def _create(wanted: Box, taken: set[int]) -> Box:
    """Create the box's directory under a temporary name and rename it once it is complete."""
    index = next(number for number in range(200) if number not in taken)
    one = replace(wanted, index=index, address=network.address(index))
    if one.directory.exists():
        raise BoxError(f"{one.directory} exists but is not a box: choose another name")
    if tool("stat", "--file-system", "--format=%T", STATE).strip() == "overlayfs":
        raise BoxError(
            f"{STATE} is on an overlay, which cannot hold the upper of another one: move the checkout to a disk"
        )
    new = STATE / f".{one.name}.new"
    disk, upper = new / "disk", new / "disk" / "upper"
    new.mkdir()
    disk.mkdir(mode=0o700)
    for directory in (upper, disk / "work", disk / "root"):
        directory.mkdir()
    _write_identity(upper, one.name)
    host_key = (upper / "etc/ssh/ssh_host_ed25519_key.pub").read_text().split()[:2]
    if one.is_vm:
        vm.write_network(upper, one.address, network.gateway(), network.mac(index))
        vm.make_disk(one.image, disk)
        _remove_tree(upper)
    else:
        # An overlay's upper cannot be on an overlay, so /var/lib is a real directory.
        data = one.snapshot / "lib" if one.snapshot else one.image / "var/lib"
        tool("cp", "--archive", "--reflink=auto", data, disk / "lib")
    write(new / "known_hosts", f"{one.name},{one.name}-admin,{one.address} {' '.join(host_key)}\n")
    write(new / "ssh_config", _ssh_config(one))
    facts: dict[str, object] = {"address": one.address, "debian": one.debian, "index": index, "image": str(one.image)}
    facts |= {"snapshot": str(one.snapshot)} if one.snapshot else {}
    facts |= {"is_vm": True} if one.is_vm else {}
    write(new / _FACTS, json.dumps(facts) + "\n")
    new.rename(one.directory)
    return one


def _write_identity(upper: Path, name: str) -> None:
    etc = upper / "etc"
    etc.mkdir()
    write(etc / "machine-id", secrets.token_hex(16) + "\n", 0o444)
    write(etc / "hostname", name + "\n")
    write(etc / "hosts", f"127.0.0.1 localhost\n127.0.1.1 {name}\n")
    apt = etc / "apt" / "apt.conf.d"
    apt.mkdir(parents=True)
    proxy = network.proxy_url()
    write(apt / "90proxy", f'Acquire::http::Proxy "{proxy}";\nAcquire::https::Proxy "{proxy}";\n')
    (etc / "ssh").mkdir()
    key = etc / "ssh" / "ssh_host_ed25519_key"
    tool("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", key)
    for home, uid in ((upper / "root", 0), (upper / "home" / "admin", image.ADMIN_UID)):
        ssh = home / ".ssh"
        ssh.mkdir(parents=True)
        shutil.copy(_KEY.with_suffix(".pub"), ssh / "authorized_keys")
        for path, mode in ((home, 0o700), (ssh, 0o700), (ssh / "authorized_keys", 0o600)):
            path.chmod(mode)
            os.chown(path, uid, uid)


def _ssh_config(one: Box) -> str:
    lines = [
        f"Host {one.name}",
        "    User root",
        f"Host {one.name}-admin",
        "    User admin",
        f"Host {one.name} {one.name}-admin",
        f"    HostName {one.address}",
        f'    IdentityFile "{one.ssh_key}"',
        "    IdentitiesOnly yes",
        "    IdentityAgent none",
        f'    UserKnownHostsFile "{one.known_hosts}"',
        "    GlobalKnownHostsFile /dev/null",
        "    StrictHostKeyChecking yes",
        "    BatchMode yes",
        "    LogLevel ERROR",
        "    ConnectTimeout 10",
        "    ServerAliveInterval 10",
    ]
    control = f"{one.directory}/ssh-%r"
    if len(control) + len("admin") <= _SOCKET_PATH_LIMIT:
        lines += ["    ControlMaster auto", f'    ControlPath "{control}"', "    ControlPersist 60"]
    return "\n".join(lines) + "\n"


def _remove(one: Box) -> None:
    one._stop()
    removed = STATE / f".{one.name}.gone"
    one.directory.rename(removed)
    _remove_tree(removed)


def _remove_tree(path: Path) -> None:
    # shutil.rmtree raises RecursionError on the deep trees of some tests.
    tool("rm", "--recursive", "--force", "--one-file-system", path, timeout=300)
