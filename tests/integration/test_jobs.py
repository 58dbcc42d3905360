"""Jobs: who did what and how it ended, connections that go amid it, two commands at once, and restarts that wait."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import a2s
import pytest

from tests.boxes.boxes import Box
from tests.integration.ctl import (
    PASSWORD,
    RUNTIME,
    ctl,
    jobs,
    main_pid,
    rcon,
    refused,
    state,
    unit,
    wait_for_state,
)
from tests.integration.harness import assert_idle, deploy, properties, wait_for, wait_for_server
from tests.integration.test_reset import INTERRUPTED, slow_start
from tests.integration.test_verification import must_pass

JOBS = "/var/lib/left4me/jobs"
HELD = "/var/lib/left4me/held"


@pytest.fixture
def host(deployed: Box) -> Iterator[Box]:
    """The box with both servers running without players; afterwards nothing waits."""
    ctl(deployed, "start --all")
    for port in (27015, 27016):
        wait_for_server(deployed, port)
        rcon(deployed, port, "standin_players 0")
    yield deployed
    deployed.run("l4d2ctl start --all")
    wait_for("no job runs", lambda: not [each for each in jobs(deployed) if each["result"] in ("running", "waiting")])


@contextmanager
def typed(box: Box, words: str, *options: str, user: str = "") -> Iterator[subprocess.Popen[str]]:
    """Run l4d2ctl over a connection of its own, which is killed when the block ends."""
    name, sudo = (f"{box.name}-{user}", "sudo ") if user else (box.name, "")
    command = ["ssh", "-S", "none", *options, "-F", str(box.ssh_config), name, f"{sudo}l4d2ctl {words}"]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def gate(box: Box) -> Iterator[Callable[[], None]]:
    """Have each start of server 3 wait until the yielded function is called; the server does not run meanwhile."""
    folder = f"/run/systemd/system/{unit('3')}.d"
    wait = "+/usr/bin/nsenter --mount=/proc/1/ns/mnt -- /bin/sh -c 'read line </run/gate'"
    text = f"[Service]\nExecStartPre={wait}\n"
    box.run(f"mkfifo /run/gate; mkdir -p {folder}; cat >{folder}/gate.conf", input=text.encode())
    box.run("systemctl daemon-reload")
    away = f"rm -r {folder}; systemctl daemon-reload"
    opened = False

    def open_gate() -> None:
        nonlocal opened
        # A start that has not come to the gate yet would pass it after the reload, and nobody would read from it.
        waits = "pgrep -f '^/bin/sh -c read line </run/gate'"
        wait_for("the start waits", lambda: box.run(waits, check=False).returncode == 0)
        box.run(f"{away}; echo >/run/gate; rm /run/gate", timeout=20)
        opened = True

    try:
        yield open_gate
    finally:
        if not opened:
            box.run(f"{away}; timeout 1 sh -c 'echo >/run/gate'; rm /run/gate", check=False)


def job(box: Box, number: int) -> dict[str, Any]:
    """Return a job with its lines."""
    found: dict[str, Any] = json.loads(ctl(box, f"jobs {number} --json").stdout)
    return found


def ended(box: Box, number: int, result: str) -> dict[str, Any]:
    """Wait until a job has ended, and return it; it must have ended so."""
    wait_for(f"job {number} ends", lambda: job(box, number)["result"] not in ("running", "waiting"), 40)
    found = job(box, number)
    assert found["result"] == result, found
    return found


def begun(box: Box, words: str, result: str = "running") -> int:
    """Wait until a job of these words is the latest, and return its number."""
    wait_for(f"{words} is {result}", lambda: (jobs(box)[0]["words"], jobs(box)[0]["result"]) == (words, result))
    return int(jobs(box)[0]["job"])


def test_a_job_says_who_did_what_and_how_long_it_took(host: Box) -> None:
    before = float(host.run("date +%s.%N").stdout)
    done = host.run("sudo l4d2ctl --origin 'moving day' reset 3", user="admin")
    found = job(host, jobs(host)[0]["job"])
    assert before < found["begun"] < found["ended"] < float(host.run("date +%s.%N").stdout)
    assert (found["verb"], found["servers"], found["words"]) == ("reset", ["3"], "reset 3")
    assert (found["who"], found["origin"]) == ("admin", "moving day")
    assert (found["result"], found["error"], found["line_count"]) == ("succeeded", "", 1)
    assert [*found["steps"]] == ["stop", "reset", "start"]
    assert sum(found["steps"].values()) <= found["seconds"] <= found["ended"] - found["begun"] + 0.1
    [line] = found["lines"]
    last = f"job {found['job']} succeeded in {found['seconds']:.2f} s"
    assert done.stdout == f"{line}\n{last}\n"
    shown = ctl(host, f"jobs {found['job']}").stdout
    for text in (f"job {found['job']}: reset 3", "by admin (moving day)", last, line):
        assert text in shown
    heading, row = (text.split("\t") for text in ctl(host, "jobs").stdout.splitlines()[:2])
    assert heading == ["JOB", "BEGUN", "BY", "COMMAND", "RESULT", "SECONDS"]
    assert (row[0], row[2:5]) == (str(found["job"]), ["admin (moving day)", "reset 3", "succeeded"])
    assert host.run(f"stat -c '%a %U' {JOBS}; ls -A {JOBS} | grep -v '^[0-9]*.json$' || true").stdout == "700 root\n"


def test_each_command_that_changes_something_is_a_job_and_no_other(host: Box) -> None:
    last = jobs(host)[0]["job"]
    for words in ("status", "show 3", "attic", "holders 3", "rcon 3 status", "logs 3", "game status", "doctor", "jobs"):
        ctl(host, words)
    assert jobs(host)[0]["job"] == last
    ctl(host, "stop 3 4")
    ctl(host, "start 3")
    ctl(host, "restart 3")
    ctl(host, "reset 3")
    ctl(host, "reset --undo 3")
    ctl(host, "doctor --fix")
    ctl(host, "doctor --fix --json")
    assert "no other build" in ctl(host, "game rollback", code=1).stderr
    ctl(host, "start --all")
    found = jobs(host)[:9][::-1]
    assert [each["job"] for each in found] == [*range(last + 1, last + 10)]
    verbs = ["stop", "start", "restart", "reset", "undo", "doctor --fix", "doctor --fix", "game rollback", "start"]
    assert [each["verb"] for each in found] == verbs
    assert [each["servers"] for each in found[:3]] == [["3", "4"], ["3"], ["3"]]
    assert [[*each["steps"]] for each in found[:3]] == [["stop"], ["start"], ["stop", "start"]]
    assert [each["result"] for each in found] == ["succeeded"] * 7 + ["failed", "succeeded"]
    assert "no other build" in found[7]["error"]


# -- connections that go


@pytest.mark.parametrize("user", ["", "admin"])
@pytest.mark.parametrize("terminal", ["-T", "-tt"])
@pytest.mark.parametrize("words", ["reset 3", "restart 3"])
def test_a_connection_that_goes_ends_no_command(host: Box, words: str, terminal: str, user: str) -> None:
    with gate(host) as open_gate:
        with typed(host, words, terminal, user=user):
            number = begun(host, words)
            wait_for_state(host, "3", "activating")
        # Its sshd has gone, and whatever that sends has come.
        parent = f"ps -o ppid= -p $(pgrep -of '^(sudo|/usr/bin/python3) .*l4d2ctl {words}$')"
        wait_for("nobody listens to it", lambda: host.run(parent).stdout.strip() == "1")
        assert job(host, number)["result"] == "running"
        open_gate()
    found = ended(host, number, "succeeded")
    assert [*found["steps"]][-1] == "start"
    assert found["who"] == (user or "root")
    wait_for_server(host, 27015)
    wait_for("its process ends", lambda: host.run(f"pgrep -f 'l4d2ctl {words}$'", check=False).returncode == 1)


@pytest.mark.parametrize("number", ["HUP", "TERM", "PIPE"])
def test_a_signal_of_a_closing_session_ends_neither_it_nor_its_systemctl(host: Box, number: str) -> None:
    with gate(host) as open_gate, typed(host, "restart 3") as restarting:
        wait_for_state(host, "3", "activating")
        host.run(f"pkill -{number} -f 'l4d2ctl restart 3$'; pkill -{number} -f '^systemctl start left4me-server@3'")
        open_gate()
        assert restarting.wait(30) == 0
    ended(host, jobs(host)[0]["job"], "succeeded")


@pytest.mark.parametrize("closed", ["| true", ">&-", ">&- 2>&-"])
def test_an_output_that_nobody_reads_changes_no_exit_code(host: Box, closed: str) -> None:
    pid = main_pid(host, "3")
    assert host.run(f"l4d2ctl reset 3 {closed}; echo ${{PIPESTATUS[0]}}").stdout == "0\n"
    assert main_pid(host, "3") != pid
    found = ended(host, jobs(host)[0]["job"], "succeeded")
    assert "in all" in job(host, found["job"])["lines"][0]


@pytest.mark.parametrize("closed", ["| true", ">&-", ">/dev/full 2>&1"])
def test_a_long_command_needs_no_reader_either(host: Box, closed: str) -> None:
    ctl(host, "stop 4")
    host.run(f"mkdir {RUNTIME}/4/work/work")
    assert host.run(f"l4d2ctl doctor --fix {closed}; echo ${{PIPESTATUS[0]}}").stdout == "0\n"
    assert host.run(f"ls {RUNTIME}/4/work").stdout == ""
    found = ended(host, jobs(host)[0]["job"], "succeeded")
    assert found["verb"] == "doctor --fix"


def test_a_stop_whose_output_is_on_a_full_disk_stops(host: Box) -> None:
    host.run(f"mount -t tmpfs -o nr_inodes=1,mode=700 tmpfs {JOBS}")
    try:
        assert host.run("l4d2ctl stop 3 >/dev/full 2>&1; echo $?").stdout == "0\n"
    finally:
        host.run(f"umount {JOBS}")
    assert (state(host, "3"), host.run(f"ls {HELD}").stdout) == ("inactive", "3\n")


def test_ctrl_c_interrupts_it_and_the_record_says_so(host: Box) -> None:
    ctl(host, "reset 3")
    with slow_start(host):
        said = host.run("python3 - 3", input=INTERRUPTED.encode()).stdout
    assert said == "l4d2ctl: interrupted; run the same command again to finish it\n 130\n"
    ended(host, jobs(host)[0]["job"], "interrupted")
    ctl(host, "start 3")


def test_a_killed_command_was_interrupted(host: Box) -> None:
    with gate(host) as open_gate:
        with typed(host, "reset 3"):
            number = begun(host, "reset 3")
            wait_for_state(host, "3", "activating")
            host.run("pkill -KILL -f 'l4d2ctl reset 3$'")
        found = ended(host, number, "interrupted")
        assert (found["ended"], found["error"]) == (None, "")
        assert ctl(host, f"jobs -f {number}", code=1).stderr == f"job {number} was interrupted\n"
        open_gate()
    ctl(host, "restart 3")  # its lock went with it
    assert job(host, number)["result"] == "interrupted"


# -- two at once


def test_a_second_command_is_refused_by_name_and_changes_nothing(host: Box) -> None:
    pid = main_pid(host, "4")
    with gate(host) as open_gate, typed(host, "reset 3") as resetting:
        number = begun(host, "reset 3")
        wait_for_state(host, "3", "activating")
        for words in ("start 3", "restart 4 3", "reset 4 3", "reset --undo 3"):
            line = refused(ctl(host, words, code=3))
            assert f"server 3: job {number} (reset by root, since " in line
            assert line.endswith(f"is running; follow it with: l4d2ctl jobs -f {number}")
        assert jobs(host)[0]["job"] == number
        open_gate()
        assert resetting.wait(30) == 0
    assert main_pid(host, "4") == pid
    ctl(host, "restart 3")


@pytest.mark.parametrize("words", ["reset 3", "start 3", "restart 3"])
def test_a_stop_waits_for_what_runs_and_wins(host: Box, words: str) -> None:
    if words == "start 3":
        ctl(host, "stop 3")
    with gate(host) as open_gate, typed(host, words) as first:
        number = begun(host, words)
        wait_for_state(host, "3", "activating")
        with typed(host, "stop 3") as stopping:
            assert stopping.stderr
            assert stopping.stderr.readline().startswith(f"server 3: waiting for job {number} ({words[:-2]} by root, ")
            assert host.run(f"ls {HELD}").stdout == "3\n"
            assert state(host, "3") == "activating"
            open_gate()
            assert (first.wait(30), stopping.wait(30)) == (0, 0)
    assert (state(host, "3"), host.run(f"ls {HELD}").stdout) == ("inactive", "3\n")
    ended(host, number, "succeeded")
    assert jobs(host)[0]["verb"] == "stop"


def test_doctor_skips_a_server_that_a_command_changes(host: Box) -> None:
    ctl(host, "stop 3 4")
    host.run(f"mkdir {RUNTIME}/3/work/work {RUNTIME}/4/work/work")
    done = host.run("flock /run/left4me/3.job l4d2ctl doctor --fix", check=False)
    assert done.returncode == 1
    assert "server 3: another command (" in done.stderr
    assert host.run(f"ls -d {RUNTIME}/[34]/work/work").stdout == f"{RUNTIME}/3/work/work\n"
    ctl(host, "doctor --fix")
    assert host.run(f"ls -d {RUNTIME}/[34]/work/work", check=False).stdout == ""


# -- disks


@pytest.mark.parametrize(
    ("mount", "why"),
    [
        ("mount -t tmpfs -o size=4k,mode=700 tmpfs {0}; head -c 8k /dev/zero >{0}/fill", "No space left on device"),
        ("mount -t tmpfs -o nr_inodes=1,mode=700 tmpfs {0}", "No space left on device"),
        ("mount --bind {0} {0}; mount -o remount,bind,ro {0}", "Read-only file system"),
    ],
)
def test_a_record_that_cannot_be_written_stops_no_command(host: Box, mount: str, why: str) -> None:
    host.run(mount.format(JOBS), check=False)
    try:
        done = host.run("l4d2ctl stop 3")
        other = host.run("l4d2ctl reset 4")
        fixed = host.run("l4d2ctl doctor --fix")
    finally:
        host.run(f"umount {JOBS}")
    assert (state(host, "3"), host.run(f"ls {HELD}").stdout) == ("inactive", "3\n")
    for each in (done, other, fixed):
        [line] = each.stderr.splitlines()
        assert line.startswith("l4d2ctl: this command is not recorded: [Errno ")
        assert why in line
    assert done.stdout == ""
    assert "in all" in other.stdout
    assert fixed.stdout == "no problems found\n"


def test_a_lock_that_cannot_be_made_stops_no_stop(host: Box) -> None:
    host.run("rm -f /run/left4me/3.job; mkdir /run/left4me/3.job")
    try:
        assert "Is a directory" in ctl(host, "restart 3", code=1).stderr
        done = ctl(host, "stop 3")
    finally:
        host.run("rmdir /run/left4me/3.job")
    assert done.stderr.startswith("server 3: stopping it without its lock: ")
    assert state(host, "3") == "inactive"


# -- restarts that wait


WAITS = "restart --when-empty 3"


@contextmanager
def waiting(box: Box) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """Have somebody play on server 3, and a restart wait for him to leave."""
    rcon(box, 27015, "standin_players 1")
    with typed(box, WAITS) as process:
        yield begun(box, WAITS, "waiting"), process


def test_a_restart_that_waits_for_two_servers_waits_no_more_for_a_cancelled_one(host: Box) -> None:
    rcon(host, 27016, "standin_players 1")
    rcon(host, 27015, "standin_players 1")
    with typed(host, "restart --when-empty 3 4") as process:
        first = begun(host, "restart --when-empty 3 4", "waiting")
        assert f"cancelled job {first}," in ctl(host, "restart 3").stderr
        wait_for("its follower is told", lambda: "is cancelled" in " ".join(job(host, first)["lines"]))
        wait_for_server(host, 27015)
        rcon(host, 27015, "standin_players 1")
        with typed(host, WAITS):
            second = begun(host, WAITS, "waiting")
            assert "cancelled job" not in ctl(host, "restart 3").stderr.replace(f"cancelled job {second},", "")
        assert job(host, first)["result"] == "waiting"
        ctl(host, "stop 4")
        assert process.wait(30) == 1
    assert job(host, first)["result"] == "cancelled"


@pytest.mark.parametrize("words", ["stop 3", "start 3", "restart 3 4", "reset 3", "reset --undo 3"])
def test_a_restart_that_waits_is_cancelled_by_another_command(host: Box, words: str) -> None:
    if "--undo" in words:
        ctl(host, "reset 3")
        wait_for_server(host, 27015)
    pid = main_pid(host, "3")
    with waiting(host) as (number, process):
        assert main_pid(host, "3") == pid
        assert f"server 3: cancelled job {number}," in ctl(host, words).stderr
        out, err = process.communicate(timeout=30)
    cancels = jobs(host)[0]
    why = f"server 3: its restart is cancelled by job {cancels['job']} ({cancels['verb']} by root)"
    assert process.returncode == 1
    assert (
        out
        == f"job {number} is running; to follow it from elsewhere: l4d2ctl jobs -f {number}\nserver 3 has 1 player\n"
    )
    assert err == f"l4d2ctl: {why}\njob {number} was cancelled\n"
    found = ended(host, number, "cancelled")
    assert found["error"] == why
    assert (main_pid(host, "3") == pid) == (words == "start 3")
    assert host.run("ls /run/left4me/3.waiting", check=False).returncode


def test_a_second_one_is_refused_and_those_that_lost_their_connection_wait_on(host: Box) -> None:
    pid = main_pid(host, "3")
    with waiting(host) as (number, _process):
        line = refused(ctl(host, "restart --when-empty 4 3", code=1))
        assert f"server 3: job {number} waits to restart it already" in line
    assert job(host, number)["result"] == "waiting"
    assert jobs(host)[0]["job"] == number
    ctl(host, "restart 4")  # no business of the other
    with typed(host, f"jobs -f {number}") as follower:
        assert follower.stdout
        assert follower.stdout.readline() == "server 3 has 1 player\n"
        assert main_pid(host, "3") == pid
        ctl(host, "start 3")
        assert follower.wait(20) == 1


def test_neither_verification_nor_a_deploy_minds_one_that_waits(host: Box, inventory: Path) -> None:
    with waiting(host) as (number, _process):
        must_pass(inventory)
        assert_idle(deploy(inventory), [host])
        assert ctl(host, "doctor").stdout == "no problems found\n"
        assert job(host, number)["result"] == "waiting"


def test_it_restarts_once_nobody_has_played_for_a_minute(host: Box) -> None:
    before = {server: main_pid(host, server) for server in "34"}
    with waiting(host) as (number, process):
        rcon(host, 27015, "standin_players 0")
        out, _err = process.communicate(timeout=120)
    assert process.returncode == 0
    assert out.splitlines()[1:3] == ["server 3 has 1 player", "server 3 has 0 players"]
    found = ended(host, number, "succeeded")
    assert found["seconds"] > 60
    assert main_pid(host, "3") != before["3"]
    assert main_pid(host, "4") == before["4"]
    wait_for_server(host, 27015)


def test_a_server_that_does_not_run_is_skipped(host: Box) -> None:
    host.run("systemctl stop left4me-server@3")
    assert ctl(host, "restart --when-empty 3").stderr == "server 3 is not running; skipped\n"
    assert state(host, "3") == "inactive"


def test_a_shutdown_waits_for_no_player(host: Box) -> None:
    with waiting(host) as (number, _process):
        host.reboot()
    assert job(host, number)["result"] == "interrupted"
    wait_for_server(host, 27015)


# -- what others read


def test_the_status_comes_again_with_each_change(host: Box) -> None:
    with typed(host, "status --json --follow") as following:
        assert following.stdout
        first = json.loads(following.stdout.readline())
        assert first.keys() == {"servers", "jobs", "builds", "update", "host"}
        assert first["servers"] == json.loads(ctl(host, "status --json").stdout)
        assert first["builds"] == json.loads(ctl(host, "game status --json").stdout)
        assert first["jobs"] == jobs(host)[:20]
        assert (first["host"], first["update"]) == (host.name, "")
        ctl(host, "stop 4")
        lines = (line for line in map(json.loads, following.stdout) if line["jobs"][0]["words"] == "stop 4")
        assert next(line for line in lines if line["jobs"][0]["ended"])["servers"][1]["held"]
    is_over = lambda: host.run("pgrep -f 'l4d2ctl status --json --follow$'", check=False).returncode == 1  # noqa: E731
    wait_for("it ends with its reader", is_over)


def test_who_follows_a_job_that_says_nothing_ends_with_its_reader(host: Box) -> None:
    with waiting(host) as (number, _process):
        follows = f"pgrep -f 'l4d2ctl jobs -f {number}$'"
        with typed(host, f"jobs -f {number}"):
            wait_for("it follows", lambda: host.run(follows, check=False).returncode == 0)
        wait_for("it ends with its reader", lambda: host.run(follows, check=False).returncode == 1)
        assert job(host, number)["result"] == "waiting"


def test_show_tells_all_of_a_server_but_its_password(host: Box) -> None:
    rcon(host, 27015, "standin_players 2", "standin_bots 1")
    done = ctl(host, "show 3 --json").stdout
    found = json.loads(done)
    assert found["status"] == next(row for row in json.loads(ctl(host, "status --json").stdout) if row["id"] == "3")
    outside = a2s.players((str(host.address), 27015), timeout=2)
    assert {(each["name"], each["score"]) for each in found["players"]} == {(each.name, each.score) for each in outside}
    assert [each["seconds"] for each in found["players"]] == sorted(
        (each["seconds"] for each in found["players"]), reverse=True
    )
    shown = properties(host, unit("3"), "MemoryMax", "CPUWeight", "Nice")
    assert {key: str(value) for key, value in found["limits"].items()} == {
        "memory_max": shown["MemoryMax"],
        "cpu_weight": shown["CPUWeight"],
        "nice": shown["Nice"],
    }
    assert found["attic"] == json.loads(ctl(host, "attic 3 --json").stdout)
    [layer] = found["layers"]
    assert f"/overlays/layer/{layer['version']}" in Path(f"/proc/{host.leader}/mountinfo").read_text(encoding="utf-8")
    assert found["declared"]["server.cfg"] == host.run("cat /etc/left4me/servers/3/server.cfg").stdout
    assert found["address"].endswith(":27015")
    assert PASSWORD not in done
    sheet = ctl(host, "show 3").stdout
    assert "players  2 of 8" in sheet
    assert "Player 2, 2 min" in sheet
    ctl(host, "stop 3")
    assert json.loads(ctl(host, "show 3 --json").stdout)["players"] is None
