"""No kind of holder hides: each is made on purpose, named while it is there, and in nobody's way once it is gone."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest

from tests.boxes.boxes import Box
from tests.integration.ctl import without_job
from tests.integration.harness import having, overlays, properties, wait_for, wait_for_server

UNIT = "left4me-server@3"
MERGED = "/var/lib/left4me/runtime/3/merged"
FILE = f"{MERGED}/left4dead2/pak01_dir.vpk"
# TimeoutStopSec= is 15 s, once for the game and once for the unmount; nothing here needs either.
SECONDS = 10


class Kind(NamedTuple):
    """A program that holds the overlay and then writes `ready`, and by what it holds."""

    name: str
    by: str
    python: str
    before: str = ""
    """What starts it, such as nsenter."""
    unmounted: bool = False
    """Whether the host's own mount goes all the same, since what is held is a copy that no unmount reaches."""


IN_UNIT = f"nsenter --mount=/proc/$(systemctl show {UNIT} -p MainPID --value)/ns/mnt --"
PRIVATE = "unshare --mount --propagation private"
HOME = "assert ctypes.CDLL(None).setns(os.open('/proc/1/ns/mnt', os.O_RDONLY), 0) == 0"
# It has its namespace open, and goes home.
LEAVES = f"os.dup2(os.open('/proc/self/ns/mnt', os.O_RDONLY), 9); {HOME}"
# It takes a file of the unit's own copy home, which no namespace has any more once the unit is stopped.
TAKES = f"os.dup2(os.open({FILE!r}, os.O_RDONLY), 9); {HOME}"
# The same file is in nobody's hands: a socket holds it, which nobody reads.
SENDS = (
    f"import socket; ends = socket.socketpair(); file = os.open({FILE!r}, os.O_RDONLY);"
    f" socket.send_fds(ends[0], [b'x'], [file]); os.close(file); {HOME}"
)
KINDS = [
    Kind("cwd", "cwd", f"os.chdir({MERGED!r})"),
    Kind("root", "root", f"os.chroot({MERGED!r})"),
    Kind("fd", "fd 9", f"os.dup2(os.open({FILE!r}, os.O_RDONLY), 9)"),
    Kind("directory", "fd 9", f"os.dup2(os.open({MERGED!r}, os.O_PATH), 9)"),
    Kind("map", "map", f"f = open({FILE!r}, 'rb'); m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ); f.close()"),
    Kind("user", "cwd", f"os.chdir({MERGED!r}); os.setuid(65534)"),
    Kind("copy", "mount namespace", "pass", PRIVATE, unmounted=True),
    Kind("copy-unseen", "mount namespace", "os.chroot('/srv')", PRIVATE, unmounted=True),
    Kind("copy-cwd", "cwd", f"os.chdir({MERGED!r})", PRIVATE, unmounted=True),
    Kind("unit", "cwd", f"os.chdir({MERGED!r})", IN_UNIT, unmounted=True),
    Kind("unit-fd", "fd 9", f"os.dup2(os.open({FILE!r}, os.O_RDONLY), 9)", IN_UNIT, unmounted=True),
    Kind("unit-fd-taken", "fd 9", TAKES, IN_UNIT, unmounted=True),
    Kind("unit-lives", "mount namespace", "pass", IN_UNIT, unmounted=True),
    Kind("moved", "mount namespace", f"os.system('mount --move {MERGED} /mnt')", PRIVATE, unmounted=True),
    Kind("namespace-fd", "fd 9", LEAVES, PRIVATE, unmounted=True),
    Kind("unit-namespace-fd", "fd 9", LEAVES, IN_UNIT, unmounted=True),
    Kind("slave", "cwd", f"os.chdir({MERGED!r})", "unshare --mount --propagation slave"),
]


@contextmanager
def holding(box: Box, kind: Kind) -> Iterator[int]:
    """Run a holder in the box; yields its PID there."""
    program = f"import ctypes, mmap, os, signal; {kind.python}; os.write(1, b'%d\\n' % os.getpid()); signal.pause()"
    with _started(box, f'{kind.before} python3 -I -c "{program}"') as pid:
        yield pid


@contextmanager
def _started(box: Box, command: str) -> Iterator[int]:
    box.run(f"rm -f /run/holder; ({command}) >/run/holder 2>&1 </dev/null &")
    try:
        wait_for("the holder holds", lambda: box.run("cat /run/holder").stdout.strip().isdigit())
        yield int(box.run("cat /run/holder").stdout)
    finally:
        said = box.run("cat /run/holder").stdout.strip()
        assert said.isdigit(), said
        box.run(f"kill -KILL {said}; while kill -0 {said} 2>/dev/null; do :; done", check=False)


def named(box: Box) -> dict[int, list[tuple[str, str]]]:
    """Return command and kind of each holder that l4d2ctl names, by PID."""
    found: dict[int, list[tuple[str, str]]] = {}
    for each in json.loads(box.run("l4d2ctl holders 3 --json").stdout)["3"]:
        found.setdefault(each["pid"], []).append((each["command"], each["kind"]))
    return found


@pytest.fixture
def running(deployed: Box) -> Box:
    """The box, with server 3 running."""
    deployed.run("l4d2ctl start 3")
    wait_for_server(deployed, 27015)
    return deployed


def assert_held(box: Box, pid: int, command: str, by: str, unmounted: bool) -> None:
    """Assert that a holder is named, that the stop fails in its time with one line that names it, and the next not."""
    assert (command, by) in named(box)[pid]
    begin = time.monotonic()
    done = without_job("stop 3", box.run("l4d2ctl stop 3", check=False))
    assert time.monotonic() - begin < SECONDS
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert f"pid {pid} ({command}) by its {by}" in line
    assert (MERGED in overlays(box)) is not unmounted
    assert list(named(box)) == [pid]
    again = without_job("stop 3", box.run("l4d2ctl stop 3", check=False))
    assert (again.returncode, again.stderr) == (1, done.stderr)
    if unmounted:
        # A second overlay over the same upper would corrupt it, and the kernel lets it happen.
        start = without_job("start 3", box.run("l4d2ctl start 3", check=False))
        assert start.returncode == 1
        assert f"is still in use by pid {pid}" in start.stderr
        assert MERGED not in overlays(box)


def assert_stops(box: Box) -> None:
    done = without_job("stop 3", box.run("l4d2ctl stop 3", check=False))
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert properties(box, UNIT, "ActiveState", "SubState") == {"ActiveState": "inactive", "SubState": "dead"}
    assert MERGED not in overlays(box)
    assert having(box, "3") == []
    assert named(box) == {}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_holder_is_named_and_a_stop_succeeds_once_it_is_gone(running: Box, kind: Kind) -> None:
    with holding(running, kind) as pid:
        assert_held(running, pid, "python3", kind.by, kind.unmounted)
    assert_stops(running)


def test_a_reset_of_a_held_server_moves_nothing_and_the_next_one_finishes_it(running: Box) -> None:
    places = "stat -c %i /var/lib/left4me/runtime/3/upper; ls -A /var/lib/left4me/attic"
    before = running.run(places).stdout
    with holding(running, KINDS[0]) as pid:
        done = without_job("reset 3", running.run("l4d2ctl reset 3", check=False))
        assert done.returncode == 1
        assert f"pid {pid} (python3) by its cwd" in done.stderr
        assert done.stderr.endswith("then: l4d2ctl reset 3\n")
        assert running.run(places).stdout == before
        assert properties(running, UNIT, "MainPID")["MainPID"] == "0"
        assert running.run("l4d2ctl status 3").stdout.splitlines()[-1].endswith("reset is unfinished")
    running.run("l4d2ctl reset 3")
    assert running.run(places).stdout != before
    assert_stops(running)


def test_those_that_nobody_holds_are_restarted_and_the_one_that_is_held_told(running: Box) -> None:
    before = properties(running, "left4me-server@4", "MainPID")
    with holding(running, KINDS[0]) as pid:
        done = without_job("restart --all", running.run("l4d2ctl restart --all", check=False))
        assert done.returncode == 1
        [line] = done.stderr.splitlines()
        assert f"server 3 is stopped but its overlay is held by pid {pid}" in line
        assert properties(running, UNIT, "MainPID") == {"MainPID": "0"}
        wait_for_server(running, 27016)
        assert properties(running, "left4me-server@4", "MainPID") != before
    assert_stops(running)


def test_those_whose_reset_is_finished_are_started_and_the_one_that_waits_for_it_told(running: Box) -> None:
    running.run("l4d2ctl stop --all; touch /var/lib/left4me/runtime/3/reset")
    try:
        done = without_job("start --all", running.run("l4d2ctl start --all", check=False))
        wait_for_server(running, 27016)
    finally:
        running.run("rm /var/lib/left4me/runtime/3/reset")
    assert done.returncode == 1
    assert done.stderr == "l4d2ctl: server 3: its reset did not finish; run l4d2ctl reset 3\n"
    assert_stops(running)


def test_one_that_somebody_detached_by_hand_is_told_while_it_lives(running: Box) -> None:
    with holding(running, KINDS[2]) as pid:
        running.run(f"umount --lazy {MERGED}")
        done = without_job("stop 3", running.run("l4d2ctl stop 3", check=False))
        assert done.returncode == 1
        assert f"pid {pid} (python3) by its fd 9" in done.stderr
        start = without_job("start 3", running.run("l4d2ctl start 3", check=False))
        assert start.returncode == 1
        assert f"is still in use by pid {pid}" in start.stderr
        assert MERGED not in overlays(running)
    assert_stops(running)


def test_a_file_on_its_way_to_another_process_is_told_by_the_kernel_alone(running: Box) -> None:
    with holding(running, Kind("sent", "", SENDS, IN_UNIT)):
        for command in ("stop", "stop", "doctor --fix", "stop", "start"):
            target = "" if command.startswith("doctor") else "3"
            done = running.run(f"l4d2ctl {command} {target}", check=False)
            assert done.returncode == 1, command
            assert f"{MERGED} is still in use by a process that /proc does not show" in done.stderr, command
            assert MERGED not in overlays(running)
    assert_stops(running)


def test_a_number_that_the_kernel_gives_to_another_is_nobodys_fault(running: Box) -> None:
    """As after a helper that was killed before it could note that the overlay is gone."""
    note = "/run/left4me/3.overlay"
    running.run("l4d2ctl stop 3")
    for other in ("/proc", "/run", "/var/lib/left4me/runtime/4/merged", "/dev/mqueue"):
        running.run(f"ln -sfn $(mountpoint -d {other}) {note}")
        running.run("l4d2ctl stop 3")
        assert running.run(f"readlink {note}").stdout == "gone\n", other
    assert_stops(running)


def test_a_running_program_is_named(running: Box) -> None:
    running.run(f"cp /bin/sleep {MERGED}/pause; chmod 755 {MERGED}/pause")
    command = f"sh -c 'exec 3>&1; cd /; echo $$; exec {MERGED}/pause infinity >/dev/null 3>&-'"
    with _started(running, command) as pid:
        wait_for("it runs", lambda: "/pause" in running.run(f"readlink /proc/{pid}/exe").stdout)
        assert_held(running, pid, "pause", "exe", unmounted=False)
    assert_stops(running)


def test_the_game_itself_is_named_and_nobody_else(running: Box) -> None:
    pid = int(properties(running, UNIT, "MainPID")["MainPID"])
    found = named(running)
    assert list(found) == [pid]
    assert {by.split()[0] for _command, by in found[pid]} == {"cwd", "exe", "fd", "map", "mount"}


def test_neighbours_and_sandboxed_services_are_no_holders(running: Box) -> None:
    running.run("systemd-run --quiet --unit=bystander -p PrivateTmp=yes -p ProtectSystem=strict sleep infinity")
    pid = int(properties(running, "bystander", "MainPID")["MainPID"])
    assert MERGED in running.run(f"cat /proc/{pid}/mountinfo").stdout
    assert pid not in named(running)
    assert_stops(running)
    assert MERGED not in running.run(f"cat /proc/{pid}/mountinfo").stdout
    running.run("systemctl stop bystander")


def assert_cannot_start(box: Box) -> None:
    """Assert that no second overlay is mounted over the same upper: that is damage, and the kernel lets it happen."""
    start = without_job("start 3", box.run("l4d2ctl start 3", check=False))
    assert start.returncode == 1
    assert "is still in use by pid 1" in start.stderr
    assert overlays(box) == ["/var/lib/left4me/runtime/4/merged"]


@pytest.mark.parametrize("part", ["", "/left4dead2"])
def test_it_or_a_part_of_it_mounted_elsewhere_is_named(running: Box, part: str) -> None:
    running.run(f"mkdir -p /run/elsewhere; mount --bind {MERGED}{part} /run/elsewhere")
    done = without_job("stop 3", running.run("l4d2ctl stop 3", check=False))
    assert done.returncode == 1
    assert "pid 1 (systemd) by its mount: /run/elsewhere" in done.stderr
    assert_cannot_start(running)
    running.run("umount /run/elsewhere; rmdir /run/elsewhere")
    assert_stops(running)


def test_a_namespace_that_a_mount_keeps_is_named(running: Box) -> None:
    running.run("mkdir /run/spaces; mount -t tmpfs none /run/spaces; mount --make-private /run/spaces")
    # The kernel binds a namespace only in one with a lower number, and each processor has numbers of its own to give.
    running.run("""
        touch /run/spaces/one
        for try in $(seq 100); do unshare --mount=/run/spaces/one --propagation private true 2>/dev/null && exit; done
        exit 1
    """)
    done = without_job("stop 3", running.run("l4d2ctl stop 3", check=False))
    assert done.returncode == 1
    assert "pid 1 (systemd) by its mount /run/spaces/one: mnt:[" in done.stderr
    assert_cannot_start(running)
    running.run("umount /run/spaces/one /run/spaces; rmdir /run/spaces")
    assert_stops(running)


def test_what_is_mounted_inside_is_named(running: Box) -> None:
    running.run(f"mount -t tmpfs none {MERGED}/left4dead2/maps")
    done = without_job("stop 3", running.run("l4d2ctl stop 3", check=False))
    assert done.returncode == 1
    assert f"pid 1 (systemd) by its mount: {MERGED}/left4dead2/maps" in done.stderr
    assert "busy: held by" in running.run(f"journalctl -q -o cat -n 20 -u {UNIT}").stdout
    running.run(f"umount {MERGED}/left4dead2/maps")
    assert_stops(running)


def test_watch_prints_the_timeline_of_a_stop_and_what_it_saw(running: Box) -> None:
    game = int(properties(running, UNIT, "MainPID")["MainPID"])
    running.run("l4d2ctl holders --watch 3 >/run/watched 2>&1 </dev/null &")
    wait_for("the first look", lambda: "mounted=" in running.run("cat /run/watched").stdout)
    with holding(running, KINDS[0]) as pid:
        assert running.run("l4d2ctl stop 3", check=False).returncode == 1
        alone = f"mounted=Y holders=[{pid}(python3)]\n"
        wait_for("the holder is alone", lambda: running.run("tail -n1 /run/watched").stdout.endswith(alone))
    assert_stops(running)
    wait_for("the watch ends", lambda: "seen in total" in running.run("cat /run/watched").stdout)
    text = running.run("cat /run/watched").stdout
    timeline = [line for line in text.splitlines() if line.startswith("[t=")]
    assert f"{game}(srcds_linux)" in timeline[0]
    assert f"{game}(srcds_linux), {pid}(python3)" in text or f"{pid}(python3), {game}(srcds_linux)" in text
    assert any(line.endswith(f"mounted=Y holders=[{pid}(python3)]") for line in timeline)
    assert timeline[-1].endswith("mounted=N holders=[]")
    # The unit's own way out, nsenter, stands in merged until it has left the unit's namespace: it may be seen too, also
    # by the name in brackets that it has before it is the program.
    rows = [line.split("\t") for line in text.splitlines() if line.count("\t") == 3]
    names = {command.strip("()") for _pid, command, _kind, _path in rows[1:]}
    assert names - {"nsenter"} == {"srcds_linux", "python3"}
    assert f"seen in total: {len({pid for pid, *_rest in rows[1:]})} processes" in text


def test_a_thread_with_a_directory_of_its_own_is_named(running: Box) -> None:
    # unshare(CLONE_FS) in one thread: /proc/PID/cwd is that of the first thread alone.
    program = (
        "import ctypes, os, signal, threading\n"
        "def hold():\n"
        "    assert ctypes.CDLL(None).unshare(0x200) == 0\n"
        f"    os.chdir('{MERGED}')\n"
        "    os.write(1, b'%d\\n' % os.getpid())\n"
        "    threading.Event().wait()\n"
        "os.chdir('/')\n"
        "threading.Thread(target=hold).start()\n"
    )
    running.run("cat >/run/thread.py", input=program.encode())
    with _started(running, "python3 -I /run/thread.py") as pid:
        assert_held(running, pid, "python3", "cwd", unmounted=False)
    assert_stops(running)
