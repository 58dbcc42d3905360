"""The test boxes themselves, used as an operator uses them: ./box, from a checkout of its own.

A second checkout on purpose: what is tried here includes `./box down`, which must not touch anybody's boxes.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.xdist_group("boxes")


@dataclass(frozen=True)
class Checkout:
    """A checkout with nothing but what ./box needs."""

    path: Path

    def box(self, *arguments: str, check: bool = True, **kwargs: Any) -> subprocess.CompletedProcess[str]:
        """Run ./box there, with this machine's own python3: boxes need no package of ours."""
        environment = {**os.environ, "PATH": os.defpath}
        environment |= kwargs.pop("env", {})
        done = subprocess.run(
            [self.path / "box", *arguments],
            cwd="/",
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=kwargs.pop("timeout", 180),
            check=False,
            **kwargs,
        )
        assert not check or done.returncode == 0, f"./box {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done

    def listed(self) -> dict[str, dict[str, Any]]:
        """What `list --json` says, by name."""
        return {each["name"]: each for each in json.loads(self.box("list", "--json").stdout)}

    def ssh(self, host: str, command: str, check: bool = True, timeout: float = 90) -> str:
        """Run a command over an ssh that only knows the key, the host key and the address."""
        one = self.listed()[host.removesuffix("-admin")]
        done = subprocess.run(
            [
                *("ssh", "-F", "none", "-i", one["ssh_key"], "-o", f"UserKnownHostsFile={one['known_hosts']}"),
                *("-o", "StrictHostKeyChecking=yes", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes"),
                f"{'admin' if host.endswith('-admin') else one['ssh_user']}@{one['address']}",
                command,
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert not check or done.returncode == 0, f"{host}: {command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()


@dataclass
class Traces:
    """What a checkout's boxes are made of on this machine, as the kernel tells it."""

    processes: set[int] = field(default_factory=set)
    cgroups: set[Path] = field(default_factory=set)
    interfaces: set[str] = field(default_factory=set)
    namespaces: set[str] = field(default_factory=set)
    mounts: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return any((self.processes, self.cgroups, self.interfaces, self.namespaces, self.mounts))


def traces(checkout: Path) -> Traces:
    """Look through /proc, /sys and the cgroup trees for everything that belongs to a checkout."""
    found = Traces()
    mark = str(checkout)
    own = {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in ("net", "mnt")}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if process.name == str(os.getpid()) or (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z":
                continue
            mountinfo = (process / "mountinfo").read_text()
            namespace = os.readlink(process / "ns/net")
            if mark not in mountinfo and mark not in (process / "cmdline").read_text():
                continue
            found.processes.add(int(process.name))
            found.mounts |= {line for line in mountinfo.splitlines() if mark in line}
            found.namespaces |= {namespace} - {own["net"]}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if mark in line:
            found.mounts.add(line)
    digest = _digest(checkout)
    found.interfaces = {path.name for path in Path("/sys/class/net").iterdir() if digest in path.name}
    tree = os.walk("/sys/fs/cgroup")  # which goes on where one has just been removed, as Path.glob does not
    found.cgroups = {Path(base, name) for base, names, _ in tree for name in names if digest in name}
    return found


def _digest(checkout: Path) -> str:
    """The six digits that the checkout's things carry in their names, from the thing itself: its code says so."""
    done = subprocess.run(
        [sys.executable, "-c", "from tests.boxes.system import CHECKOUT_ID; print(CHECKOUT_ID)"],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@contextlib.contextmanager
def new_checkout() -> Iterator[Checkout]:
    """Make a checkout, and take it and its boxes away again."""
    # Not pytest's tmp_path: that may be a tmpfs or an overlay, and is kept for a while.
    path = Path(tempfile.mkdtemp(prefix="left4me-boxes-", dir="/var/tmp")).resolve()
    shutil.copy(ROOT / "box", path / "box")
    wanted = [*(ROOT / "tests/boxes").glob("*.py"), ROOT / "tests/boxes/launch.sh", ROOT / "tests/__init__.py"]
    for source in wanted:
        target = path / source.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    try:
        yield Checkout(path)
        Checkout(path).box("down")
        assert not (left := traces(path)), left
    finally:
        Checkout(path).box("down", check=False)
        shutil.rmtree(path)


@pytest.fixture(scope="module")
def checkout() -> Iterator[Checkout]:
    """One checkout for the module, with a box of each Debian."""
    with new_checkout() as made:
        made.box("up", "new", timeout=300)
        made.box("up", "old", "--debian", "12", timeout=300)
        yield made


@pytest.fixture
def empty() -> Iterator[Checkout]:
    """A checkout without a box."""
    with new_checkout() as made:
        yield made


BOTH = pytest.mark.parametrize(("name", "version"), [("new", "13"), ("old", "12")])


@BOTH
def test_a_box_is_debian_with_systemd_and_a_kernel_overlay(checkout: Checkout, name: str, version: str) -> None:
    assert checkout.ssh(name, ". /etc/os-release; echo $VERSION_ID; cat /proc/1/comm") == f"{version}\nsystemd"
    assert checkout.ssh(name, "systemctl is-system-running; systemd-detect-virt") == "running\nsystemd-nspawn"
    checkout.ssh(
        name,
        "mkdir -p /var/lib/try/a /var/lib/try/u /var/lib/try/w /var/lib/try/m && echo low >/var/lib/try/a/f"
        " && mount -t overlay try -o lowerdir=/var/lib/try/a,upperdir=/var/lib/try/u,workdir=/var/lib/try/w"
        " /var/lib/try/m && echo high >>/var/lib/try/m/f && umount /var/lib/try/m",
    )
    assert checkout.ssh(name, "cat /var/lib/try/u/f; rm -r /var/lib/try") == "low\nhigh"


@BOTH
def test_the_image_is_bare(checkout: Checkout, name: str, version: str) -> None:
    lacking = "curl wget gcc nsenter-i386 srcds_run pyinfra rsync git"
    assert checkout.ssh(name, f"command -v {lacking}", check=False) == ""
    assert checkout.ssh(name, "dpkg --print-foreign-architectures; ls -d /var/lib/left4me 2>/dev/null || true") == ""
    for program in ("sshd", "sudo", "python3", "mount"):
        assert checkout.ssh(name, f"PATH=$PATH:/usr/sbin command -v {program}")
    assert int(checkout.ssh(name, "dpkg-query -W | wc -l")) < 170


def test_the_data_directory_is_a_real_file_system_with_room(checkout: Checkout) -> None:
    kind, room = checkout.ssh("new", "stat -f -c '%T %a %S' /var/lib").split(" ", 1)
    blocks, size = map(int, room.split())
    assert kind != "overlayfs"
    assert blocks * size > 500_000_000


def test_two_ways_in_and_no_others(checkout: Checkout) -> None:
    assert checkout.ssh("new", "id -un") == "root"
    assert checkout.ssh("new-admin", "id -un; sudo -n id -un") == "admin\nroot"
    one = checkout.listed()["new"]
    refused = subprocess.run(
        [
            *("ssh", "-v", "-F", "none", "-o", "BatchMode=yes", "-o", "IdentityFile=none", "-o", "IdentityAgent=none"),
            *("-o", f"UserKnownHostsFile={one['known_hosts']}", f"admin@{one['address']}", "true"),
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert refused.returncode == 255
    assert "Permission denied" in refused.stderr


def test_boxes_have_keys_of_their_own(checkout: Checkout) -> None:
    new, old = (Path(checkout.listed()[name]["known_hosts"]).read_text() for name in ("new", "old"))
    assert new.split()[-1] != old.split()[-1]
    mine = json.loads(subprocess.run([ROOT / "box", "list", "--json"], capture_output=True, check=True).stdout)
    assert checkout.listed()["new"]["ssh_key"] not in [each["ssh_key"] for each in mine]
    assert Path(checkout.listed()["new"]["ssh_key"]).stat().st_mode & 0o777 == 0o600
    assert checkout.ssh("new", "cat /etc/machine-id") != checkout.ssh("old", "cat /etc/machine-id")


def test_the_ssh_directory_of_the_user_is_not_read_or_written(empty: Checkout) -> None:
    # In a mount namespace with another home, whose files tell when they are read. It is strict about atime,
    # and OpenSSH looks for the home in passwd, not in HOME.
    home = Path("~root").expanduser()
    files = ["config", "known_hosts", "id_ed25519", "id_rsa", "authorized_keys"]
    script = f"""
        set -e; mount -t tmpfs -o strictatime tmpfs {home}; mkdir {home}/.ssh; cd {home}/.ssh
        for name in {" ".join(files)}; do echo poison >$name; chmod 600 $name; done; touch -d @1 *
        cd /; {empty.path}/box up a; {empty.path}/box ssh a true; {empty.path}/box ssh a-admin true
        {empty.path}/box reboot a; cd {home}/.ssh; ls -A | wc -l; stat -c "%n %X %Y" *
        cat *; stat -c "%n %X" * | grep -vc " 1$"
    """
    done = subprocess.run(
        ["unshare", "--mount", "--propagation=private", "sh", "-c", script],
        env={"PATH": os.defpath + ":/usr/sbin"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected = ["a is up", str(len(files)), *(f"{name} 1 1" for name in sorted(files))]
    lines = done.stdout.splitlines()
    assert [lines[0][:7], *lines[1 : len(files) + 2]] == expected
    # The last line is the counter-proof: after a cat, each of them was seen as read.
    assert lines[-1] == str(len(files))


def test_list_tells_programs_everything(checkout: Checkout) -> None:
    for name, debian in (("new", 13), ("old", 12)):
        one = checkout.listed()[name]
        assert {"name", "address", "ssh_user", "ssh_key", "debian", "state"} <= one.keys()
        assert (one["name"], one["ssh_user"], one["debian"], one["state"]) == (name, "root", debian, "up")
        # The address is the box's own, in its own network namespace.
        assert one["address"] in checkout.ssh(name, "hostname -I || ip -4 -o address")
        assert checkout.ssh(name, "readlink /proc/self/ns/net") != os.readlink("/proc/self/ns/net")


def test_list_needs_no_root_and_is_quick(checkout: Checkout) -> None:
    checkout.path.chmod(0o755)
    as_nobody: list[str] = ["setpriv", "--reuid=nobody", "--clear-groups", "/usr/bin/python3", "-I", "-c"]
    program = (
        f"import sys, time; sys.path.insert(0, {str(checkout.path)!r}); sys.dont_write_bytecode = True\n"
        "from tests.boxes.boxes import boxes\n"
        "boxes(); begun = time.process_time(); print([(b.name, b.state) for b in boxes()], file=sys.stderr)\n"
        "print(time.process_time() - begun)"
    )
    done = subprocess.run([*as_nobody, program], capture_output=True, text=True, check=True, cwd="/")
    assert done.stderr.strip() == "[('new', 'up'), ('old', 'up')]"
    assert float(done.stdout) < 0.02


def test_up_twice_is_one_box(checkout: Checkout) -> None:
    which = "cat /proc/sys/kernel/random/boot_id; systemctl show -P UserspaceTimestampMonotonic; cat /etc/machine-id"
    before = checkout.ssh("new", which)
    checkout.box("up", "new", "new")
    assert list(checkout.listed()) == ["new", "old"]
    assert checkout.ssh("new", which) == before


def test_the_mirror_is_reached_through_the_proxy_and_nothing_else_is(checkout: Checkout) -> None:
    assert "default" not in checkout.ssh("new", "ip route show; ip -6 route show")
    checkout.ssh("new", "apt-get update && apt-get install --yes --no-install-recommends hello && hello")
    proxy = checkout.ssh("new", "apt-config dump --format '%v' Acquire::http::Proxy")
    program = (
        "import sys, urllib.request as u; "
        "u.install_opener(u.build_opener(u.ProxyHandler({'http': sys.argv[1]}))); u.urlopen(sys.argv[2], timeout=20)"
    )
    # Neither another host nor this machine itself; 403 is the proxy's own refusal.
    for foreign in ("http://example.org/", "http://127.0.0.1/", "http://deb.debian.org.example.org/"):
        assert "403" in checkout.ssh("new", f'python3 -c "{program}" {proxy} {foreign} 2>&1', check=False), foreign


def test_a_box_can_lose_its_mirror(checkout: Checkout) -> None:
    checkout.ssh("old", "sed -i.was s/:3128/:9/ /etc/apt/apt.conf.d/90proxy")
    said = checkout.ssh("old", "apt-get -o Acquire::Retries=0 install --yes hello 2>&1; apt-get update 2>&1; true")
    checkout.ssh("old", "mv /etc/apt/apt.conf.d/90proxy.was /etc/apt/apt.conf.d/90proxy")
    assert re.search(r"Could not connect to 198\.1[89]\.\d+\.1:9", said)


_UNIT = """[Service]
Type=notify
ExecStart=/usr/bin/python3 -c 'import os, signal, socket; signal.signal(signal.SIGINT, signal.SIG_HOW); \\
    socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"READY=1", os.environ["NOTIFY_SOCKET"]); signal.pause()'
KillSignal=SIGINT
TimeoutStopSec=3s
"""


def test_the_same_unit_in_two_boxes_does_not_meet_itself(checkout: Checkout) -> None:
    for name, how in (("new", "SIG_IGN"), ("old", "SIG_DFL")):
        unit = base64.b64encode(_UNIT.replace("SIG_HOW", how).encode()).decode()
        checkout.ssh(name, f"echo {unit} | base64 -d >/run/systemd/system/same.service; systemctl daemon-reload")

    def stop(name: str) -> tuple[float, str]:
        begun = time.monotonic()
        checkout.ssh(name, "systemctl stop same.service")
        return time.monotonic() - begun, checkout.ssh(name, "systemctl show -P Result same.service")

    for _ in range(2):
        for name in ("new", "old"):
            checkout.ssh(name, "systemctl start same.service")
        with ThreadPoolExecutor() as pool:
            (slow, timeout), (quick, done) = pool.map(stop, ("new", "old"))
        assert (timeout, done) == ("timeout", "success")
        assert 2.9 < slow < 15
        assert quick < 2.9
    checkout.ssh("new", "systemctl reset-failed")


@BOTH
def test_reboot(checkout: Checkout, name: str, version: str) -> None:
    before = checkout.listed()[name]
    started = checkout.ssh(name, "touch /root/kept; systemctl show -P UserspaceTimestampMonotonic")
    boots = int(checkout.ssh(name, "journalctl --list-boots --quiet | wc -l"))
    checkout.box("reboot", name)
    assert checkout.listed()[name] == before
    assert (
        checkout.ssh(name, "ls /root/kept; systemctl show -P UserspaceTimestampMonotonic") != f"/root/kept\n{started}"
    )
    assert int(checkout.ssh(name, "journalctl --list-boots --quiet | wc -l")) == boots + 1
    assert "Reached target" in checkout.ssh(name, "journalctl -b -1 | grep -i 'target.*\\(reboot\\|shutdown\\)'")


@BOTH
def test_a_power_cut_is_sudden_and_complete(checkout: Checkout, name: str, version: str) -> None:
    checkout.ssh(
        name, "rm -f /root/farewell; systemd-run --unit=last --property=ExecStop='touch /root/farewell' sleep 999"
    )
    checkout.ssh(name, "logger before-the-cut; journalctl --sync")
    pids = {pid for pid in traces(checkout.path).processes if _hostname_of(pid) == name}
    assert len(pids) > 5
    checkout.box("crash", name)
    assert not {pid for pid in pids if Path(f"/proc/{pid}").exists() and _hostname_of(pid) == name}
    assert checkout.listed()[name]["state"] == "stopped"
    said = checkout.box("crash", name, check=False)
    assert (said.returncode, said.stderr.count("\n")) == (1, 1)
    # The journal can be read while the box is dead: that is when one wants to.
    assert "before-the-cut" in _api(checkout, f"print(box({name!r}).journal())")
    checkout.box("start", name)
    assert checkout.ssh(name, "systemctl is-system-running; ls /root/farewell 2>&1", check=False).startswith(
        "running\nls:"
    )
    assert "before-the-cut" in checkout.ssh(name, "journalctl -b -1")


def _hostname_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        enter = ["nsenter", f"--uts=/proc/{pid}/ns/uts", "hostname"]
        done = subprocess.run(enter, capture_output=True, text=True, check=False)
        return done.stdout.strip()
    return ""


def _api(checkout: Checkout, program: str) -> str:
    done = subprocess.run(
        ["/usr/bin/python3", "-c", f"from tests.boxes.boxes import *; from tests.boxes.boxes import box\n{program}"],
        cwd=checkout.path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_python_side(checkout: Checkout) -> None:
    program = """
one = box("new")
assert one.run("cat", input=b"given").stdout == "given"
assert one.run("exit 3", check=False).returncode == 3
assert one.run("id -un", user="admin").stdout == "admin\\n"
assert open(f"/proc/{one.leader}/comm").read() == "systemd\\n"
for wrong, seconds in (("echo why >&2; exit 4", 60), ("sleep 9", 0.5)):
    try:
        one.run(wrong, timeout=seconds)
    except BoxError as error:
        print(error)
one.crash(); one.start(); one.reboot()
assert one.run("systemctl is-system-running").stdout == "running\\n"
"""
    said = _api(checkout, program)
    assert "exit 4: why" in said
    assert "did not finish within" in said


def test_twelve_boxes_are_up_in_seconds_and_small(empty: Checkout) -> None:
    names = [f"b{number}" for number in range(12)]
    begun = time.monotonic()
    empty.box("up", *names)
    taken, cost = time.monotonic() - begun, sum(map(_memory, traces(empty.path).processes))
    print(f"twelve boxes: {taken:.1f} s, {cost / 1e6:.0f} MB")
    assert taken < 60
    assert cost < 500_000_000
    assert len({each["address"] for each in empty.listed().values()}) == 12
    with ThreadPoolExecutor() as pool:
        assert list(pool.map(lambda name: empty.ssh(name, "hostname"), names)) == names
    empty.box("down", "b3", "b4")
    assert [name for name in names if name not in empty.listed()] == ["b3", "b4"]
    empty.box("up", "b3")
    assert empty.ssh("b3", "hostname") == "b3"


def _memory(pid: int) -> int:
    """The bytes that a process uses, with its share of what it shares; 0 where it has ended."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    found = re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)
    assert found
    return int(found[1]) * 1024


def test_nothing_is_left(empty: Checkout) -> None:
    empty.box("up")
    while_up = traces(empty.path)
    # That the search finds something while there is something is what makes its silence worth anything.
    assert all((while_up.processes, while_up.cgroups, while_up.interfaces, while_up.namespaces, while_up.mounts))
    assert list(empty.listed()) == ["box1"]
    empty.box("down")
    assert not (left := traces(empty.path)), left
    assert empty.listed() == {}
    assert empty.box("down").returncode == 0


@pytest.mark.parametrize("milliseconds", [60, 150, 300, 600, 1000])
def test_a_killed_command_is_cleaned_by_the_next(empty: Checkout, milliseconds: int) -> None:
    empty.box("up", "a")
    for command in (["up", "b", "c"], ["crash", "a"], ["start", "a"], ["down"], ["up", "a"]):
        _kill_after(empty, command, milliseconds / 1000)
    empty.box("up", "a", "b", "d")
    states = {name: each["state"] for name, each in empty.listed().items() if name in "abd"}
    assert states == {"a": "up", "b": "up", "d": "up"}
    for name in states:
        assert empty.ssh(name, "hostname; systemctl is-system-running") == f"{name}\nrunning"
    _kill_after(empty, ["down"], milliseconds / 1000)
    empty.box("down")
    assert not (left := traces(empty.path)), left


def _kill_after(checkout: Checkout, command: list[str], seconds: float) -> None:
    process = subprocess.Popen(
        [checkout.path / "box", *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_box_that_died_by_itself_and_a_lost_state_directory(empty: Checkout) -> None:
    empty.box("up", "a", "b")
    empty.ssh("a", "systemctl poweroff --no-block")
    _await(lambda: empty.listed()["a"]["state"] == "stopped", 30)
    empty.box("up", "a")
    assert empty.ssh("a", "hostname") == "a"
    shutil.rmtree(empty.path / ".boxes")
    empty.box("down")
    assert not (left := traces(empty.path)), left


def _await(condition: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


def test_two_calls_at_once(empty: Checkout) -> None:
    with ThreadPoolExecutor() as pool:
        assert [each.returncode for each in pool.map(lambda name: empty.box("up", name), "abaca")] == [0] * 5
    assert {name: each["state"] for name, each in empty.listed().items()} == dict.fromkeys("abc", "up")


def test_a_box_outlives_its_caller_and_keeps_nothing_of_it(empty: Checkout) -> None:
    # A pipe ends when its last writer does, and a session's death takes its own processes along.
    piped = f"setsid sh -c '{empty.path}/box up a 2>&1; {empty.path}/box ssh a true' | cat"
    done = subprocess.run(["sh", "-c", piped], capture_output=True, text=True, timeout=60, check=True)
    assert "a is up" in done.stdout
    assert empty.ssh("a", "hostname") == "a"


def test_on_a_bare_machine_where_systemd_is_pid_1(empty: Checkout) -> None:
    """The first ./box of a fresh machine: it installs, builds an image, and systemd keeps the cgroups."""
    empty.box("up", "bare", "--debian", "12")
    files = ["box", "tests/__init__.py", "tests/boxes"]
    packed = subprocess.run(["tar", "-C", empty.path, "-c", *files], capture_output=True, check=True).stdout
    unpack = "mkdir /var/lib/checkout /root/checkout; tee >(tar -C /root/checkout -x) | tar -C /var/lib/checkout -x"
    command = [str(empty.path / "box"), "ssh", "bare", f"bash -c '{unpack}'"]
    subprocess.run(command, input=packed, capture_output=True, check=True, timeout=60)
    box = "cd /var/lib/checkout; ./box"
    said = empty.ssh("bare", f"{box} up in 2>&1", timeout=600)
    assert "installing packages for boxes: " in said
    assert "image of Debian 13: building" in said
    assert empty.ssh("bare", f"{box} ssh in 'systemctl is-system-running; hostname'") == "running\nin"
    assert empty.ssh("bare", f"{box} ssh in 'apt-get update >/dev/null; apt-cache policy hello | grep -c http'") != "0"
    again = f"{box} reboot in; ./box crash in; ./box start in; ./box ssh in hostname"
    assert empty.ssh("bare", again, timeout=300) == "in"
    units = "systemctl list-units --plain --no-legend 'left4me-*' | wc -l; ip -o link | wc -l"
    assert empty.ssh("bare", units) == "2\n4"
    # Its root is an overlay: no place for a box's disk, and said so.
    assert "is on an overlay" in empty.ssh("bare", "cd /root/checkout; ./box up 2>&1", check=False)
    empty.ssh("bare", f"{box} down; cd /root/checkout; ./box down", timeout=300)
    assert empty.ssh("bare", f"{units}; systemctl is-system-running") == "0\n2\nrunning"


def test_mistakes_are_one_line(checkout: Checkout) -> None:
    for arguments, code, word in (
        (["ssh", "nobody"], 1, "no box nobody"),
        (["start", "nobody"], 1, "no box nobody"),
        (["down", "nobody"], 1, "no box nobody"),
        (["up", "../x"], 1, "'../x'"),
        (["up", "old", "--debian", "13"], 1, "Debian 12"),
        (["up", "--debian", "11"], 2, "11"),
        ([], 2, "COMMAND"),
    ):
        done = checkout.box(*arguments, check=False)
        assert (done.returncode, done.stdout) == (code, ""), arguments
        assert word in done.stderr, arguments
        assert code == 2 or done.stderr.count("\n") == 1, done.stderr
    assert list(checkout.listed()) == ["new", "old"]


def test_without_root_one_line_says_so(checkout: Checkout) -> None:
    checkout.path.chmod(0o755)
    done = checkout.box("up", check=False, user="nobody")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "root" in done.stderr
    assert "work without" in done.stderr


def test_help_teaches(checkout: Checkout) -> None:
    said = checkout.box("--help").stdout
    for command in ("up", "list", "ssh", "reboot", "crash", "start", "down"):
        assert f"./box {command}" in said


def test_an_interrupted_image_build_leaves_no_image(empty: Checkout, tmp_path: Path) -> None:
    cache = Path(tempfile.mkdtemp(prefix="left4me-images-", dir="/var/tmp"))
    source = empty.path / "tests/boxes/image.py"
    source.write_text(source.read_text().replace('Path("/var/cache/left4me/boxes")', f"Path({str(cache)!r})"))
    assert str(cache) in source.read_text()
    try:
        building = subprocess.Popen(
            [empty.path / "box", "up"], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        assert building.stderr
        for line in building.stderr:
            if "extracting" in line:
                building.kill()
                break
        building.wait()
        building.stderr.close()
        assert not list(cache.glob("1*"))
        _await(lambda: not _mentioning(cache), 60)
        # Two at once: one builds, the other waits for it and uses what it built.
        with ThreadPoolExecutor() as pool:
            first, second = pool.map(lambda name: empty.box("up", name, timeout=300), "ab")
        assert (first.stderr + second.stderr).count("extracting") == 1
        assert [path.name[:3] for path in cache.glob("1*")] == ["13-"]
        empty.box("down")
    finally:
        empty.box("down", check=False)
        shutil.rmtree(cache)


def _mentioning(path: Path) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(path) in (process / "cmdline").read_text() + (process / "mountinfo").read_text():
                found.append(process.name)
    return found
