"""Whatever goes wrong in a start, a stop or a reset: afterwards `doctor --fix` makes the host sound again."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.boxes.boxes import Box, BoxError
from tests.integration.ctl import without_job
from tests.integration.harness import (
    SmallDisk,
    device,
    having,
    overlays,
    properties,
    pyinfra,
    small_disk,
    started,
    wait_for,
    wait_for_server,
)

UNIT = "left4me-server@3"
RUNTIME = "/var/lib/left4me/runtime/3"
MERGED = f"{RUNTIME}/merged"
HELPER = "/usr/local/libexec/left4me/left4me-overlay"
DROP_IN = f"/run/systemd/system/{UNIT}.service.d"
FINISH = "left4me-finish-resets.service"
FINISH_PROGRAM = "/usr/local/libexec/left4me/left4me-finish-resets"
LINES = {"mount": "ExecStartPre", "umount": "ExecStopPost"}
# Calls that only look, or change nothing but the process itself; what is not here counts as a change.
LOOKS = """
    access arch_prctl brk clock_gettime close connect dup dup2 epoll_create1 execve faccessat faccessat2 fcntl fstat
    fstatfs futex getcwd getdents64 getegid geteuid getgid getpid getrandom gettid getuid inotify_add_watch
    inotify_init1 ioctl lseek lstat madvise mmap mprotect mremap munmap newfstatat open openat poll pread64
    prlimit64 read readlink readlinkat rseq rt_sigaction rt_sigprocmask sched_getaffinity set_robust_list
    set_tid_address sigaltstack socket stat statfs sysinfo uname write
"""


SLEEPS = (
    "alarm clock_nanosleep epoll_pwait epoll_wait nanosleep pause poll ppoll pselect6 select setitimer timer_settime"
)


@pytest.fixture
def running(deployed: Box) -> Box:
    """The box, with server 3 new and running."""
    deployed.run("l4d2ctl stop 3; l4d2ctl reset 3; l4d2ctl start 3")
    wait_for_server(deployed, 27015)
    return deployed


def assert_sound(box: Box) -> None:
    """Assert what has to hold after every fault: nothing is left to find, and a start and a stop are clean."""
    fixed = box.run("l4d2ctl doctor --fix", check=False)
    assert fixed.returncode == 0, fixed.stdout + fixed.stderr
    found = box.run("l4d2ctl doctor", check=False)
    assert (found.returncode, found.stdout) == (0, "no problems found\n")
    box.run("l4d2ctl start 3")
    wait_for_server(box, 27015)
    assert overlays(box).count(MERGED) == 1
    stopped = without_job("stop 3", box.run("l4d2ctl stop 3"))
    assert (stopped.stdout, stopped.stderr) == ("", "")
    wanted = {"ActiveState": "inactive", "Result": "success", "ExecMainStatus": "0"}
    assert properties(box, UNIT, *wanted) == wanted
    assert MERGED not in overlays(box)
    assert having(box, "3") == []
    assert box.run(f"ls -A {RUNTIME}/work; systemctl list-units --failed --no-legend").stdout == ""


@contextmanager
def drop_in(box: Box, text: str) -> Iterator[None]:
    """Have more lines in the unit of server 3."""
    box.run(f"mkdir -p {DROP_IN}; cat >{DROP_IN}/fault.conf; systemctl daemon-reload", input=text.encode())
    try:
        yield
    finally:
        box.run(f"rm -rf {DROP_IN}; systemctl daemon-reload")


@contextmanager
def strace(box: Box, action: str, *options: str) -> Iterator[None]:
    """Have strace at the helper in the unit's real line; what it writes is in /run/trace."""
    line = LINES[action]
    command = f"/usr/bin/strace -o /run/trace {' '.join(options)} {HELPER} {action} %i"
    with drop_in(box, f"[Service]\n{line}=\n{line}=+/usr/bin/nsenter --mount=/proc/1/ns/mnt -- {command}\n"):
        yield


def in_upper(box: Box, line: str) -> None:
    """Have a stopped server's game execute a line at each start."""
    box.run(
        f"install -d -o left4me-3 -g left4me -m 775 {RUNTIME}/upper/left4dead2 {RUNTIME}/upper/left4dead2/cfg;"
        f"echo '{line}' >{RUNTIME}/upper/left4dead2/cfg/autoexec.cfg"
    )


def wait_for_standstill(box: Box) -> None:
    """Return when what strace is at has stopped: a SIGSTOP takes effect when the call is done."""
    wait_for("it stands still", lambda: "stopped by SIGSTOP" in box.run("cat /run/trace", check=False).stdout)


def main_pid(box: Box) -> str:
    return properties(box, UNIT, "MainPID")["MainPID"]


def with_leftovers(box: Box) -> None:
    """Put into a mounted overlay's work what a copy-up that died would have left."""
    box.run(f"mkdir {RUNTIME}/work/work/directory; touch {RUNTIME}/work/work/directory/file {RUNTIME}/work/work/file")


def do(box: Box, action: str) -> None:
    box.run(f"systemctl {'start' if action == 'mount' else 'stop'} {UNIT}", check=False)


def prepared(box: Box, action: str) -> None:
    """Bring server 3 to where the helper's action comes next."""
    if action == "umount":
        box.run("l4d2ctl start 3")
        with_leftovers(box)
    else:
        box.run("l4d2ctl stop 3; rm -f /var/lib/left4me/held/3; l4d2ctl doctor --fix", check=False)


# -- the helper


@pytest.mark.alternating
@pytest.mark.parametrize("action", ["mount", "umount"])
def test_a_helper_killed_at_any_call_that_changes_something(running: Box, deployed: Box, action: str) -> None:
    prepared(deployed, action)
    with strace(deployed, action):
        do(deployed, action)
    calls = Counter(re.findall(r"^(\w+)\(", deployed.run("cat /run/trace").stdout, re.MULTILINE))
    changing = [
        (call, number) for call in sorted(set(calls) - set(LOOKS.split())) for number in range(1, calls[call] + 1)
    ]
    wanted = {"mount": {"mount", "symlink", "rename"}, "umount": {"umount2", "symlink", "rename", "rmdir", "unlinkat"}}[
        action
    ]
    assert wanted | {"exit_group"} <= {call for call, _ in changing}
    for call, number in changing:
        prepared(deployed, action)
        with strace(deployed, action, "-e", f"inject={call}:signal=SIGKILL:when={number}"):
            do(deployed, action)
            assert "+++ killed by SIGKILL +++" in deployed.run("cat /run/trace").stdout, (call, number)
        assert_sound(deployed)
    print(f"{action}: killed at {len(changing)} calls: {', '.join(f'{call} {number}' for call, number in changing)}")


def test_the_helper_by_hand_twice_at_once(running: Box) -> None:
    running.run("l4d2ctl stop 3")
    for _ in range(10):
        running.run(f"{HELPER} mount 3 & first=$!; {HELPER} mount 3 && wait $first")
        assert overlays(running).count(MERGED) == 1
        running.run(f"{HELPER} umount 3 & first=$!; {HELPER} umount 3 && wait $first")
        assert MERGED not in overlays(running)
    assert_sound(running)


def test_a_host_with_no_inotify_left_stops_its_servers_all_the_same(running: Box, deployed: Box) -> None:
    with strace(deployed, "umount", "-e", "inject=inotify_init1:error=EMFILE"):
        done = without_job("stop 3", deployed.run("l4d2ctl stop 3"))
        assert (done.stdout, done.stderr) == ("", "")
        assert "= -1 EMFILE (Too many open files) (INJECTED)" in deployed.run("cat /run/trace").stdout
        assert MERGED not in overlays(deployed)
        assert deployed.run("readlink /run/left4me/3.overlay").stdout == "gone\n"
    assert_sound(running)


def test_what_the_game_leaves_behind_and_is_killed_later_is_in_no_ones_way(running: Box, deployed: Box) -> None:
    """systemd runs ExecStopPost when the game has ended, before it kills what else there is in the unit."""
    deaf = "/bin/sh -c \"trap '' INT; sleep infinity >/dev/null 2>&1 &\""
    with drop_in(deployed, f"[Service]\nTimeoutStopSec=2s\nExecStartPost={deaf}\n"):
        deployed.run("l4d2ctl stop 3")
        for action in ("restart", "stop"):
            deployed.run("l4d2ctl start 3")
            wait_for_server(deployed, 27015)
            deployed.run(f"l4d2ctl {action} 3")
            said = deployed.run(f"journalctl -q -u {UNIT} -n 50 -o cat").stdout
            assert re.search(r"is still in use by pid \d+ \(sleep\)", said)
            assert (MERGED in overlays(deployed)) is (action == "restart")
    assert_sound(running)


def test_an_unmount_that_is_busy_for_an_instant_with_nobody_there_gets_a_second_and_last(
    running: Box, deployed: Box
) -> None:
    once = f'umount2("{MERGED}", 0) = '
    for when, ends in (("1", "0"), ("1+", "-1 EBUSY (Device or resource busy) (INJECTED)")):
        deployed.run("l4d2ctl start 3")
        with strace(deployed, "umount", "-e", f"inject=umount2:error=EBUSY:when={when}"):
            do(deployed, "umount")
            trace = deployed.run("cat /run/trace").stdout
        assert re.findall(r"umount2\(.*", trace) == [
            f"{once}-1 EBUSY (Device or resource busy) (INJECTED)",
            f"{once}{ends}",
        ]
        assert (MERGED in overlays(deployed)) is (ends != "0")
        deployed.run("l4d2ctl stop 3")
        assert MERGED not in overlays(deployed)
    assert_sound(running)


def test_a_held_mount_gets_one_plain_unmount_and_no_sleep(running: Box, deployed: Box) -> None:
    hold = f"sh -c 'cd {MERGED}; echo $$ >/run/holder; exec sleep infinity' >/dev/null 2>&1 </dev/null &"
    comm = "cat /proc/$(cat /run/holder)/comm"
    with strace(deployed, "umount", "-f"):
        deployed.run(hold)
        try:
            wait_for("the holder is there", lambda: "sleep" in deployed.run(comm, check=False).stdout)
            do(deployed, "umount")
        finally:
            deployed.run("pid=$(cat /run/holder); kill $pid; while kill -0 $pid 2>/dev/null; do :; done")
        trace = deployed.run("cat /run/trace").stdout
        said = deployed.run(f"journalctl -u {UNIT} -n 20 -o cat").stdout
    assert re.findall(r"umount\w*\(.*", trace) == [f'umount2("{MERGED}", 0) = -1 EBUSY (Device or resource busy)']
    assert set(re.findall(r"^\d+ +(\w+)\(", trace, re.MULTILINE)) & set(SLEEPS.split()) == set()
    assert said.count("(sleep) by its cwd") == 1
    assert properties(deployed, UNIT, "TimeoutStopUSec") == {"TimeoutStopUSec": "15s"}
    assert_sound(deployed)


# -- the game


def test_a_killed_game_comes_back(running: Box) -> None:
    before = main_pid(running)
    running.run(f"kill -KILL {before}")
    wait_for("it was started again", lambda: main_pid(running) not in ("0", before))
    wait_for_server(running, 27015)
    assert overlays(running).count(MERGED) == 1
    assert_sound(running)


def test_a_game_that_ignores_sigint_is_killed_in_its_time(running: Box) -> None:
    running.run("l4d2ctl stop 3")
    in_upper(running, "standin_ignore_sigint 1")
    running.run("l4d2ctl start 3")
    wait_for_server(running, 27015)
    done = running.run("l4d2ctl stop 3")
    assert done.stderr == "server 3: did not quit when asked and was killed; it is stopped and unmounted\n"
    assert MERGED not in overlays(running)
    running.run("l4d2ctl reset 3")
    assert_sound(running)


def test_a_game_that_crashes_while_it_quits_has_stopped_and_one_in_mid_game_comes_back(running: Box) -> None:
    running.run("l4d2ctl stop 3")
    in_upper(running, "standin_segv_on_quit 1")
    running.run("l4d2ctl start 3")
    wait_for_server(running, 27015)
    before = main_pid(running)
    running.run(f"kill -SEGV {before}")
    wait_for("it was started again", lambda: main_pid(running) not in ("0", before))
    wait_for_server(running, 27015)
    done = running.run("l4d2ctl stop 3")
    assert done.stderr == "server 3: crashed (SIGSEGV) while quitting; it is stopped and unmounted\n"
    state = properties(running, UNIT, "ActiveState", "Result", "ExecMainStatus")
    assert state == {"ActiveState": "inactive", "Result": "success", "ExecMainStatus": "11"}
    assert running.run("l4d2ctl stop 3").stderr == ""
    running.run("l4d2ctl start 3")
    wait_for_server(running, 27015)
    done = running.run("l4d2ctl reset 3")
    assert "in all" in done.stdout
    assert "crashed (SIGSEGV)" in done.stderr
    assert_sound(running)


# -- files


def test_a_missing_layer_is_named_and_the_mount_in_use_goes(running: Box) -> None:
    running.run("cp -a /etc/left4me/servers/3/layers /run/layers; echo absent >/etc/left4me/servers/3/layers")
    running.run("l4d2ctl stop 3")
    done = running.run("l4d2ctl start 3", check=False)
    assert done.returncode == 1
    assert "/var/lib/left4me/overlays/absent/current must be a symlink" in done.stderr
    assert MERGED not in overlays(running)
    running.run("l4d2ctl stop 3; cp -a /run/layers /etc/left4me/servers/3/layers")
    assert_sound(running)


@pytest.mark.parametrize("command", ["l4d2ctl stop 3", f"systemctl stop {UNIT}; l4d2ctl doctor --fix"])
def test_a_server_whose_environment_is_gone_is_unmounted(running: Box, command: str) -> None:
    running.run("mv /etc/left4me/servers/3/server.env /run/server.env")
    running.run(command)
    assert MERGED not in overlays(running)
    done = running.run("l4d2ctl start 3", check=False)
    assert (done.returncode, MERGED in overlays(running)) == (1, False)
    running.run("l4d2ctl stop 3; mv /run/server.env /etc/left4me/servers/3/server.env")
    assert_sound(running)


@pytest.fixture
def disk(deployed: Box) -> Iterator[SmallDisk]:
    """Have /var/lib/left4me on a small disk."""
    with small_disk(deployed) as disk:
        yield disk


def test_a_full_disk_at_mount_and_at_reset(disk: SmallDisk, deployed: Box) -> None:
    disk.fill()
    done = deployed.run("l4d2ctl start 3", check=False)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert MERGED not in overlays(deployed)
    disk.empty()
    assert_sound(deployed)
    deployed.run("l4d2ctl start 3")
    wait_for_server(deployed, 27015)
    disk.fill()
    done = deployed.run("l4d2ctl reset 3", check=False)
    assert done.returncode == 1
    unrecorded, line = done.stderr.splitlines()
    assert unrecorded.startswith("l4d2ctl: this command is not recorded: [Errno 28] No space left on device")
    assert "server 3" in line
    assert "No space left on device" in line
    done = deployed.run("l4d2ctl stop 3", check=False)
    assert (done.returncode, MERGED in overlays(deployed)) == (1, False)
    assert "server 3 is stopped, but the next deploy or reboot will start it" in done.stderr
    disk.empty()
    deployed.run("l4d2ctl reset 3")
    assert_sound(deployed)


# -- the machine


@pytest.mark.alternating
@pytest.mark.parametrize(
    ("action", "call"),
    [("mount", "flock"), ("mount", "mount"), ("umount", "flock"), ("umount", "umount2"), ("umount", "rmdir")],
)
def test_a_power_cut_in_a_start_and_in_a_stop(running: Box, deployed: Box, action: str, call: str) -> None:
    prepared(deployed, action)
    with strace(deployed, action, "-e", f"inject={call}:signal=SIGSTOP:when=1"):
        deployed.run(f"rm -f /run/trace; systemctl {'start' if action == 'mount' else 'stop'} --no-block {UNIT}")
        wait_for_standstill(deployed)
        deployed.crash()
        deployed.start()
    assert_sound(deployed)


def cut_amid(box: Box, words: str, call: str) -> None:
    """Cut the power where l4d2ctl stands at a system call that strace stops it at; return when the box is up again."""
    box.run("rm -f /run/trace")
    command = f"strace -o /run/trace -e inject={call}:signal=SIGSTOP /usr/local/sbin/l4d2ctl {words}"
    box.run(f"{command} >/dev/null 2>&1 </dev/null &")
    wait_for_standstill(box)
    assert box.run(f"ls {RUNTIME}/reset").stdout
    box.crash()
    box.start()


def reset_finished(box: Box) -> tuple[str, str]:
    """Return what status says of server 3, in JSON and in the last column of its table."""
    [row] = json.loads(box.run("l4d2ctl status --json 3").stdout)
    return row["reset_finished"], box.run("l4d2ctl status 3").stdout.splitlines()[-1].split("\t")[-1]


# The plan, upper and work; the fourth is where none is left, and what follows the renames is cut.
@pytest.mark.alternating
@pytest.mark.parametrize("call", [*(f"/^rename:when={number}" for number in range(1, 4)), "/^mkdir:when=2"])
def test_a_power_cut_in_a_reset_is_finished_by_the_boot(running: Box, deployed: Box, call: str) -> None:
    deployed.run(f"touch {RUNTIME}/upper/evening; rm -rf /var/lib/left4me/attic/3@*")
    cut_amid(deployed, "reset 3", call)
    wait_for_server(deployed, 27015)
    assert deployed.run(f"ls {RUNTIME}").stdout.split() == ["merged", "upper", "work"]
    assert deployed.run("cd /var/lib/left4me; ls attic/*/upper/evening").stdout.count("\n") == 1
    assert not deployed.run(f"ls {RUNTIME}/upper/evening", check=False).stdout
    assert reset_finished(deployed) == ("reset", "a reset was finished at the boot")
    deployed.run("l4d2ctl restart 3")
    assert reset_finished(deployed) == ("", "-")
    assert_sound(deployed)


# The plan, what comes back, upper and work, upper and work again, the rest of it.
@pytest.mark.alternating
@pytest.mark.parametrize("number", range(1, 8))
def test_a_power_cut_in_an_undo_is_finished_by_the_boot(running: Box, deployed: Box, number: int) -> None:
    deployed.run("rm -rf /var/lib/left4me/attic/3@*")
    for evening in ("first", "second"):
        deployed.run(f"echo {evening} >{RUNTIME}/upper/evening; l4d2ctl reset 3")
    deployed.run(f"echo now >{RUNTIME}/upper/evening")
    cut_amid(deployed, "reset --undo 3", f"/^rename:when={number}")
    wait_for_server(deployed, 27015)
    assert deployed.run(f"cat {RUNTIME}/upper/evening").stdout == "second\n"
    assert deployed.run("cat /var/lib/left4me/attic/3@*-undo/upper/evening").stdout == "now\n"
    assert reset_finished(deployed) == ("undo", "an undo was finished at the boot")
    # Who types it again, for his connection broke, has it done. Then it is the next one's turn.
    assert "finished the interrupted undo" in deployed.run("l4d2ctl reset --undo 3").stderr
    assert deployed.run(f"cat {RUNTIME}/upper/evening").stdout == "second\n"
    assert reset_finished(deployed) == ("", "-")
    deployed.run("l4d2ctl reset --undo 3")
    assert deployed.run(f"cat {RUNTIME}/upper/evening").stdout == "first\n"
    assert_sound(deployed)


def test_the_boot_starts_no_server_that_was_stopped_by_hand(running: Box, deployed: Box) -> None:
    deployed.run(f"touch {RUNTIME}/upper/evening; l4d2ctl stop 3")
    cut_amid(deployed, "reset 3", "/^rename:when=2")
    wait_for_server(deployed, 27016)
    assert properties(deployed, UNIT, "ActiveState") == {"ActiveState": "inactive"}
    assert deployed.run(f"ls {RUNTIME}").stdout.split() == ["merged", "upper", "work"]
    assert reset_finished(deployed)[0] == "reset"
    assert_sound(deployed)


def test_a_reset_that_had_not_begun_is_dropped_by_the_boot(running: Box, deployed: Box) -> None:
    deployed.run(f"touch {RUNTIME}/upper/evening; : >{RUNTIME}/reset")
    deployed.crash()
    deployed.start()
    wait_for_server(deployed, 27015)
    deployed.run(f"ls {RUNTIME}/upper/evening")
    assert reset_finished(deployed) == ("not begun", "an interrupted reset changed nothing")
    assert_sound(deployed)


def test_a_reset_that_the_boot_cannot_finish_keeps_one_server_down(running: Box, deployed: Box) -> None:
    drop_ins = f"/etc/systemd/system/{FINISH}.d"
    full = f"/usr/bin/strace -f -o /dev/null -e inject=mkdir:error=ENOSPC {FINISH_PROGRAM}"
    deployed.run(f"mkdir {drop_ins}; printf '[Service]\\nExecStart=\\nExecStart={full}\\n' >{drop_ins}/full.conf")
    deployed.run(f"touch {RUNTIME}/upper/evening")
    call = "/^rename:when=1"
    with pytest.raises(BoxError, match="degraded"):  # which the box is, and up
        cut_amid(deployed, "reset 3", call)
    wait_for_server(deployed, 27016)
    assert properties(deployed, UNIT, "ActiveState") == {"ActiveState": "inactive"}
    assert properties(deployed, FINISH, "ActiveState", "Result") == {"ActiveState": "failed", "Result": "exit-code"}
    said = deployed.run(f"journalctl --sync; journalctl -b -o cat -u {FINISH}").stdout
    assert re.search(r"a reset of server 3 is not finished: .*No space left on device", said)
    assert "reset is unfinished" in deployed.run("l4d2ctl status 3").stdout
    assert "server 3: a reset did not finish" in deployed.run("l4d2ctl doctor", check=False).stdout
    deployed.run(f"rm -r {drop_ins}; systemctl daemon-reload")
    assert "l4d2ctl reset 3" in deployed.run("l4d2ctl start 3", check=False).stderr
    deployed.run("l4d2ctl reset 3")
    wait_for_server(deployed, 27015)
    assert deployed.run("systemctl is-system-running").stdout == "running\n"
    assert_sound(deployed)


def test_the_unit_of_the_boot_leaves_a_server_alone_that_runs(running: Box, deployed: Box) -> None:
    pid = main_pid(deployed)
    deployed.run(f"printf 'into=3@20260101T000000.000000000\\nback=\\nstart=\\n' >{RUNTIME}/reset")
    said = deployed.run(f"systemctl start {FINISH}; systemctl show -P Result {FINISH}", check=False).stdout
    assert said == "exit-code\n"
    assert (main_pid(deployed), device(deployed, "3") != "") == (pid, True)
    assert "server 3: " in deployed.run(f"journalctl --sync; journalctl -b -o cat -n 5 -u {FINISH}").stdout
    deployed.run("l4d2ctl reset 3")
    assert_sound(deployed)


def test_a_reset_is_on_disk_step_by_step(running: Box) -> None:
    running.run("strace -yz -o /run/trace -e trace=fsync,rename,unlink /usr/local/sbin/l4d2ctl reset 3")
    calls = re.findall(r"^(\w+)\((?:\d+<)?(.*?)[>,)]", running.run("cat /run/trace").stdout, re.MULTILINE)
    names = [path.strip(chr(34)).partition("@")[0].removeprefix("/var/lib/left4me/") for _call, path in calls]
    seen = [f"{call} {name}" for (call, _path), name in zip(calls, names, strict=True)]
    # Its record is made before and replaced after all that, without a sync.
    assert [name.split("/")[0] for name in names[:1] + names[-2:]] == ["jobs"] * 3
    assert "fsync jobs" not in " ".join(seen)
    assert [each for each in seen if " jobs/" not in each] == [
        "rename runtime/3/reset.new",
        *("fsync runtime/3/reset", "fsync runtime/3"),  # before anything is renamed
        *("rename runtime/3/upper", "rename runtime/3/work"),
        *("fsync attic", "fsync attic/3", "fsync runtime/3"),  # before the plan goes
        *("unlink runtime/3/reset", "fsync runtime/3"),
    ]
    assert_sound(running)


@contextmanager
def stopped_reset(box: Box, *options: str) -> Iterator[None]:
    """Have a reset of server 3 stand still where strace stops it; afterwards it goes on to its end."""
    box.run("rm -f /run/trace /run/reset")
    command = f"strace -o /run/trace {' '.join(options)} /usr/local/sbin/l4d2ctl reset 3"
    box.run(f"({command}; echo $?) >/run/reset 2>&1 </dev/null & echo $! >/run/pid")
    wait_for_standstill(box)
    try:
        yield
    finally:
        box.run("kill -CONT $(pgrep -P $(pgrep -P $(cat /run/pid)))")
    wait_for("it has ended", lambda: box.run("tail -n1 /run/reset").stdout.strip().isdigit())
    assert box.run("tail -n1 /run/reset").stdout == "0\n", box.run("cat /run/reset").stdout


def test_the_helper_keeps_out_of_a_reset(running: Box) -> None:
    with stopped_reset(running, "-e inject=rename:signal=SIGSTOP:when=2"):
        # As the helper would, which waits for its turn.
        assert running.run(f"flock --nonblock {RUNTIME} true", check=False).returncode == 1
    wait_for_server(running, 27015)
    assert_sound(running)


def test_a_stop_by_hand_just_before_a_reset_starts_the_server_holds(running: Box) -> None:
    held = "/var/lib/left4me/held/3"
    with stopped_reset(running, f"-P {held} -e inject=newfstatat:signal=SIGSTOP"):
        running.run("(l4d2ctl stop 3; echo $?) >/run/stopped 2>&1 </dev/null &")
        wait_for("the stop waits for it", lambda: "waiting for job" in running.run("cat /run/stopped").stdout)
        running.run(f"test -e {held}")
    wait_for("the stop has ended", lambda: running.run("tail -n1 /run/stopped").stdout.strip() == "0", limit=40)
    assert properties(running, UNIT, "ActiveState") == {"ActiveState": "inactive"}
    running.run(f"test -e {held}")
    assert_sound(running)


def test_a_deploy_in_the_middle_of_a_stop(running: Box, inventory: Path) -> None:
    running.run("l4d2ctl stop 3")
    in_upper(running, "standin_ignore_sigint 1")
    running.run("l4d2ctl start 3")
    wait_for_server(running, 27015)
    other = properties(running, "left4me-server@4", "MainPID")
    running.run("(l4d2ctl stop 3; echo $?) >/run/stopped 2>&1 </dev/null &")
    wait_for("it is stopping", lambda: properties(running, UNIT, "ActiveState")["ActiveState"] == "deactivating")
    with started(inventory, "deploy.py", "-y") as deploying:
        _out, err = deploying.communicate(timeout=120)
    assert deploying.returncode == 0, err
    wait_for("the stop has ended", lambda: running.run("tail -n1 /run/stopped").stdout.strip() == "0", limit=40)
    assert MERGED not in overlays(running)
    assert properties(running, "left4me-server@4", "MainPID") == other
    running.run("l4d2ctl reset 3")
    assert_sound(running)
    assert pyinfra(inventory, "deploy.py", "-y").returncode == 0


def test_a_new_systemd_while_a_server_runs(running: Box) -> None:
    before, mount = main_pid(running), device(running, "3")
    running.run("systemctl daemon-reexec")
    assert (main_pid(running), device(running, "3")) == (before, mount)
    assert_sound(running)
