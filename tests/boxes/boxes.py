"""Test boxes as Python sees them: ``up``, ``down``, ``boxes`` and what one box can be asked to do.

What is up is read from the kernel (the box's cgroup), never from a file of ours, so that a killed call
leaves nothing that a later one believes. A box's directory is complete from the moment it has its name.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.boxes import image, network, requirements
from tests.boxes.cgroup import Group, groups
from tests.boxes.system import CHECKOUT_ID, STATE, BoxError, allow_many, locked, tool, write

__all__ = ["Box", "BoxError", "boxes", "down", "up"]

# A hostname, and a part of names that have limits of their own.
NAME = re.compile(r"[a-z][a-z0-9-]{0,19}")
_PREFIX = f"left4me-box-{CHECKOUT_ID}-"
_KEY = STATE / "key"
_LOCK = STATE / ".lock"
_FACTS = "box.json"
_IDENTITY = (
    *("etc/machine-id", "etc/hostname", "etc/hosts", "etc/ssh/ssh_host_*", "etc/apt/apt.conf.d/90proxy"),
    *("root/.ssh", "home/admin/.ssh", "var/log/journal/*", "var/tmp/*"),
)
# A starting box takes about one second alone, four in a dozen; a loaded CI machine several times that.
_START_SECONDS = 90
_STOP_SECONDS = 120  # systemd's own limit for one unit, and some for the rest
_SOCKET_PATH_LIMIT = 107 - len(".0123456789abcdef")  # sun_path, less what ssh appends while it makes one


@dataclass(frozen=True)
class Box:
    """One test box of this checkout."""

    name: str
    address: str
    debian: int
    index: int
    image: Path
    snapshot: Path | None = None
    """What another box had written when it was stopped, as one more layer between the image and this box's own."""

    @property
    def directory(self) -> Path:
        """Everything the box has on disk."""
        return STATE / self.name

    @property
    def ssh_key(self) -> Path:
        """The private key that opens root and admin on every box of this checkout."""
        return _KEY

    @property
    def known_hosts(self) -> Path:
        """The box's host key, known before the first connection."""
        return self.directory / "known_hosts"

    @property
    def ssh_config(self) -> Path:
        """An ssh_config(5) with the hosts NAME (root) and NAME-admin."""
        return self.directory / "ssh_config"

    @property
    def state(self) -> Literal["up", "stopped"]:
        """Whether a process of the box is alive."""
        return "up" if self._group.alive() else "stopped"

    @property
    def leader(self) -> int:
        """The PID, seen from outside, of the box's PID 1. Raises BoxError if it has none."""
        # nspawn puts what it runs below `payload`, and systemd itself into `init.scope`.
        listing = self._group.path / "payload/init.scope/cgroup.procs"
        if self._group.alive() and listing.exists():
            for pid in listing.read_text().split():
                status = Path("/proc", pid, "status").read_text()
                if re.search(r"^NSpid:\s+\d+\s+1$", status, re.MULTILINE):
                    return int(pid)
        raise BoxError(f"{self.name} has no PID 1, it is not up; ./box start {self.name}")

    @property
    def _group(self) -> Group:
        return Group(_PREFIX + self.name)

    def run(
        self,
        command: str,
        *,
        user: Literal["root", "admin"] = "root",
        check: bool = True,
        input: bytes | None = None,  # noqa: A002 - subprocess.run's own name for it
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
            raise BoxError(f"{self.name}: {command!r} did not end within {timeout:.0f} s") from None
        out, err = raw.stdout.decode(errors="replace"), raw.stderr.decode(errors="replace")
        if check and raw.returncode != 0:
            raise BoxError(f"{self.name}: {command!r}: exit {raw.returncode}: {err.strip() or out.strip()}")
        return subprocess.CompletedProcess(command, raw.returncode, out, err)

    def start(self) -> None:
        """Start the box if it is not up, and wait until it runs. Raises BoxError if it does not."""
        with _locked():
            network.ensure()
            self._launch()
        self._await_running()  # other calls go on meanwhile

    def reboot(self) -> None:
        """Reboot it from inside, in good order, and wait until it runs again at the same address."""
        self._end("reboot")
        self.start()

    def crash(self) -> None:
        """A power cut: kill the box's PID 1 and wait until nothing of the box is alive."""
        with _locked():
            os.kill(self.leader, 9)
            self._group.wait_empty(30)
            self._stop()

    def keep(self, place: Path) -> None:
        """Stop it in good order and keep what it wrote as a snapshot at ``place``; the box is gone then."""
        self._end("poweroff")
        with _locked():
            self._stop()
            new = place.with_name(f".{place.name}.new")
            new.mkdir(parents=True)
            for name in ("upper", "lib"):
                (self.directory / "disk" / name).rename(new / name)
            # Its identity stays its own, as does its journal.
            for pattern in _IDENTITY:
                for path in (new / "upper").glob(pattern):
                    _remove_tree(path)
            (new / "lib/systemd/random-seed").unlink(missing_ok=True)
            tool("sync", "--file-system", new, timeout=300)
            new.rename(place)
            _remove(self)

    def _end(self, how: str) -> None:
        asked = self.run(f"systemctl {how} --no-block", check=False)
        # 255 is ssh's own: the connection may end before the answer.
        if asked.returncode not in (0, 255):
            raise BoxError(f"{self.name} does not {how}: {asked.stderr.strip()}")
        self._group.wait_empty(_STOP_SECONDS)

    def down(self) -> None:
        """Remove the box with everything it is made of."""
        down([self.name])

    def journal(self) -> str:
        """All that the box's journal holds, over all its boots, also when it is stopped."""
        return tool(
            *("journalctl", "--no-pager", "--output=short-precise", "--quiet"),
            f"--directory={self.directory / 'disk/upper/var/log/journal'}",
        )

    def _launch(self) -> None:
        if self._group.alive():
            return
        self._stop()
        disk = self.directory / "disk"
        launch = Path(__file__).with_name("launch.sh")
        lowers = [*([self.snapshot / "upper"] if self.snapshot else []), self.image]
        # A disk is a layer over these: others, made since, would not fit under it.
        for lower in lowers:
            if not lower.is_dir():
                raise BoxError(f"{self.name}: {lower} is gone; ./box down {self.name}, then up again")
        # In the options of an overlay a colon stands between two of them.
        stack = ":".join(str(lower).replace(":", r"\:") for lower in lowers)
        argv = ["/bin/sh", str(launch), self.name, stack, str(disk)]
        argv += [network.BRIDGE, network.veth(self.index), network.mac(self.index), f"{self.address}/24"]
        self._group.start(argv, self.directory / "console.log")

    def _await_running(self) -> None:
        console = self.directory / "console.log"
        try:
            network.await_port(self.address, 22, _START_SECONDS, self._group)
        except BoxError as error:
            last = (console.read_text(errors="replace").strip() or "it said nothing").splitlines()[-1]
            raise BoxError(f"{self.name} does not start: {error}; the end of {console}: {last}") from None
        said = self.run("systemctl is-system-running --wait", check=False, timeout=_START_SECONDS)
        if said.stdout.strip() != "running":
            tail = "\n".join(self.journal().splitlines()[-20:])
            raise BoxError(f"{self.name} is {said.stdout.strip() or said.stderr.strip()}; its journal:\n{tail}")

    def _stop(self) -> None:
        _hang_up(self.directory)
        self._group.remove()
        network.unplug(self.index)


def boxes() -> list[Box]:
    """The boxes of this checkout, up or stopped, by name."""
    found = []
    for path in sorted(STATE.glob(f"[a-z]*/{_FACTS}")):
        try:
            facts = json.loads(path.read_text())
        except FileNotFoundError:  # it is removed at this moment: looking takes no lock
            continue
        image_root, snapshot = Path(facts.pop("image")), facts.pop("snapshot", None)
        kept = Path(snapshot) if snapshot else None
        found.append(Box(name=path.parent.name, image=image_root, snapshot=kept, **facts))
    return found


def box(name: str) -> Box:
    """The box of that name. Raises BoxError if there is none."""
    for one in boxes():
        if one.name == name:
            return one
    raise BoxError(f"there is no box {name}; ./box up {name} makes it, ./box list shows what there is")


def up(names: list[str], debian: int = 13, packages: Sequence[str] = (), snapshot: Path | None = None) -> list[Box]:
    """Have these boxes up, side by side, and return them when each says `running`.

    A box that exists is started if it is stopped, and else left alone; a new one has `packages` from the beginning, and
    what a `snapshot` holds, which was made over the same image.
    Raises BoxError for a bad name, for a box that exists with another Debian, and for one that does not start.
    """
    for name in names:
        if not NAME.fullmatch(name) or name.endswith("-admin"):
            raise BoxError(
                f"{name!r} is no name for a box: a small letter, then up to 19 small letters, digits or dashes, "
                "and not -admin at the end"
            )
    requirements.ensure()
    with _locked():
        allow_many()
        root = image.image(debian, packages)
        network.ensure()
        _make_key()
        wanted = []
        for name in dict.fromkeys(names):
            there = {one.name: one for one in boxes()}
            taken = {other.index for other in there.values()}
            one = there.get(name) or _create(name, debian, root, taken, snapshot)
            if one.debian != debian:
                raise BoxError(f"{name} is there with Debian {one.debian}; ./box down {name} first")
            wanted.append(one)
        for one in wanted:
            one._launch()
    with ThreadPoolExecutor(len(wanted) or 1) as pool:
        list(pool.map(Box._await_running, wanted))
    return wanted


def down(names: list[str] | None) -> None:
    """Remove these boxes, or all of this checkout. Raises BoxError for a name that is no box, before any is removed."""
    requirements.ensure()
    with _locked():
        for one in boxes() if names is None else [box(name) for name in names]:
            _remove(one)
        if not boxes():
            network.remove()


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    """Let one call at a time change the boxes of this checkout, and first clean up after one that was killed."""
    with locked(_LOCK):
        for leftover in (*STATE.glob(".*.new"), *STATE.glob(".*.gone")):
            _remove_tree(leftover)
        there = boxes()
        for group in groups(_PREFIX):
            if group.name.removeprefix(_PREFIX) not in {one.name for one in there}:
                group.remove()
        for one in there:
            if one.state == "stopped":
                one._stop()
        if not there:
            _hang_up(STATE)
            network.remove()
        yield


def _hang_up(directory: Path) -> None:
    """End the shared ssh connections whose sockets are below it: no FIN comes from a network namespace that is gone.

    They are found by the title that ssh gives them, as the socket itself may be lost.
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


def _create(name: str, debian: int, root: Path, taken: set[int], snapshot: Path | None) -> Box:
    """Make the box's directory beside its place and give it its name when it is whole."""
    index = next(number for number in range(200) if number not in taken)
    one = Box(name, network.address(index), debian, index, root, snapshot)
    if one.directory.exists():
        raise BoxError(f"{one.directory} is there and is no box: take another name")
    if tool("stat", "--file-system", "--format=%T", STATE).strip() == "overlayfs":
        raise BoxError(f"{STATE} is on an overlay, which cannot be under another one: put the checkout on a disk")
    new = STATE / f".{name}.new"
    disk, upper = new / "disk", new / "disk" / "upper"
    new.mkdir()
    disk.mkdir(mode=0o700)
    for directory in (upper, disk / "work", disk / "root"):
        directory.mkdir()
    # An overlay's upper cannot lie on an overlay: where the deploy puts its data has to be a real directory.
    data = snapshot / "lib" if snapshot else one.image / "var/lib"
    tool("cp", "--archive", "--reflink=auto", data, disk / "lib")
    _write_identity(upper, name)
    host_key = (upper / "etc/ssh/ssh_host_ed25519_key.pub").read_text().split()[:2]
    write(new / "known_hosts", f"{name},{name}-admin,{one.address} {' '.join(host_key)}\n")
    write(new / "ssh_config", _ssh_config(one))
    facts: dict[str, object] = {"address": one.address, "debian": debian, "index": index, "image": str(one.image)}
    facts |= {"snapshot": str(snapshot)} if snapshot else {}
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
    gone = STATE / f".{one.name}.gone"
    one.directory.rename(gone)
    _remove_tree(gone)


def _remove_tree(path: Path) -> None:
    # Not shutil.rmtree, which ends in a RecursionError on a tree that a test made hostile.
    tool("rm", "--recursive", "--force", "--one-file-system", path, timeout=300)
