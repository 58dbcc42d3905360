"""rollout.py on a fleet of three: waves, restarts when nobody plays, a stop at the first bad sign, and the way on."""

from __future__ import annotations

import getpass
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path

import pytest

from left4me.rollout.report import FINISHING
from tests.boxes import boxes as machines
from tests.boxes import deployed, network
from tests.boxes.boxes import Box
from tests.integration.ctl import LAYER, LAYERS, ctl, jobs, main_pid, rcon, state
from tests.integration.harness import (
    ROOT,
    SERVERS,
    SILENCE,
    checkout,
    deploy,
    impatient_checkout,
    listing,
    name_over_a2s,
    properties,
    pyinfra,
    standing,
    wait_for,
    wait_for_server,
)
from tests.integration.rolling import Fleet, Running, hostname, report
from tests.integration.test_lock import PLACE, held, is_free
from tests.integration.trap import Trap, command_line, frozen, is_stopped, sshd

SERVER_CFG = r"servers/3/\.server\.cfg"


@pytest.fixture(scope="module")
def boxes(debian: int, reports: None) -> Iterator[list[Box]]:
    """Three boxes of one Debian, in the order of the rollout: the canary is the inventory's second."""
    names = [f"test-roll-{which}-{debian}" for which in "bac"]
    there = {each.name: each for each in deployed.up(names, debian)}
    yield [there[name] for name in names]
    machines.down(names)


@pytest.fixture(scope="module")
def fleet3(boxes: list[Box], tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    return Fleet(boxes, tmp_path_factory.mktemp("fleet") / "inventory")


@pytest.fixture(scope="module")
def rolled(fleet3: Fleet) -> Fleet:
    """The fleet after its first rollout."""
    fleet3.rollout("-y", "--waves", "100%")
    return fleet3


@pytest.fixture
def up(rolled: Fleet) -> Iterator[Fleet]:
    """The fleet, declared as at first; afterwards it is so again, whatever a test declared."""
    rolled.declare()
    yield rolled
    rolled.declare()
    deploy(rolled.path)
    with ThreadPoolExecutor(len(rolled.boxes)) as pool:
        list(pool.map(lambda box: ctl(box, "restart --all"), rolled.boxes))
    for box in rolled.boxes:
        for port in (27015, 27016):
            wait_for_server(box, port)


# -- before anything is changed


def test_what_cannot_begin_is_refused(rolled: Fleet, tmp_path: Path) -> None:
    rolled.declare({"hostname": "never"})
    before = [standing(box) for box in rolled.boxes]
    nobody = rolled.rollout("-y", "--limit", "nobody", code=2)
    assert "refused: --limit and --exclude select no host; the inventory has: test-roll-a" in nobody
    group = rolled.rollout("-y", "--limit", "canary", "--limit", "eu", code=2)
    assert "refused: --limit eu: the inventory has no such host or group" in group
    assert "is not a wave size" in rolled.rollout("--waves", "some", code=2)
    assert "refused: cannot ask for confirmation: standard input is closed; use -y" in rolled.rollout(code=2)
    namesake = Fleet(rolled.boxes, tmp_path / "namesake")
    with namesake.path.open("a", encoding="utf-8") as file:
        file.write(f"globals()[{rolled.canary.name!r}] = [{rolled.others[0].name!r}]\n")
    assert f"refused: {rolled.canary.name}: a host and a group have the same name" in namesake.rollout("-y", code=2)
    # A host at whose port nobody listens, beside three that can be reached.
    gone = Fleet(rolled.boxes, tmp_path / "inventory")
    with gone.path.open("a", encoding="utf-8") as file:
        file.write("down = [('gone', dict(boxes[0][1], ssh_port=1))]\n")
    said = gone.rollout("-y", code=2)
    assert "refused: gone: Could not connect" in said
    assert "--exclude" in said
    assert gone.rollout("--dry", "--exclude", "gone").count(" of 3\n") == 3
    assert [standing(box) for box in rolled.boxes] == before


def test_dry_shows_the_plan_and_changes_nothing(rolled: Fleet) -> None:
    rolled.declare({"hostname": "never"})
    before = [standing(box) for box in rolled.boxes]
    said = rolled.rollout("--dry")
    assert [standing(box) for box in rolled.boxes] == before
    places = [said.index(f"  {box.name}: Write the servers' files") for box in rolled.boxes]
    assert places == sorted(places)
    assert "restart" not in said


def test_dry_names_the_servers_that_will_require_a_restart(rolled: Fleet, tmp_path: Path) -> None:
    def named(*words: str) -> list[str]:
        said = rolled.rollout("--dry", *words)
        return [line.partition("restart")[2].split(": ")[1] for line in said.splitlines() if "restart" in line]

    rolled.declare({"tickrate": 60})
    assert named() == ["3"] * 3
    changed = shutil.copytree(ROOT / LAYERS[LAYER]["path"], tmp_path / "layer")
    (changed / "changed").touch()
    rolled.declare(layers={LAYER: {"source": "control", "path": str(changed)}})
    assert named("--limit", "canary") == ["3, 4"]
    rolled.declare({"layers": []}, layers={LAYER: {"source": "control", "path": str(changed)}})
    assert named("--limit", "canary") == ["3, 4"]
    rolled.declare({"layers": []})
    assert named("--limit", "canary") == ["3"]


# -- a whole rollout


def test_a_whole_rollout_goes_wave_by_wave(rolled: Fleet) -> None:
    rolled.declare({"hostname": "evening", "tickrate": 60})
    before = [main_pid(box, "3") for box in rolled.boxes]
    others = [main_pid(box, "4") for box in rolled.boxes]
    told = report(rolled.rollout("-y"))
    assert told["waves"] == [[box.name] for box in rolled.boxes]
    assert told["exit"] == 0
    ends = [["lock", "deploy", "restart", "verify"]] * 3
    assert [[step["step"] for step in told["hosts"][box.name]["steps"]] for box in rolled.boxes] == ends
    assert {step["result"] for host in told["hosts"].values() for step in host["steps"]} == {"done"}
    # Each step begins where the one before has ended, and no host before the whole of the wave before it.
    steps = [step for box in rolled.boxes for step in told["hosts"][box.name]["steps"]]
    begun = [datetime.fromisoformat(each).timestamp() for each in (*(step["started"] for step in steps), told["ended"])]
    ended = [start + step["seconds"] for start, step in zip(begun[:-1], steps, strict=True)]
    assert all(-1.1 < after - end < 5 for end, after in zip(ended, begun[1:], strict=True)), told
    # By the hosts' own clocks, which are one: the next wave's files are younger than the servers of the wave before.
    since, key = time.time() - time.monotonic(), "ExecMainStartTimestampMonotonic"
    started = [since + int(properties(box, "left4me-server@3", key)[key]) / 1e6 for box in rolled.boxes]
    written = [float(box.run("stat -c %.9Z /etc/left4me/servers/3/server.env").stdout) for box in rolled.boxes]
    assert sorted(started + written) == [each for pair in zip(written, started, strict=True) for each in pair]
    assert {hostname(box) for box in rolled.boxes} == {"evening"}
    assert not set(before) & {main_pid(box, "3") for box in rolled.boxes}
    # Nothing changed about server 4.
    assert [main_pid(box, "4") for box in rolled.boxes] == others
    for box in rolled.boxes:
        [job] = [each for each in jobs(box) if each["origin"]]
        assert job["origin"] == f"rollout by {getpass.getuser()}@{socket.gethostname()}"
        assert (job["words"], job["result"]) == ("restart --unless-stopped 3", "succeeded")


def test_nothing_to_do_changes_and_restarts_nothing(rolled: Fleet) -> None:
    before = [standing(box) for box in rolled.boxes]
    said = rolled.rollout("-y")
    assert [standing(box) for box in rolled.boxes] == before
    assert "Done and verified: 3 hosts." in said


# -- the canary breaks


def closer(said: str) -> list[str]:
    """Return the command that a rollout proposes for a closer look."""
    [line] = [line for line in said.splitlines() if line.startswith("  look closer: ")]
    return shlex.split(line.removeprefix("  look closer: "))


def test_a_failed_check_stops_it_and_after_repair_the_same_command_completes(up: Fleet) -> None:
    up.canary.run("chmod o+w /usr/local/libexec")
    up.declare({"hostname": "morning"})
    before = [standing(box) for box in up.others]
    try:
        said = up.rollout("-y", code=1)
    finally:
        up.canary.run("chmod o-w /usr/local/libexec")
    assert [standing(box) for box in up.others] == before
    assert f"{up.canary.name} failed at verify:" in said
    assert f"test_nobody_but_root_can_change_what_root_runs[{up.canary.name}]" in said
    assert "/usr/local/libexec" in said
    assert f"Stopped. Untouched: {', '.join(box.name for box in up.others)}." in said
    assert report(said)["exit"] == 1
    only = ["--inventory", str(up.path), "--limit", up.canary.name]
    assert closer(said) == ["pytest", "tests/deployed", *only, "-k", "test_nobody_but_root_can_change_what_root_runs"]
    up.rollout("-y")
    assert {hostname(box) for box in up.boxes} == {"morning"}


def test_a_server_that_cannot_start_stops_it(up: Fleet) -> None:
    up.declare({"arguments": ["+standin_exit_at_start", "7"]})
    before = [standing(box) for box in up.others]
    said = up.rollout("-y", "--grace", "8s", code=1)
    assert [standing(box) for box in up.others] == before
    assert f"{up.canary.name} failed at restart:\n    server 3" in said
    assert "status=7" in said
    assert closer(said)[0] == "ssh"
    assert closer(said)[-1] == "l4d2ctl status"
    up.declare({"hostname": "repaired"})
    up.rollout("-y")
    assert name_over_a2s(up.canary, 27015) == "repaired"
    assert {hostname(box) for box in up.boxes} == {"repaired"}


def test_a_host_that_cannot_be_deployed_stops_it(up: Fleet) -> None:
    up.declare({"hostname": "noon"})
    before = [standing(box) for box in up.others]
    folder = "/run/systemd/system/left4me-server@3.service.d"
    broken = f"mkdir -p {folder} && printf '[Service]\\nExecStartPre=/bin/false\\n' >{folder}/broken.conf"
    up.canary.run(f"{broken} && systemctl daemon-reload && systemctl stop left4me-server@3")
    try:
        said = up.rollout("-y", code=1)
    finally:
        up.canary.run(f"rm -r {folder} && systemctl daemon-reload")
    assert [standing(box) for box in up.others] == before
    assert f"{up.canary.name} failed at deploy:" in said
    assert "last operation: Start the servers that are not running" in said
    assert "code=exited, status=1" in said
    assert report(said)["hosts"].keys() == {up.canary.name}
    assert closer(said) == ["pyinfra", str(up.path), "--limit", up.canary.name, "deploy.py"]
    up.rollout("-y")
    assert {hostname(box) for box in up.boxes} == {"noon"}
    assert name_over_a2s(up.canary, 27015) == "noon"  # only there it was started anew


@contextmanager
def full_disk(box: Box) -> Iterator[None]:
    """Have no room left below /etc/left4me, which is a small filesystem for so long."""
    small = "/run/small"
    box.run(f"""
        mkdir -p {small}; mount -t tmpfs -o mode=755,size=1M small {small}; cp -a /etc/left4me/. {small}
        mount --bind {small} /etc/left4me; head -c 2M /dev/zero >/etc/left4me/servers/.fill 2>/dev/null; true
    """)
    try:
        yield
    finally:
        box.run(f"umount /etc/left4me {small}; rmdir {small}")


def test_a_full_disk_stops_it(up: Fleet) -> None:
    up.declare({"hostname": "full"})
    before = [standing(box) for box in up.others]
    with full_disk(up.canary):
        said = up.rollout("-y", code=1)
    assert [standing(box) for box in up.others] == before
    assert f"{up.canary.name} failed at deploy:" in said
    assert "No space left on device" in said
    up.rollout("-y")
    assert {hostname(box) for box in up.boxes} == {"full"}


def test_a_host_that_vanishes_stops_it(up: Fleet) -> None:
    up.declare({"hostname": "back"}, _timeout=60)
    before = [standing(box) for box in up.others]
    with Trap(up.canary, "fsync") as trap, up.started("-y") as running:
        trap.landing(SERVER_CFG, PLACE)
        up.canary.crash()
        said = running.end(1, limit=120)
    assert [standing(box) for box in up.others] == before
    assert f"{up.canary.name} failed at deploy:" in said
    assert "last operation: Write the servers' files" in said
    assert "the connection was lost" in said
    up.canary.start()
    up.rollout("-y")
    assert {hostname(box) for box in up.boxes} == {"back"}


@contextmanager
def unplugged(box: Box) -> Iterator[None]:
    """Have a box's cable carry nothing: nobody is told that a connection has ended."""
    cable = network.veth(box.index)
    subprocess.run(["ip", "link", "set", cable, "down"], check=True)
    try:
        yield
    finally:
        subprocess.run(["ip", "link", "set", cable, "up"], check=True)


@pytest.mark.parametrize("how", ["frozen", "unplugged"])
def test_a_host_that_hangs_stops_it(up: Fleet, how: str, tmp_path: Path) -> None:
    up.declare({"hostname": how}, _timeout=3600)
    before = [standing(box) for box in up.others]
    with ExitStack() as rolling:
        with Trap(up.canary, "fsync") as trap:
            running = rolling.enter_context(up.started("-y", checkout=impatient_checkout(tmp_path / "here")))
            command = trap.landing(SERVER_CFG, PLACE)
        wait_for("the command stands", lambda: is_stopped(command))
        if how == "unplugged":
            rolling.callback(os.kill, command, signal.SIGCONT)
        rolling.enter_context(frozen(sshd(up.canary)) if how == "frozen" else unplugged(up.canary))
        said = running.end(1, limit=120)
    assert [standing(box) for box in up.others] == before
    assert f"{up.canary.name} failed at deploy:" in said
    assert "last operation: Write the servers' files" in said
    assert f"no answer for {SILENCE} s; closing the connection" in said
    up.rollout("-y")
    assert {hostname(box) for box in up.boxes} == {how}


# -- one at a time


@contextmanager
def draining(up: Fleet, tickrate: int, players: int = 1) -> Iterator[Running]:
    """Have a rollout of the canary, with another tickrate, that waits for the players of its server 3 to leave."""
    wait_for_server(up.canary, 27015)
    rcon(up.canary, 27015, f"standin_players {players}")
    up.declare({"tickrate": tickrate})
    with up.started("-y", "--limit", up.canary.name) as running:
        running.wait_for_line(f"restart: server 3 has {players} players")
        yield running


def test_of_two_rollouts_at_once_exactly_one_goes_on(up: Fleet) -> None:
    up.declare({"hostname": "one of two"})
    words = ("-y", "--waves", "100%")
    with up.started(*words) as one, up.started(*words) as two:
        ended = {each.process.wait(300): each for each in (one, two)}
        assert sorted(ended) == [0, 2]
        refused = ended[2].end(2)
    assert f"{up.canary.name} failed at lock:" in refused
    assert "is being deployed by" in refused
    assert f"Refused. Untouched: {', '.join(box.name for box in up.boxes)}." in refused
    assert {hostname(box) for box in up.boxes} == {"one of two"}


def test_a_rollout_against_a_deploy(up: Fleet) -> None:
    canary = up.canary
    with draining(up, 44) as running:
        seen = standing(canary)
        second = pyinfra(up.path, "deploy.py", "-y", "--limit", canary.name)
        assert second.returncode == 1
        assert "refused, nothing changed: is being deployed by" in second.stderr
        assert standing(canary) == seen
        rcon(canary, 27015, "standin_players 0")
        running.end(0)
    up.declare({"hostname": "late"})
    seen = standing(canary)
    with held(canary):
        said = up.rollout("-y", code=2)
    assert "is being deployed by olga@desk" in said
    assert standing(canary) == seen


def test_what_lost_its_lock_restarts_nothing(up: Fleet) -> None:
    canary, before = up.canary, main_pid(up.canary, "3")
    with draining(up, 33) as running:
        running.process.send_signal(signal.SIGSTOP)  # else it may take the lock again first
        canary.run("pkill -f 'holder.py REQUEST'")
        wait_for("the lock is free", lambda: is_free(canary), 10)
        with held(canary):
            running.process.send_signal(signal.SIGCONT)
            rcon(canary, 27015, "standin_players 0")
            said = running.end(1, limit=30)
    assert f"{canary.name} failed at restart:\n    its lock was lost\n    is being deployed by olga@desk" in said
    assert main_pid(canary, "3") == before


def test_a_host_that_does_not_let_go_of_its_lock_holds_up_no_end(up: Fleet) -> None:
    canary = up.canary
    with draining(up, 47) as running:
        canary.run("pkill -STOP -f 'holder.py REQUEST'")
        try:
            rcon(canary, 27015, "standin_players 0")
            assert "Done and verified: 1 host." in running.end(0, limit=120)
        finally:
            canary.run("pkill -CONT -f 'holder.py REQUEST'")
    wait_for("the lock is free", lambda: is_free(canary), 10)


def test_a_short_loss_of_the_connection_is_waited_out(up: Fleet) -> None:
    canary = up.canary
    with draining(up, 55) as running:
        canary.run("systemctl stop ssh && pkill -f '[h]older.py REQUEST'")
        try:
            running.wait_for_line("restart: host", "refused")
        finally:
            canary.run("systemctl start ssh")  # over the connection that was there before
        rcon(canary, 27015, "standin_players 0")
        assert "restarted server 3 (no players)" in running.end(0)


# -- players


def test_nobody_is_thrown_out_and_the_restart_follows_when_they_left(up: Fleet) -> None:
    canary = up.canary
    before, other = main_pid(canary, "3"), main_pid(canary, "4")
    with draining(up, 100, players=2) as running:
        # More looks than the quiet time has.
        assert running.process.poll() is None
        rcon(canary, 27015, "standin_players 0")
        rcon(canary, 27015, "standin_players 1")
        assert main_pid(canary, "3") == before
        rcon(canary, 27015, "standin_players 0")
        wait_for("server 3 is restarted", lambda: main_pid(canary, "3") not in (before, "0"), limit=60)
        said = running.end(0)
    assert "restarted server 3 (no players)" in said
    assert main_pid(canary, "4") == other


@pytest.mark.parametrize("drain", ["6s", "0"])
def test_at_the_deadline_it_is_said_and_done(up: Fleet, drain: str) -> None:
    canary = up.canary
    wait_for_server(canary, 27015)
    rcon(canary, 27015, "standin_players 2")
    before = main_pid(canary, "3")
    up.declare({"tickrate": 66})
    said = up.rollout("-y", "--limit", canary.name, "--drain", drain)
    assert "restarted server 3 (2 players, warned)" in said
    assert main_pid(canary, "3") not in (before, "0")
    logs = "/var/lib/left4me/runtime/3/upper/left4dead2/logs"
    assert 'say "This server restarts now' in canary.run(f"cat {logs}/*").stdout


def test_a_slow_start_is_waited_for_as_long_as_the_grace(up: Fleet) -> None:
    up.declare({"arguments": ["+standin_start_delay", "5"]})
    assert "restarted server 3 (no players)" in up.rollout("-y", "--limit", up.canary.name, "--grace", "15s")
    up.declare({"arguments": ["+standin_start_delay", "3600"]})
    said = up.rollout("-y", "--limit", up.canary.name, "--grace", "3s", code=1)
    assert f"{up.canary.name} failed at restart:\n    server 3: active, no answer (for 3 s)" in said


def test_a_port_goes_from_one_server_to_another(up: Fleet) -> None:
    up.servers = {**SERVERS, "5": {**SERVERS["3"], "hostname": "five"}}
    up.declare({"port": 27019})
    try:
        said = up.rollout("-y", "--limit", up.canary.name)
    finally:
        up.servers = SERVERS
    assert "restarted server 3 (no players); started server 5" in said
    assert name_over_a2s(up.canary, 27015) == "five"
    assert name_over_a2s(up.canary, 27019) == SERVERS["3"]["hostname"]


def test_without_restarts_all_is_proved_but_what_waits_for_one(up: Fleet) -> None:
    up.declare({"tickrate": 90, "port": 27019})
    before = main_pid(up.canary, "3")
    said = up.rollout("-y", "--no-restart", "--limit", up.canary.name)
    assert main_pid(up.canary, "3") == before
    assert f"{up.canary.name}\t3\trestart required (port, tickrate)\t" in said
    assert "Done and verified: 1 host; 1 pending." in said


def test_without_restarts_a_port_stays_where_it_is_and_the_rest_is_proved(up: Fleet) -> None:
    up.servers = {**SERVERS, "5": {**SERVERS["3"], "hostname": "five"}}
    up.declare({"port": 27019})
    try:
        said = up.rollout("-y", "--no-restart", "--limit", up.canary.name)
    finally:
        up.servers = SERVERS
    assert f"{up.canary.name}\t3\trestart required (port)\t" in said
    assert f"{up.canary.name}\t5\tport 27015 is still held by server 3\t" in said
    assert "Done and verified: 1 host; 2 pending." in said
    assert name_over_a2s(up.canary, 27015) == SERVERS["3"]["hostname"]


# -- Ctrl-C


def test_ctrl_c_ends_the_waiting_and_the_same_command_completes(up: Fleet) -> None:
    canary = up.canary
    wait_for_server(canary, 27015)
    rcon(canary, 27015, "standin_players 2")
    before = main_pid(canary, "3")
    up.declare({"tickrate": 50})
    others = [standing(box) for box in up.others]
    with up.started("-y") as running:
        running.wait_for_line("restart: server 3 has 2 players")
        running.process.send_signal(signal.SIGINT)
        said = running.end(130, limit=30)
    assert "Interrupted. Untouched" in said
    assert main_pid(canary, "3") == before
    assert [standing(box) for box in up.others] == others
    rcon(canary, 27015, "standin_players 0")
    up.rollout("-y")
    assert before not in (main_pid(canary, "3"), "0")


def test_ctrl_c_lets_a_deploy_finish_and_twice_does_not(up: Fleet) -> None:
    up.declare({"hostname": "once"})
    with up.started("-y") as running:
        running.wait_for_line("wave 1", "deploy: started")
        running.process.send_signal(signal.SIGINT)
        said = running.end(130)
    assert f"wave 1  {up.canary.name}  deploy: done" in said
    assert hostname(up.canary) == "once"
    assert hostname(up.others[0]) != "once"
    with up.started("-y") as running:
        running.wait_for_line("wave 1", "deploy: started")
        running.process.send_signal(signal.SIGINT)
        running.wait_for_line("Interrupted")
        running.process.send_signal(signal.SIGINT)
        said = running.end(130, limit=20)
    assert "deploy: done" not in said


def test_on_a_terminal_a_table_shows_what_goes_on_and_its_ctrl_c_is_the_rollouts_alone(up: Fleet) -> None:
    canary, second = up.canary, up.others[0]
    wait_for_server(canary, 27015)
    rcon(canary, 27015, "standin_players 2")
    up.declare({"hostname": "seen", "tickrate": 88})
    with OnTerminal(up) as screen:
        wait_for("the question", lambda: "Go on? [y/N]" in screen.text, 120)
        screen.type("y\n")
        row = rf"WAVE +HOST +STEP +TIME\s+1 +{canary.name} +restart +\d+ s +server 3 has 2 players\s*$"
        wait_for("the table", lambda: any(re.match(row, frame) for frame in screen.frames()), 120)
        with Trap(second, "fsync") as trap:
            rcon(canary, 27015, "standin_players 0")
            command = trap.landing(SERVER_CFG, PLACE)
            screen.type("\x03")
            # It stays there while the table is drawn anew.
            wait_for("the answer", lambda: [FINISHING in frame for frame in screen.frames()[-3:]] == [True] * 3)
        wait_for("the command stands", lambda: is_stopped(command))
        os.kill(command, signal.SIGCONT)
        assert screen.process.wait(60) == 130
        wait_for("the end", lambda: "Report: " in screen.text)
    assert f"wave 2  {second.name}  deploy: done" in screen.text
    assert hostname(second) == "seen"
    assert f"Untouched: {up.others[1].name}." in screen.text
    assert "WAVE" not in screen.frames()[-1]


class OnTerminal:
    """A rollout on a terminal of its own, whose foreground it is."""

    def __init__(self, fleet: Fleet) -> None:
        self._mine, its = os.openpty()
        termios.tcsetwinsize(its, (40, 160))
        command = ["setsid", "--ctty", sys.executable, "rollout.py", str(fleet.path), "--quiet", "2s"]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=its, stdout=its, stderr=its)
        os.close(its)
        self.text = ""
        self._reading = threading.Thread(target=self._read)

    def __enter__(self) -> OnTerminal:
        self._reading.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._reading.join()
        os.close(self._mine)

    def _read(self) -> None:
        with suppress(OSError):  # nobody has the other end any more
            while data := os.read(self._mine, 4096):
                self.text += data.decode().replace("\r\n", "\n")

    def type(self, text: str) -> None:
        os.write(self._mine, text.encode())

    def frames(self) -> list[str]:
        """Return what was to be seen from each time that the table was taken away."""
        return self.text.split("\x1b[J")


# -- killed

NEW = {"tickrate": 77, "hostname": "new"}


@pytest.fixture(scope="module")
def undisturbed(rolled: Fleet) -> list[list[str]]:
    """What a rollout that nobody disturbs makes of each host."""
    rolled.declare(NEW)
    rolled.rollout("-y", "--waves", "100%")
    return [listing(box) for box in rolled.boxes]


@pytest.mark.parametrize("step", ["lock", "verify"])
def test_a_killed_rollout_is_completed_by_the_same_command(undisturbed: list[list[str]], up: Fleet, step: str) -> None:
    up.rollout("-y", "--waves", "100%", "--drain", "0")
    up.declare(NEW)
    with up.started("-y", "--waves", "100%") as running:
        running.wait_for_line("wave 1", f"{step}: started")
        running.process.kill()
    assert_completed(up, undisturbed)


def test_one_killed_while_it_deploys_is_completed_by_the_same_command(undisturbed: list[list[str]], up: Fleet) -> None:
    up.rollout("-y", "--waves", "100%", "--drain", "0")
    up.declare(NEW)
    with up.started("-y", "--waves", "100%") as running:
        with Trap(up.canary, "fsync") as trap:
            command = trap.landing(SERVER_CFG, PLACE)
        running.process.kill()
    wait_for("the command stands", lambda: is_stopped(command))
    assert hostname(up.canary) != "new"
    os.kill(command, signal.SIGCONT)
    assert_completed(up, undisturbed)


def test_one_killed_while_it_restarts_is_completed_by_the_same_command(undisturbed: list[list[str]], up: Fleet) -> None:
    up.rollout("-y", "--waves", "100%", "--drain", "0")
    before = main_pid(up.canary, "3")
    up.declare(NEW)
    with up.started("-y", "--waves", "100%") as running:
        running.wait_for_line(up.canary.name, "restarting server 3")
        wait_for(
            "the server stops",
            lambda: (main_pid(up.canary, "3"), state(up.canary, "3")) != (before, "active"),
        )
        running.process.kill()
    assert_completed(up, undisturbed)


def assert_completed(up: Fleet, undisturbed: list[list[str]]) -> None:
    wait_for("what it started has ended", lambda: not deploying(up.path), 20)
    up.rollout("-y", "--waves", "100%")
    assert [listing(box) for box in up.boxes] == undisturbed


def deploying(inventory: Path) -> list[str]:
    """Return the command lines of the pyinfra that deploy an inventory."""
    found = [command_line(int(each.name)) for each in Path("/proc").glob("[0-9]*")]
    return [line for line in found if f"pyinfra {inventory} deploy.py" in line]


# -- going back


def test_a_checkout_of_an_older_commit_brings_back_what_it_knew(up: Fleet, tmp_path: Path) -> None:
    tree = checkout(tmp_path / "tree")

    def git(*words: str) -> str:
        who = ["-c", "user.name=olga", "-c", "user.email=olga@desk"]
        return subprocess.run(["git", *who, *words], cwd=tree, capture_output=True, text=True, check=True).stdout

    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "Old")
    git("tag", "OLD")
    (tree / "files/lib/left4me_host/later.py").write_text('"""What only the newer state has."""\n')
    unit = tree / "templates/systemd/left4me-server@.service.j2"
    unit.write_text(f"# Of a later time.\n{unit.read_text()}")
    (tree / "files/layers/admins/left4dead2/later.txt").touch()
    git("add", ".")
    git("commit", "--quiet", "--message", "New")
    git("tag", "NEW")

    def rolled_out(commit: str) -> list[list[str]]:
        git("checkout", "--quiet", commit)
        up.rollout("-y", "--waves", "100%", checkout=tree)
        at = git("describe", "--always", "--exclude=*")
        assert {box.run("cat /etc/left4me/revision").stdout for box in up.boxes} == {at}
        return [listing(box) for box in up.boxes]

    up.declare({"admins": ["STEAM_1:0:1"]}, operators="admin")
    before = rolled_out("OLD")
    there = "test -e /usr/local/lib/left4me/*/later.py && grep -q 'a later time' /usr/local/lib/systemd/system/*"
    assert rolled_out("NEW") != before
    for box in up.boxes:
        box.run(there)
    assert rolled_out("OLD") == before
    for box in up.boxes:
        assert box.run("find / -xdev -name 'later.*'").stdout == ""
