"""The busy unmount: the unit as it was before the fix fails as the postmortem says, the unit as deployed does not."""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.boxes import boxes as machines
from tests.boxes.boxes import Box
from tests.boxes.deployed import up
from tests.integration.harness import overlays, properties, wait_for_server

UNIT = "left4me-server@3.service"
PORT = 27015
RUNTIME = "/var/lib/left4me/runtime/3"
MERGED = f"{RUNTIME}/merged"
HELPER = "/usr/local/libexec/left4me/left4me-overlay"
DROP_IN = f"/run/systemd/system/{UNIT}.d"
ROUNDS = 200 if os.environ.get("SOAK") else 20
# By these a process waits for time to pass, or for another process.
WAITS = "nanosleep,clock_nanosleep,select,pselect6,poll,ppoll,epoll_wait,epoll_pwait,epoll_pwait2,pause,rt_sigtimedwait"
CHILDREN = "clone,clone3,fork,vfork,wait4,waitid"

# As it was: nsenter for the unmount alone, and tried again for a while.
OLD_HELPER = f"""#!/usr/bin/python3 -I
import subprocess, sys, time
end = time.monotonic() + 2
while True:
    done = subprocess.run(["nsenter", "--mount=/proc/1/ns/mnt", "--", "umount", "{MERGED}"])
    if done.returncode == 0 or time.monotonic() > end:
        sys.exit(done.returncode)
    time.sleep(0.25)
"""
# Its namespace held no more than a slave of PID 1's own mount. In a unit that binds merged to where it is, and more
# into it, an unmount in PID 1's namespace is never busy, and a copy lives on.
OLD_UNIT = """[Service]
ExecStopPost=
ExecStopPost=+/usr/local/lib/old-helper
TemporaryFileSystem=
BindPaths=
BindReadOnlyPaths=
ReadWritePaths=-/var/lib/left4me/runtime/3/merged
"""


class Stop(NamedTuple):
    """What is known of one stop: the postmortem's table."""

    seconds: float
    holders: set[tuple[str, str]]
    """Who held the overlay by what, once the game was gone: (name of the program, cwd, root, exe, fd or map)."""
    games: set[str]
    """What held it while the game lived: shows that holders are found."""
    state: str
    result: str
    exit_code: int
    mounted: bool


@pytest.fixture(scope="module")
def pair(debian: int) -> Iterator[tuple[Box, Box]]:
    """Two boxes of one Debian with the same servers."""
    names = [f"stop-a-{debian}", f"stop-b-{debian}"]
    first, second = up(names, debian, "plain")
    yield first, second
    machines.down(names)


@pytest.fixture(scope="module")
def box(pair: tuple[Box, Box]) -> Box:
    """The first of the two."""
    return pair[0]


@pytest.fixture
def running(box: Box) -> Iterator[Box]:
    """The box with server 3 running, as deployed; afterwards it runs again."""
    start(box)
    yield box
    box.run(f"""
        systemctl stop {UNIT}; rm -rf {DROP_IN}; chmod 700 {RUNTIME}; systemctl daemon-reload
        if mountpoint -q {MERGED}; then umount {MERGED}; fi
    """)
    start(box)


def start(box: Box) -> None:
    """Start server 3 where it does not run, and wait until it answers."""
    box.run(f"systemctl reset-failed; systemctl start {UNIT}")
    wait_for_server(box, PORT)


def processes(box: Box) -> Iterator[Path]:
    """Yield the /proc directories, seen from outside, of all processes of a box."""
    namespace = os.readlink(f"/proc/{box.leader}/ns/pid")
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.readlink(process / "ns/pid") == namespace:
                yield process


def holders(box: Box) -> set[tuple[str, str]]:
    """Return who holds server 3's overlay at this moment, and by what."""
    found = set()
    for process in processes(box):
        with suppress(OSError):
            name = (process / "comm").read_text().strip()
            for link in [process / "cwd", process / "root", process / "exe", *(process / "fd").iterdir()]:
                with suppress(OSError):
                    if MERGED in os.readlink(link):
                        found.add((name, "fd" if link.parent.name == "fd" else link.name))
            if MERGED in (process / "maps").read_text():
                found.add((name, "map"))
    return found


def observed_stop(box: Box) -> Stop:
    """Stop server 3 and look at who holds its overlay meanwhile."""
    seen: list[set[tuple[str, str]]] = []
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            seen.append(holders(box))

    with ThreadPoolExecutor() as pool:
        looking = pool.submit(look)
        try:
            while not seen:
                time.sleep(0.01)
            began = time.monotonic()
            box.run(f"systemctl stop {UNIT}")
            seconds = time.monotonic() - began
        finally:
            over.set()
        looking.result()
    # nsenter is the door: it stands in merged, as every program of the unit does, until it has called setns(2).
    doors = ("(nsenter)", "nsenter")
    is_game = [any(name.startswith("srcds") for name, _ in each) for each in seen]
    after = seen[len(seen) - is_game[::-1].index(True) :]
    told = properties(box, UNIT, "ActiveState", "Result", "ExecStopPostEx")
    code = re.search(r"code=exited ; status=(\d+)", told["ExecStopPostEx"])
    assert code, told
    return Stop(
        seconds=seconds,
        holders={(name, what) for each in after for name, what in each if name not in doors},
        games={what for each in seen for name, what in each if name.startswith("srcds")},
        state=told["ActiveState"],
        result=told["Result"],
        exit_code=int(code.group(1)),
        mounted=MERGED in overlays(box),
    )


def test_the_unit_as_it_was_before_the_fix_leaves_the_overlay_mounted(running: Box) -> None:
    running.run("cat >/usr/local/lib/old-helper && chmod 755 /usr/local/lib/old-helper", input=OLD_HELPER.encode())
    running.run(f"mkdir -p {DROP_IN}; cat >{DROP_IN}/old.conf", input=OLD_UNIT.encode())
    running.run(f"systemctl stop {UNIT}; chmod 711 {RUNTIME}; systemctl daemon-reload")
    start(running)
    stop = observed_stop(running)
    assert (stop.exit_code, stop.state, stop.mounted) == (32, "failed", True)
    # Not the namespace: the working directory that systemd gives to every Exec line. Between that and the helper's
    # program the process has a name of systemd's.
    assert stop.holders - {("(d-helper)", "cwd")} == {("old-helper", "cwd")}
    assert stop.seconds > 2
    # What held it is gone with it.
    running.run(f"umount {MERGED}")


def test_the_unit_as_deployed_leaves_nothing(running: Box) -> None:
    stop = observed_stop(running)
    assert stop.games == {"cwd", "exe", "fd", "map"}
    assert stop.holders == set()
    assert (stop.exit_code, stop.state, stop.result, stop.mounted) == (0, "inactive", "success", False)
    assert stop.seconds < 2


def test_a_stop_is_one_unmount_and_no_waiting(running: Box, tmp_path: Path) -> None:
    what = f"trace=execve,umount2,{CHILDREN},{WAITS}"
    command = ["strace", "-ff", "-s", "300", "-e", what, "-o", str(tmp_path / "pid"), "-p", str(running.leader)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        try:
            assert strace.stderr
            assert "attached" in strace.stderr.readline()
            running.run(f"systemctl stop {UNIT}")
        finally:
            strace.terminate()
    traces = [path.read_text().splitlines() for path in tmp_path.iterdir()]
    unmounts = [line for trace in traces for line in trace if line.startswith(f'umount2("{MERGED}"')]
    [helper] = [trace for trace in traces if any(line.startswith(f'execve("{HELPER}"') for line in trace)]
    began = next(index for index, line in enumerate(helper) if line.startswith(f'execve("{HELPER}"'))
    assert helper[began].endswith(" = 0")
    [unmount, *ended] = helper[began + 1 :]
    assert re.fullmatch(rf'umount2\("{MERGED}", 0\) += 0', unmount), helper
    assert ended == ["+++ exited with 0 +++"]
    assert unmounts == [unmount]


def test_a_stop_by_l4d2ctl_of_a_held_mount_adds_no_unmount_and_no_sleep(running: Box, tmp_path: Path) -> None:
    running.run(f"systemd-run --quiet --unit=shell --working-directory={MERGED} sleep infinity")
    what = f"trace=execve,umount2,alarm,setitimer,timer_settime,{WAITS}"
    command = ["strace", "-ff", "-s", "300", "-e", what, "-o", str(tmp_path / "pid"), "-p", str(running.leader)]
    try:
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
            try:
                assert strace.stderr
                assert "attached" in strace.stderr.readline()
                # By PID 1, whose children are traced.
                done = running.run("systemd-run --quiet --wait --pipe /usr/local/sbin/l4d2ctl stop 3", check=False)
            finally:
                strace.terminate()
    finally:
        running.run("systemctl stop shell; l4d2ctl stop 3; rm /var/lib/left4me/held/3")
    assert done.returncode == 1
    assert "(sleep) by its cwd" in done.stderr
    traces = [path.read_text() for path in tmp_path.iterdir()]
    [helper] = [trace for trace in traces if f'execve("{HELPER}"' in trace]
    [ctl] = [trace for trace in traces if 'execve("/usr/local/sbin/l4d2ctl"' in trace]
    unmounts = [line for trace in traces for line in trace.splitlines() if line.startswith(f'umount2("{MERGED}"')]
    assert unmounts == [f'umount2("{MERGED}", 0) = -1 EBUSY (Device or resource busy)']
    assert unmounts[0] in helper
    assert not re.findall(r"^(?:\w*nanosleep|pause|alarm|setitimer|timer_settime)\(.*", "".join(traces), re.MULTILINE)
    # What l4d2ctl waits for is other processes, for however long they take.
    waits = re.findall(rf"^(?:{WAITS.replace(',', '|')})\(.*", helper + ctl, re.MULTILINE)
    assert [wait for wait in waits if not re.search(r"^poll\(.*, -1\) += ", wait)] == []


def test_an_overlay_that_lives_on_in_a_servers_own_namespace_is_told_and_never_mounted_twice(running: Box) -> None:
    pid = properties(running, UNIT, "MainPID")["MainPID"]
    for action in ("umount", "mount"):
        done = running.run(f"{HELPER} {action} 3", check=False)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
        assert f"{MERGED} is still in use by pid {pid}" in done.stderr
        assert MERGED not in overlays(running)
    running.run(f"systemctl stop {UNIT}")
    assert properties(running, UNIT, "ActiveState") == {"ActiveState": "inactive"}
    start(running)
    assert MERGED in overlays(running)


def seconds_to_stop(box: Box) -> float:
    """Return how long the last stop of server 3 took, as systemd noted it."""
    noted = properties(box, UNIT, "ActiveExitTimestampMonotonic", "InactiveEnterTimestampMonotonic")
    return (int(noted["InactiveEnterTimestampMonotonic"]) - int(noted["ActiveExitTimestampMonotonic"])) / 1e6


def test_the_same_server_in_two_boxes_one_of_them_deaf_to_sigint(running: Box, pair: tuple[Box, Box]) -> None:
    _, deaf = pair
    wait_for_server(deaf, PORT)
    autoexec = f"{MERGED}/left4dead2/cfg/autoexec.cfg"
    deaf.run(f"echo standin_ignore_sigint 1 >{autoexec}; chown left4me-3:left4me {autoexec}; systemctl restart {UNIT}")
    wait_for_server(deaf, PORT)
    neighbours = {each.name: properties(each, "left4me-server@4", "MainPID", "ActiveState") for each in pair}
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda each: each.run(f"systemctl stop {UNIT}"), pair))
    assert seconds_to_stop(running) < 2
    told = properties(running, UNIT, "ActiveState", "Result")
    assert told == {"ActiveState": "inactive", "Result": "success"}
    # TimeoutStopSec=15s, then SIGKILL, then the unmount all the same.
    assert 15 <= seconds_to_stop(deaf) < 18
    told = properties(deaf, UNIT, "ActiveState", "Result", "ExecMainStatus", "ExecStopPostEx")
    assert "code=exited ; status=0" in told.pop("ExecStopPostEx")
    assert told == {"ActiveState": "failed", "Result": "timeout", "ExecMainStatus": "9"}
    for each in pair:
        assert MERGED not in overlays(each)
        assert properties(each, "left4me-server@4", "MainPID", "ActiveState") == neighbours[each.name]
        wait_for_server(each, 27016)


def left(box: Box) -> list[str]:
    """Return what a server may leave behind: mounts, processes, private directories, cgroups, files in work."""
    mounts = Path(f"/proc/{box.leader}/mountinfo").read_text().splitlines()
    found = box.run(f"""
        # systemd removes them a moment after the unit has stopped.
        until [ -z "$(find /tmp /var/tmp -path '*left4me-server@3*')" ]; do sleep 0.1; done
        ls -A {RUNTIME}/work
        find /tmp /var/tmp /run/systemd /sys/fs/cgroup -path '*left4me-server@3*' -not -path '/run/systemd/units/*'
        ps -e -o user:32,pid,args | grep '^left4me-3 ' || true
        systemctl --failed --plain --no-legend
        ls -A /dev/shm /run/lock
    """).stdout
    return [*sorted(line.split()[4] for line in mounts), *found.splitlines()]


@pytest.mark.soak
def test_after_many_rounds_nothing_is_left(running: Box) -> None:
    running.run(f"systemctl stop {UNIT}")
    before = left(running)
    durations = []
    for _ in range(ROUNDS):
        start(running)
        running.run(f"systemctl stop {UNIT}")
        told = properties(running, UNIT, "ActiveState", "Result")
        assert told == {"ActiveState": "inactive", "Result": "success"}
        durations.append(seconds_to_stop(running))
    assert left(running) == before
    assert MERGED not in "\n".join(before)
    print(f"\n{ROUNDS} stops: {min(durations):.3f} to {max(durations):.3f} s")
    assert max(durations) < 2
