"""l4d2ctl reset: what it puts aside, what it keeps, the way back, and what becomes of the attic."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.boxes.boxes import Box
from tests.integration.ctl import ATTIC, RUNTIME, ctl, fleet, game_writes, main_pid, state, without_job
from tests.integration.harness import SERVERS, assert_idle, deploy, overlays, properties, wait_for, wait_for_server

KEEP = [
    "left4dead2/cfg/banned_user.cfg",
    "left4dead2/addons/sourcemod/data",
    "left4dead2/linked/passwd",
    "left4dead2/link.cfg",
    "left4dead2/never/was",
]
MERGED = f"{RUNTIME}/3/merged"
AS_THE_GAME = "setpriv --reuid left4me-3 --regid left4me --clear-groups"


@pytest.fixture(scope="module")
def inventory(box: Box, tmp_path_factory: pytest.TempPathFactory) -> Path:
    servers = {"3": {**SERVERS["3"], "keep": KEEP}, "4": SERVERS["4"]}
    return fleet(tmp_path_factory.mktemp("fleet") / "inventory", [box], servers, attic_keep=2)


@pytest.fixture
def running(deployed: Box) -> Box:
    """Have server 3 run, with nothing in the attic."""
    clean_attic(deployed)
    deployed.run(f"rm -rf {ATTIC}/*")
    ctl(deployed, "start 3")
    wait_for_server(deployed, 27015)
    return deployed


def clean_attic(box: Box) -> None:
    """Return when the attic's program has run and ended: systemd adds this to a start that is under way."""
    box.run("systemctl start left4me-attic", check=False, timeout=300)


def attic(box: Box, server: str = "3") -> list[str]:
    """Return the paths of what is put aside of a server, the latest first."""
    return [f"{ATTIC}/{name}" for name in box.run(f"ls -r {ATTIC} | grep '^{server}@' || true").stdout.split()]


def inode(box: Box, *paths: str) -> list[str]:
    return box.run(f"stat -c %i {' '.join(paths)}").stdout.split()


def read(box: Box, name: str) -> str | None:
    done = box.run(f"cat {MERGED}/left4dead2/{name}", check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def test_a_reset_renames_and_starts_again(running: Box) -> None:
    game_writes(running, "mine.txt", "mine")
    game_writes(running, "cfg/banned_user.cfg", "banned")
    game_writes(running, "addons/sourcemod/data/sqlite/ranks.sq3", "ranks")
    runtime = f"{RUNTIME}/3"
    before = inode(running, f"{runtime}/upper", f"{runtime}/work")
    pid = main_pid(running, "3")
    said = ctl(running, "reset 3").stdout
    assert re.fullmatch(r"server 3: stop \d+\.\d\d s, reset \d+\.\d\d s, start \d+\.\d\d s; \d+\.\d\d s in all\n", said)
    wait_for_server(running, 27015)
    assert main_pid(running, "3") != pid
    [aside] = attic(running)
    assert inode(running, f"{aside}/upper", f"{aside}/work") == before
    modes = running.run(f"stat -c '%a %U:%G' {runtime}/upper {runtime}/work {ATTIC} {aside}").stdout.splitlines()
    assert modes == ["755 left4me-3:left4me", "700 root:root", "700 root:root", "700 root:root"]
    assert read(running, "mine.txt") is None
    assert read(running, "standin.state") == "1"
    assert running.run(f"cat {aside}/upper/left4dead2/mine.txt").stdout == "mine\n"
    assert read(running, "cfg/banned_user.cfg") == "banned"
    assert read(running, "addons/sourcemod/data/sqlite/ranks.sq3") == "ranks"
    game_writes(running, "cfg/banned_user.cfg", "more")
    ctl(running, "reset 3")
    assert read(running, "cfg/banned_user.cfg") == "more"


def test_a_server_that_was_down_stays_down(running: Box) -> None:
    running.run("systemctl stop left4me-server@3")
    ctl(running, "reset 3")
    assert state(running, "3") == "inactive"
    ctl(running, "stop 3")
    ctl(running, "reset 3")
    assert state(running, "3") == "inactive"
    assert running.run("ls /var/lib/left4me/held").stdout == "3\n"
    assert len(attic(running)) == 2


def test_what_is_kept_leads_nowhere_outside(running: Box) -> None:
    running.run(f"cd {MERGED} && {AS_THE_GAME} ln -sfn /etc left4dead2/linked")
    running.run(f"cd {MERGED} && {AS_THE_GAME} ln -sfn /etc/shadow left4dead2/link.cfg")
    before = running.run("stat -c '%i %z' /etc/passwd /etc/shadow").stdout
    ctl(running, "reset 3")
    assert running.run("stat -c '%i %z' /etc/passwd /etc/shadow").stdout == before
    assert running.run(f"readlink {MERGED}/left4dead2/link.cfg").stdout == "/etc/shadow\n"
    assert read(running, "linked") is None
    assert running.run(f"find {RUNTIME}/3/upper -name passwd").stdout == ""


def test_what_undos_put_aside_pushes_out_no_reset(running: Box) -> None:
    resets_with(running, "first", "second", "third")
    clean_attic(running)
    [third, second] = [row["when"] for row in listed(running)]
    for _ in range(3):
        ctl(running, f"reset --undo={third} 3")
        clean_attic(running)
        assert [row["when"] for row in listed(running) if row["by"] == "reset"] == [second]
        third = listed(running)[0]["when"]
    assert [row["by"] for row in listed(running)] == ["undo", "reset"]
    resets_with(running, "fourth")
    clean_attic(running)
    assert [row["by"] for row in listed(running)] == ["reset", "undo", "reset"]


def test_only_the_latest_stay(running: Box) -> None:
    ctl(running, "reset 4")
    made = []
    for _ in range(3):
        ctl(running, "reset 3")
        made += attic(running)[:1]
    wait_for("only two are left", lambda: attic(running) == made[:0:-1], 90)
    assert len(attic(running, "4")) == 1


def test_undo_brings_the_latest_back(running: Box) -> None:
    ctl(running, "reset 3")
    game_writes(running, "mine.txt", "before")
    game_writes(running, "cfg/banned_user.cfg", "banned")
    before = inode(running, f"{RUNTIME}/3/upper")
    ctl(running, "reset 3")
    wait_for_server(running, 27015)
    game_writes(running, "mine.txt", "after")
    game_writes(running, "cfg/banned_user.cfg", "banned since")
    ctl(running, "reset --undo 3")
    wait_for_server(running, 27015)
    assert inode(running, f"{RUNTIME}/3/upper") == before
    assert read(running, "mine.txt") == "before"
    assert read(running, "cfg/banned_user.cfg") == "banned since"


def listed(box: Box, server: str = "3") -> list[dict[str, Any]]:
    """Return what `l4d2ctl attic` lists of a server, the latest first; the directories have to be the same."""
    rows: list[dict[str, Any]] = json.loads(ctl(box, f"attic {server} --json").stdout)
    assert [row["path"] for row in rows] == attic(box, server)
    return rows


def resets_with(box: Box, *texts: str) -> None:
    """Reset server 3 so many times, each while it has another file mine.txt."""
    for text in texts:
        game_writes(box, "mine.txt", text)
        ctl(box, "reset 3")
        wait_for_server(box, 27015)
    game_writes(box, "mine.txt", "now")


def undone(box: Box, words: str = "reset --undo 3") -> str | None:
    """Undo and return what is in mine.txt then."""
    ctl(box, words)
    wait_for_server(box, 27015)
    return read(box, "mine.txt")


def test_undos_take_resets_off_like_a_stack(running: Box) -> None:
    resets_with(running, "first", "second")
    assert [undone(running), undone(running)] == ["second", "first"]
    clean_attic(running)
    assert [(row["by"], row["next"]) for row in listed(running)] == [("undo", False), ("undo", False)]
    done = ctl(running, "reset --undo 3", code=1)
    assert "there is no reset to undo" in done.stderr
    assert "l4d2ctl attic 3 lists the files from earlier undos" in done.stderr
    assert read(running, "mine.txt") == "first"
    resets_with(running, "first and more")
    assert undone(running) == "first and more"


@pytest.mark.parametrize("words", ["--undo {} 3", "--undo={} 3", "3 --undo {}", "--undo 3@{} 3"])
def test_an_undo_of_a_time(running: Box, words: str) -> None:
    resets_with(running, "first", "second")
    [latest, before] = listed(running)
    assert (latest["next"], before["next"]) == (True, False)
    assert undone(running, f"reset {words.format(before['when'])}") == "first"
    clean_attic(running)
    [aside, left] = listed(running)
    assert (aside["by"], left["when"]) == ("undo", latest["when"])
    # What the undo put aside, by the beginning of its time.
    ambiguous = aside["when"][:9]
    assert (
        f"{ambiguous} matches more than one entry: {left['when']}, {aside['when']};"
        in ctl(running, f"reset --undo {ambiguous} 3", code=1).stderr
    )
    assert undone(running, f"reset --undo {aside['when'][:-1]} 3") == "now"
    assert undone(running) == "second"


def test_an_undo_of_a_time_that_there_is_not(running: Box) -> None:
    resets_with(running, "first")
    pid = main_pid(running, "3")
    for words in ("--undo 20200101T00 3", "--undo=4@2T 3"):
        assert "see l4d2ctl attic 3" in ctl(running, f"reset {words}", code=1).stderr
    assert "server 20200101 is not declared" in ctl(running, "reset --undo 20200101", code=2).stderr
    assert main_pid(running, "3") == pid


def test_the_attic_is_listed_also_of_a_server_that_is_not_declared(running: Box) -> None:
    resets_with(running, "first")
    running.run(f"mkdir -p {ATTIC}/7@20200101T000000.000000000/upper; mkdir {ATTIC}/foreign")
    heading, *lines = [line.split("\t") for line in ctl(running, "attic").stdout.splitlines()]
    assert heading == ["ID", "WHEN", "MOVED BY", "UNDO"]
    assert [line[0] for line in lines] == ["3", "7"]
    assert ctl(running, "attic 7").stdout.splitlines()[1:] == ["7\t20200101T000000.000000000\treset\tnext"]
    assert "has nothing in the attic" in ctl(running, "attic 8", code=2).stderr
    running.run(f"rm -r {ATTIC}/foreign")


@pytest.mark.parametrize("latest", ["20990101T235959.999999999", "20990101T000000.5", "20990101T235959.999999999-undo"])
def test_what_is_put_aside_comes_after_all_that_is_there_whatever_the_clock_says(running: Box, latest: str) -> None:
    game_writes(running, "mine.txt", "before")
    running.run(
        f"mkdir -p {ATTIC}/3@{latest}/upper/left4dead2; echo future >{ATTIC}/3@{latest}/upper/left4dead2/mine.txt"
    )
    resets_with(running, "first", "second")
    assert all(path > f"{ATTIC}/3@{latest}" for path in attic(running)[:2])
    clean_attic(running)
    assert [undone(running), undone(running)] == ["second", "first"]


INTERRUPTED = """
import signal, subprocess, sys
undo = subprocess.Popen(["l4d2ctl", "reset", *sys.argv[1:]], stderr=subprocess.PIPE, text=True)
show = ["systemctl", "show", "--value", "--property=ActiveState", "left4me-server@3"]
# Until its start is under way, which takes its time.
while subprocess.run(show, capture_output=True, text=True).stdout.strip() != "activating":
    pass
undo.send_signal(signal.SIGINT)
print(undo.communicate()[1], undo.returncode)
"""


@contextmanager
def slow_start(box: Box) -> Iterator[None]:
    """Have server 3 take a second more for its start."""
    folder = "/run/systemd/system/left4me-server@3.service.d"
    box.run(f"mkdir -p {folder}; printf '[Service]\\nExecStartPre=+/usr/bin/sleep 1\\n' >{folder}/slow.conf")
    box.run("systemctl daemon-reload")
    try:
        yield
    finally:
        box.run(f"rm -r {folder}; systemctl daemon-reload")


@pytest.mark.parametrize("which", ["", "the first"])
def test_an_undo_interrupted_in_its_start_is_finished_by_the_same_command(running: Box, which: str) -> None:
    resets_with(running, "first", "second")
    words = f"--undo {listed(running)[-1]['when']} 3" if which else "--undo 3"
    with slow_start(running):
        said = running.run(f"python3 - {words}", input=INTERRUPTED.encode()).stdout
        assert said == "l4d2ctl: interrupted; run the same command again to finish it\n 130\n"
        done = ctl(running, f"reset {words}")
    wait_for_server(running, 27015)
    assert "finished the interrupted undo" in done.stderr
    assert read(running, "mine.txt") == ("first" if which else "second")
    if not which:
        assert undone(running) == "first"


@pytest.mark.parametrize("words", ["start 3", "restart 3", "reset 3"])
def test_who_goes_on_after_an_interrupted_undo_has_finished_it(running: Box, words: str) -> None:
    resets_with(running, "first", "second")
    with slow_start(running):
        running.run("python3 - --undo 3", input=INTERRUPTED.encode())
        wait_for_server(running, 27015)
    ctl(running, words)
    wait_for_server(running, 27015)
    done = ctl(running, "reset --undo 3")
    assert done.stderr == ""
    wait_for_server(running, 27015)
    assert read(running, "mine.txt") == ("second" if words == "reset 3" else "first")


def test_undo_of_nothing_leaves_the_server_alone(running: Box) -> None:
    pid = main_pid(running, "3")
    done = ctl(running, "reset --undo 3", code=1)
    assert "no reset to undo" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert main_pid(running, "3") == pid


@contextmanager
def read_only_attic(box: Box) -> Iterator[None]:
    box.run(f"mount --bind {ATTIC} {ATTIC} && mount -o remount,bind,ro {ATTIC}")
    try:
        yield
    finally:
        box.run(f"umount {ATTIC}")


@pytest.mark.parametrize("words", ["reset 3", "reset --undo 3"])
def test_what_fails_midway_stays_down_until_another_reset(running: Box, inventory: Path, words: str) -> None:
    for _ in range(2):  # of which the second puts aside what nobody wrote in
        ctl(running, "reset 3")
    game_writes(running, "mine.txt", "mine")
    with read_only_attic(running):
        done = ctl(running, words, code=1)
        assert re.fullmatch(r"l4d2ctl: server 3 is stopped, .*: l4d2ctl reset 3\n", done.stderr), done.stderr
        assert state(running, "3") == "inactive"
        assert f"{RUNTIME}/3/merged" not in overlays(running)
        ctl(running, "reset 3", code=1)
    assert_idle(deploy(inventory), [running])
    running.run("systemctl start left4me-server@3")
    assert state(running, "3") == "inactive"
    done = ctl(running, "start 3", code=1)
    assert "l4d2ctl reset 3" in done.stderr
    ctl(running, "reset 3")
    wait_for_server(running, 27015)
    assert read(running, "mine.txt") is None
    assert ctl(running, "doctor").stdout == "no problems found\n"


def failing(box: Box, call: str, words: str, code: int = 1) -> subprocess.CompletedProcess[str]:
    """Run l4d2ctl under this machine's strace, which has one of its system calls fail; it has to exit with `code`."""
    enter = ["nsenter", "--target", str(box.leader), "--all", "--", "/usr/local/sbin/l4d2ctl", *words.split()]
    command = ["strace", "-f", "-o", "/dev/null", "-e", f"inject={call}", *enter]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return without_job(words, done)


def keep_one(box: Box) -> None:
    """Remove all but the latest from the attic, as where `attic_keep` is 1."""
    program = "/usr/local/libexec/left4me/left4me-attic"
    clean_attic(box)  # which an undo may have started
    box.run(f"systemd-run -q --wait -p BindPaths={ATTIC}:/run/left4me-attic {program} 1 inf")


def reset_with(box: Box, text: str) -> None:
    """Reset server 3 while it has a file mine.txt; what the attic had of it before is gone."""
    box.run(f"systemctl start left4me-attic; rm -rf {ATTIC}/3@*")
    game_writes(box, "mine.txt", text)
    ctl(box, "reset 3")
    wait_for_server(box, 27015)
    game_writes(box, "mine.txt", "since")


def test_an_undo_that_fails_anywhere_keeps_what_it_brings_back(running: Box) -> None:
    for number in range(1, 10):
        reset_with(running, f"evening {number}")
        done = failing(running, f"rename:error=EIO:when={number}", "reset --undo 3", code=1 if number < 9 else 0)
        keep_one(running)
        if "nothing changed" in done.stderr:  # the plan was not written
            assert state(running, "3") == "active"
            ctl(running, "reset --undo 3")
        elif done.returncode:
            assert "its reset is not finished" in done.stderr
            assert state(running, "3") == "inactive"
            ctl(running, "reset 3")
        wait_for_server(running, 27015)
        assert read(running, "mine.txt") == f"evening {number}"
        [aside] = attic(running)
        assert running.run(f"cat {aside}/upper/left4dead2/mine.txt").stdout == "since\n"
        assert running.run(f"ls -A {RUNTIME}/3").stdout.split() == ["merged", "upper", "work"]
        assert ctl(running, "doctor").stdout == "no problems found\n"


def test_an_undo_is_finished_over_what_a_deploy_made_in_between(running: Box, inventory: Path) -> None:
    reset_with(running, "evening")
    kept = attic(running)[0]
    running.run(f"echo more >{kept}/more")  # nothing of ours: it goes with the rest
    failing(running, "rename:error=EIO:when=5", "reset --undo 3")
    assert running.run(f"ls {RUNTIME}/3").stdout.split() == ["merged", "reset", "undo"]
    deploy(inventory)
    assert running.run(f"ls -A {RUNTIME}/3/upper").stdout == ""
    assert running.run(f"cat {RUNTIME}/3/undo/upper/left4dead2/mine.txt").stdout == "evening\n"
    ctl(running, "reset 3")
    wait_for_server(running, 27015)
    assert read(running, "mine.txt") == "evening"
    clean_attic(running)
    assert running.run(f"ls -A {RUNTIME}/3").stdout.split() == ["merged", "upper", "work"]
    assert ".gone" not in running.run(f"ls -A {ATTIC}").stdout


def test_a_plan_that_a_power_cut_left_empty_is_none(running: Box) -> None:
    ctl(running, "stop 3")
    running.run(f": >{RUNTIME}/3/reset")
    ctl(running, "reset 3")
    assert len(attic(running)) == 1
    assert ctl(running, "doctor").stdout == "no problems found\n"


def test_an_undo_waits_for_a_reset_that_did_not_finish(running: Box) -> None:
    reset_with(running, "evening")
    failing(running, "rename:error=EIO:when=3", "reset 3")
    before = running.run(f"ls {ATTIC} {RUNTIME}/3; cat {RUNTIME}/3/reset").stdout
    done = ctl(running, "reset --undo 3", code=1)
    assert done.stderr == (
        "l4d2ctl: server 3: an earlier reset did not finish; run l4d2ctl reset 3 first, then --undo\n"
    )
    assert running.run(f"ls {ATTIC} {RUNTIME}/3; cat {RUNTIME}/3/reset").stdout == before
    ctl(running, "reset 3")
    ctl(running, "reset --undo 3")
    wait_for_server(running, 27015)
    assert read(running, "mine.txt") == "since"


@pytest.mark.parametrize("words", ["reset 3", "reset --undo 3"])
def test_of_two_resets_at_once_one_is_refused(running: Box, words: str) -> None:
    reset_with(running, "evening")
    clean_attic(running)
    before = attic(running)
    done = running.run(f"""
        l4d2ctl {words} & first=$!; l4d2ctl reset 3 & second=$!
        wait $first; a=$?; wait $second; echo $((a + $?))
    """)
    assert done.stdout.splitlines()[-1] == "3"
    assert done.stdout.count("in all") == 1
    what = "undo" if "--undo" in words else "reset"
    named = rf"l4d2ctl: server 3: job (\d+) \(({what}|reset) by root, since [\d:]+\) is running; "
    [line] = done.stderr.splitlines()
    assert re.fullmatch(rf"{named}follow it with: l4d2ctl jobs -f \1", line), line
    wait_for_server(running, 27015)
    assert len(set(attic(running)) - set(before)) == 1
    assert ctl(running, "doctor").stdout == "no problems found\n"


def test_a_stop_by_hand_holds_over_the_rest_of_a_reset(running: Box) -> None:
    with read_only_attic(running):
        ctl(running, "reset 3", code=1)
    ctl(running, "stop 3")
    ctl(running, "reset 3")
    assert state(running, "3") == "inactive"


def test_what_is_mounted_in_upper_goes_nowhere(running: Box) -> None:
    running.run(f"mkdir {RUNTIME}/3/upper/inside")
    ctl(running, "stop 3")
    running.run(f"mount -t tmpfs none {RUNTIME}/3/upper/inside")
    done = ctl(running, "reset 3", code=1)
    assert done.stderr == f"l4d2ctl: server 3: {RUNTIME}/3/upper/inside is mounted; umount {RUNTIME}/3/upper/inside\n"
    assert attic(running) == []
    running.run(f"umount {RUNTIME}/3/upper/inside")
    ctl(running, "reset 3")
    assert len(attic(running)) == 1


@pytest.mark.parametrize(
    "call",
    ["mkdir:error=ENOSPC:when=2", "mkdir:error=ENOSPC:when=3", "mkdir:error=ENOSPC:when=4", "mkdirat:error=ENOSPC"],
)
def test_a_disk_that_is_full_by_then_leaves_it_stopped_until_another_reset(running: Box, call: str) -> None:
    # The first mkdir is that of /run; then one in the attic, upper, work, and the way to what is kept.
    game_writes(running, "cfg/banned_user.cfg", "banned")
    done = failing(running, call, "reset 3")
    assert re.fullmatch(r"l4d2ctl: server 3 is stopped, .* No space left on device.*: l4d2ctl reset 3\n", done.stderr)
    assert state(running, "3") == "inactive"
    assert f"{RUNTIME}/3/merged" not in overlays(running)
    ctl(running, "reset 3")
    wait_for_server(running, 27015)
    assert read(running, "cfg/banned_user.cfg") == "banned"
    assert len(attic(running)) == 1
    assert ctl(running, "doctor").stdout == "no problems found\n"


@pytest.mark.parametrize(
    ("away", "back", "said"),
    [
        (f"mv {RUNTIME}/3 /run/3", f"mv /run/3 {RUNTIME}/3", f"{RUNTIME}/3 is not a directory: deploy this host"),
        ("usermod -l gone left4me-3", "usermod -l left4me-3 gone", "there is no user left4me-3: deploy this host"),
    ],
)
def test_one_that_a_deploy_has_not_made_is_told_and_the_others_are_reset(
    running: Box, away: str, back: str, said: str
) -> None:
    ctl(running, "stop 3")
    running.run(away)
    try:
        done = ctl(running, "reset --all", code=1)
    finally:
        running.run(back)
    assert done.stderr == f"l4d2ctl: server 3: {said}\n"
    assert done.stdout.startswith("server 4: ")


def test_several_at_once(running: Box) -> None:
    ctl(running, "start --all")
    said = ctl(running, "reset --all").stdout.splitlines()
    assert [line[:9] for line in said] == ["server 3:", "server 4:"]
    for port in (27015, 27016):
        wait_for_server(running, port)


HOSTILE = """
import os, sys
top = sys.argv[1]
os.makedirs(f"{top}/upper/left4dead2")
os.mkdir(f"{top}/work")
os.chdir(f"{top}/upper/left4dead2")
os.symlink("/var/lib/outside", "directory")
os.symlink("/var/lib/outside/file", "symlink")
os.symlink("directory", "loop")
os.link("/var/lib/outside/file", "hard")
for name in (b"\\n", b"-rf", b" ", b"\\xff\\xfe", b"*", b"0", b"1"):
    os.mkdir(name)
    open(name + b"/file", "w").close()
os.mkfifo("fifo")
os.mknod("whiteout", 0o600 | 0o020000, 0)
os.mkdir("bound")
os.mkdir("mounted")
os.mkdir("closed")
open("closed/file", "w").close()
os.chmod("closed/file", 0)
os.chmod("closed", 0)
for depth in range(3000):
    os.mkdir("deep" if depth else "deepest")
    os.chdir("deep" if depth else "deepest")
"""


def test_a_hostile_tree_leads_the_attic_nowhere(running: Box) -> None:
    old = f"{ATTIC}/3@20000101T000000.000000000"
    tree = f"{old}/upper/left4dead2"
    running.run("mkdir /var/lib/outside; echo content >/var/lib/outside/file")
    running.run(f"python3 - {old}", input=HOSTILE.encode())
    # Whoever owns it all, a game could have made it.
    running.run(f"chown -hR left4me-3 {tree}/closed; mount --bind /var/lib/outside {tree}/bound")
    running.run(f"mount --bind /var/lib/outside {old}/work")
    running.run(f"mount -t tmpfs none {tree}/mounted; echo in >{tree}/mounted/file; chown left4me-3 {tree}")
    before = running.run("stat -c '%n %i %U %a %s %y' /var/lib/outside /var/lib/outside/file").stdout
    for _ in range(2):
        ctl(running, "reset 3")
        clean_attic(running)
    gone = f"{ATTIC}/.gone-3@20000101T000000.000000000"
    stays = running.run(f"find {gone} -mindepth 1 -maxdepth 2 -printf '%f\\n' | sort").stdout.split()
    if running.debian == 12:
        # The program still has the mounts there: what they are on stays and is named, and the rest has gone.
        assert stays[1:] == ["bound", "file", "mounted", "work"]
        said = running.run("journalctl --sync; journalctl -q -o cat -u left4me-attic -n 5").stdout
        assert "Device or resource busy" in said
    else:
        assert not stays
    assert running.run("stat -c '%n %i %U %a %s %y' /var/lib/outside /var/lib/outside/file").stdout == before
    running.run(f"umount {gone}/*/bound {gone}/*/mounted {gone}/work; systemctl start left4me-attic", check=False)
    assert not running.run(f"ls -A {ATTIC} | grep -v '^[34]@20[2-9]' || true").stdout
    assert len(attic(running)) == 2
    assert running.run("stat -c '%n %i %U %a %s %y' /var/lib/outside /var/lib/outside/file").stdout == before
    assert running.run("cat /var/lib/outside/file; rm -r /var/lib/outside").stdout == "content\n"


def test_the_attic_finishes_what_a_killed_run_left(running: Box) -> None:
    old = f"{ATTIC}/3@20000101T000000.000000000"
    many = "for n in range(40000): open(f'{sys.argv[1]}/upper/{n}', 'w').close()"
    running.run(f"mkdir -p {old}/upper; python3 -c 'import sys\n{many.replace(chr(39), chr(34))}' {old}")
    for _ in range(2):
        running.run(f"mkdir {ATTIC}/3@20990101T00000$(ls {ATTIC} | wc -l).0")
    running.run(f"""
        systemctl start --no-block left4me-attic
        until [ -e {ATTIC}/.gone-3@20000101T000000.000000000 ]; do :; done
        systemctl kill --signal=KILL left4me-attic
    """)
    wait_for("it is dead", lambda: properties(running, "left4me-attic", "ActiveState")["ActiveState"] == "failed")
    assert properties(running, "left4me-attic.service", "Result")["Result"] == "signal"
    assert running.run(f"ls {ATTIC}/.gone-3@20000101T000000.000000000").stdout
    done = ctl(running, "reset --undo 3")
    assert ".gone" not in done.stdout
    clean_attic(running)
    assert ".gone" not in running.run(f"ls -A {ATTIC}").stdout
