"""l4d2ctl as an operator meets it: its help, its exit codes, who may use it, what status tells, a stop that holds."""

from __future__ import annotations

import base64
import json
import subprocess
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from left4me import manifest, model
from left4me.manifest import ROOT
from tests.boxes.boxes import Box
from tests.integration.ctl import LAYER, RUNTIME, ctl, fleet, main_pid, rcon, state, unit
from tests.integration.harness import (
    SERVERS,
    deploy,
    properties,
    wait_for,
    wait_for_server,
)

COMMANDS = ("status", "show", "start", "stop", "restart", "reset", "attic", "holders", "rcon", "logs", "jobs", "doctor")
OPERATORS = "gamers"


@pytest.fixture(scope="module")
def inventory(box: Box, tmp_path_factory: pytest.TempPathFactory) -> Path:
    box.run(f"groupadd {OPERATORS}; useradd -m -G {OPERATORS} -s /bin/bash olga; useradd -m -s /bin/bash mallory")
    return fleet(tmp_path_factory.mktemp("fleet") / "inventory", [box], operators=OPERATORS)


def status(box: Box) -> dict[str, dict[str, Any]]:
    return {each["id"]: each for each in json.loads(ctl(box, "status --json").stdout)}


def test_help_teaches(deployed: Box) -> None:
    everything = ctl(deployed, "--help").stdout
    for command in COMMANDS:
        assert f"\n    {command} " in everything
        assert len(ctl(deployed, f"{command} --help").stdout.splitlines()) > 4
    assert "2 wrong command line, 3 another command is changing the server, 130 interrupted" in everything


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "COMMAND"),
        ("frobnicate 3", "frobnicate"),
        ("stop", "3, 4"),
        ("stop 3 --all", "use --all, not both"),
        ("start 9", "server 9 is not declared on this host; declared: 3, 4"),
        ("stop 3/../4", "is not a server id"),
        ("stop 33", "server 33 is not declared on this host; declared: 3, 4"),
        ("stop 'left4me*'", "is not a server id"),
        ("logs 3 -n many", "is not a number of lines"),
        ("logs -n -5 3", "is not a number of lines"),
        ("status --xml", "--xml"),
        ("status --follow", "--follow needs --json"),
        ("restart --when-empty --unless-stopped 3", "not allowed with argument"),
        ("jobs -f", "takes the number of a job"),
        ("jobs -f 1 --json", "takes the number of a job"),
        ("jobs last", "is not the number of a job"),
        ("show 9", "server 9 is not declared on this host"),
        ("--origin '' start 3", "1 to 200 printable characters"),
        (f"--origin {'x' * 201} start 3", "1 to 200 printable characters"),
        ("--origin $'\\e[31m' start 3", "1 to 200 printable characters"),
        ("--origin desk status", "--origin is only for commands that change something"),
        ("--origin desk game update --check", "--origin is only for commands that change something"),
    ],
)
def test_a_wrong_command_line_is_exit_2_with_one_line(deployed: Box, words: str, said: str) -> None:
    done = ctl(deployed, words, code=2)
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not done.stdout


def test_who_is_not_root_is_told_how(deployed: Box) -> None:
    done = deployed.run("su olga -c '/usr/local/sbin/l4d2ctl status'", check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "sudo l4d2ctl" in done.stderr


def test_the_operators_group_may_and_others_may_not(deployed: Box) -> None:
    assert deployed.run("su olga -c 'sudo -n l4d2ctl status --json'").stdout.startswith("[")
    assert deployed.run("su mallory -c 'sudo -n l4d2ctl status'", check=False).returncode == 1
    assert deployed.run("su olga -c 'sudo -n cat /etc/shadow'", check=False).returncode == 1
    assert deployed.run("stat -c '%a %U:%G' /etc/sudoers.d/left4me").stdout == "440 root:root\n"


def test_status_tells_what_is(deployed: Box) -> None:
    for port in (27015, 27016):
        wait_for_server(deployed, port)
    rcon(deployed, 27015, "standin_players 3", "standin_bots 2", "standin_sourcetv 2")
    row = status(deployed)["3"]
    seen = properties(deployed, unit("3"), "ActiveState", "StateChangeTimestamp")
    assert row["state"] == seen["ActiveState"] == "active"
    assert row["since"] == seen["StateChangeTimestamp"]
    assert not row["held"]
    assert (row["port"], row["map"]) == (SERVERS["3"]["port"], "c1m1_hotel")
    assert (row["players"], row["slots"]) == (3, 8)
    assert row["layers"] == [LAYER]
    # Where the kernel accounts none, as in a box on a machine with cgroup v1, there is none to tell.
    memory = properties(deployed, unit("3"), "MemoryCurrent")["MemoryCurrent"]
    assert 0.5 < row["memory"] / int(memory) < 2 if memory.isdigit() else row["memory"] is None
    assert not row["restart_due"]


@pytest.mark.parametrize("people", [0, 1, 3])
@pytest.mark.parametrize(("television", "too_many"), [(0, 0), (1, 1), (2, 0)])
def test_players_are_people_and_never_too_few(deployed: Box, people: int, television: int, too_many: int) -> None:
    rcon(deployed, 27015, f"standin_players {people}", "standin_bots 2", f"standin_sourcetv {television}")
    assert status(deployed)["3"]["players"] == people + too_many


def on_a_terminal(box: Box, words: str) -> list[str]:
    """Run l4d2ctl on a terminal and return what it showed."""
    return box.run(f"TERM=xterm script -qec 'l4d2ctl {words}' /dev/null </dev/null").stdout.splitlines()


def test_a_table_on_a_terminal_and_plain_text_in_a_pipe(deployed: Box) -> None:
    piped = ctl(deployed, "status").stdout.splitlines()
    heading, *rows = [line.split("\t") for line in piped]
    assert (heading[0], heading[4], [row[0] for row in rows]) == ("ID", "PORT", ["3", "4"])
    *shown, last = on_a_terminal(deployed, "status")
    assert last.startswith("revision ")
    assert not any("\t" in line for line in shown)
    assert len({line.index(word) for line, word in zip(shown, ("PORT", "27015", "27016"), strict=True)}) == 1


def test_json_of_the_others_parses(deployed: Box) -> None:
    held = json.loads(ctl(deployed, "holders --json --all").stdout)
    assert sorted(held) == ["3", "4"]
    game = [each for each in held["3"] if each["pid"] == int(main_pid(deployed, "3"))]
    assert {each["kind"].split()[0] for each in game} >= {"cwd", "exe", "fd", "map"}
    assert json.loads(ctl(deployed, "doctor --json").stdout) == []
    assert json.loads(ctl(deployed, "attic --json").stdout) == []


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("l4d2ctl st", "status start stop"),
        ("l4d2ctl restart --", "--all --unless-stopped --when-empty --help"),
        ("l4d2ctl show ''", "3 4"),
        ("l4d2ctl jobs --", "--follow --json --help"),
        ("l4d2ctl stop ''", "3 4"),
        ("l4d2ctl reset --", "--all --undo --help"),
        ("l4d2ctl attic --", "--all --json --help"),
        ("l4d2ctl doctor --f", "--fix"),
        ("l4d2ctl doctor ''", ""),
    ],
)
def test_bash_completes(deployed: Box, typed: str, offered: str) -> None:
    script = f"""
        . /usr/local/share/bash-completion/completions/l4d2ctl
        COMP_WORDS=({typed}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
        _l4d2ctl
        echo "${{COMPREPLY[*]}}"
    """
    assert deployed.run("bash", input=script.encode()).stdout == f"{offered}\n"


def test_sudo_never_gets_a_file_that_it_cannot_read(deployed: Box) -> None:
    path = "/etc/sudoers.d/left4me"
    before = deployed.run(f"cat {path}; stat -c '%i' {path}").stdout
    [item] = [each for each in manifest.programs(model.Host.model_construct(operators=OPERATORS)) if each.path == path]
    item = replace(item, text="%gamers ALL=(root NOPASSWD\n")
    place = (ROOT / "left4me/remote/apply_files.py").read_text(encoding="utf-8")
    asked = json.dumps([asdict(item)]).encode()
    deployed.run("cat >/run/apply.py", input=place.encode())
    done = deployed.run("python3 -I /run/apply.py; code=$?; rm /run/apply.py; exit $code", input=asked, check=False)
    assert done.returncode == 1
    assert f"cannot write file {path}" in done.stderr
    assert deployed.run(f"cat {path}; stat -c '%i' {path}").stdout == before
    assert deployed.run("ls -A /etc/sudoers.d | grep left4me").stdout == "left4me\n"


def test_a_hung_server_has_not_answered_since(deployed: Box) -> None:
    wait_for_server(deployed, 27016)
    answered = status(deployed)["4"]
    assert answered["unanswered_since"] is None
    rcon(deployed, 27016, "standin_hang forever")
    row = status(deployed)["4"]
    assert (row["state"], row["map"], row["players"]) == ("active", None, None)
    year = deployed.run("date +%Y").stdout.strip()
    assert year in row["unanswered_since"]
    assert status(deployed)["4"]["unanswered_since"] == row["unanswered_since"]
    assert f"no answer since {row['unanswered_since']}" in ctl(deployed, "status 4").stdout
    deployed.run(f"kill -9 {main_pid(deployed, '4')}")
    wait_for_server(deployed, 27016)
    assert status(deployed)["4"]["unanswered_since"] is None


def test_a_server_that_never_answered_since_it_was_started_says_when_that_was(deployed: Box) -> None:
    ctl(deployed, "stop 4")
    deployed.run("touch -d yesterday /run/left4me/4.answered")
    with_hang = f"install -d -o left4me-4 -g left4me {RUNTIME}/4/upper/left4dead2/cfg"
    deployed.run(f"{with_hang}; echo standin_hang forever >{RUNTIME}/4/upper/left4dead2/cfg/autoexec.cfg")
    ctl(deployed, "start 4")
    try:
        row = status(deployed)["4"]
    finally:
        deployed.run(f"rm {RUNTIME}/4/upper/left4dead2/cfg/autoexec.cfg; kill -9 {main_pid(deployed, '4')}")
    assert (row["state"], row["unanswered_since"]) == ("active", row["since"])
    wait_for_server(deployed, 27016)


def test_a_restart_is_required_when_what_runs_is_not_what_was_declared(
    deployed: Box, inventory: Path, tmp_path: Path
) -> None:
    renamed = fleet(tmp_path / "renamed", [deployed], {**SERVERS, "3": {**SERVERS["3"], "hostname": "new name"}})
    pid = main_pid(deployed, "3")
    deploy(renamed)
    assert not status(deployed)["3"]["restart_due"]
    assert not status(deployed)["4"]["restart_due"]
    moved = fleet(tmp_path / "moved", [deployed], {**SERVERS, "3": {**SERVERS["3"], "port": 27025}})
    deploy(moved)
    rows = status(deployed)
    assert (rows["3"]["restart_due"], rows["4"]["restart_due"]) == (True, False)
    assert main_pid(deployed, "3") == pid
    assert "\trestart required" in ctl(deployed, "status 3").stdout
    ctl(deployed, "restart 3")
    wait_for_server(deployed, 27025)
    assert not status(deployed)["3"]["restart_due"]
    deploy(inventory)
    ctl(deployed, "restart 3")
    wait_for_server(deployed, 27015)


def test_a_restart_unless_stopped_undoes_no_stop_that_comes_in_between(deployed: Box) -> None:
    pid = main_pid(deployed, "4")
    ctl(deployed, "restart --unless-stopped 4")
    wait_for_server(deployed, 27016)
    assert main_pid(deployed, "4") != pid
    rcon(deployed, 27015, "standin_ignore_sigint 1")  # so that its stop takes its time
    remote = ["ssh", "-F", str(deployed.ssh_config), deployed.name, "l4d2ctl restart --unless-stopped 3"]
    with subprocess.Popen(remote, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as restarting:
        wait_for("it is stopping", lambda: state(deployed, "3") == "deactivating")
        ctl(deployed, "stop 3")
        assert restarting.wait(30) == 0
    assert (state(deployed, "3"), deployed.run("ls /var/lib/left4me/held").stdout) == ("inactive", "3\n")
    said = ctl(deployed, "restart --unless-stopped 3")
    assert said.stderr == "server 3 is not running; skipped\n"
    assert state(deployed, "3") == "inactive"
    ctl(deployed, "restart 3")  # which is meant
    wait_for_server(deployed, 27015)


def test_logs_are_the_servers_own_and_end(deployed: Box) -> None:
    wait_for_server(deployed, 27016)  # and so it has three lines since the boot
    lines = on_a_terminal(deployed, "logs 4 -n 3")
    assert len(lines) == 3
    deployed.run("systemd-cat -t other echo from somewhere else")
    assert "somewhere else" not in ctl(deployed, "logs 4 -n 1000").stdout


def test_logs_follow(deployed: Box) -> None:
    command = ["ssh", "-F", str(deployed.ssh_config), deployed.name, "timeout 20 l4d2ctl logs 4 -f -n 1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout
        assert follower.stdout.readline()  # it follows
        ctl(deployed, "restart 4")
        # The command ends by itself after 20 seconds, and the lines with it.
        assert any("Started left4me-server@4.service" in line for line in follower.stdout)
        follower.kill()


def make_status(inventory: Path) -> subprocess.CompletedProcess[str]:
    # -o: the environment is whatever runs this test.
    command = ["make", "-s", "-o", ".venv/installed", "status", f"INVENTORY={inventory}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_make_status_is_one_table_of_all_hosts(deployed: Box, inventory: Path, tmp_path: Path) -> None:
    done = make_status(inventory)
    assert done.returncode == 0, done.stderr
    of_host = [line.split("\t") for line in ctl(deployed, "status").stdout.splitlines()]
    heading, *rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert heading == ["HOST", *of_host[0]]
    # The memory may have changed in between.
    assert [row[:9] for row in rows] == [[deployed.name, *row[:8]] for row in of_host[1:]]
    assert not done.stderr


def test_make_status_names_the_host_that_is_down(deployed: Box, tmp_path: Path) -> None:
    listed = fleet(tmp_path / "one", [deployed]).read_text(encoding="utf-8")
    nowhere = listed.replace(deployed.name, "gone").replace(deployed.address, "127.0.0.1")
    both = tmp_path / "both"
    both.write_text(f"{listed}{nowhere.replace('boxes', 'others', 1)}", encoding="utf-8")
    done = make_status(both)
    assert done.returncode != 0
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == ["HOST", deployed.name, deployed.name]
    assert any(line.startswith("gone: ") for line in done.stderr.splitlines())


RUDE = rb"""#!/bin/sh
printf '\377\376 \033]0;gotcha\007\033[31mred\n'
"""
"""A game that writes what is no text, and what a terminal obeys."""


def test_what_a_game_writes_cannot_reach_the_terminal(deployed: Box) -> None:
    program, layers = "/var/lib/left4me/runtime/3/upper/srcds_run", "/etc/left4me/servers/3/layers"
    ctl(deployed, "stop 3")
    deployed.run(f"cat >{program}; chmod 755 {program}", input=RUDE)
    deployed.run(f"chown left4me-3 {program}; cp -p {layers} /run/layers; rm /var/lib/left4me/held/3")
    try:
        deployed.run("systemctl start left4me-server@3")
        deployed.run("until journalctl -o cat -u left4me-server@3 | grep -qa gotcha; do :; done", timeout=20)
        deployed.run(f"echo absent >{layers}")
        start = deployed.run("l4d2ctl start 3 2>&1 | base64 -w0; exit ${PIPESTATUS[0]}", check=False)
        said = base64.b64decode(start.stdout)
        shown = deployed.run("TERM=xterm script -qec 'l4d2ctl logs 3 -n 50' /dev/null </dev/null | base64 -w0").stdout
    finally:
        deployed.run(f"l4d2ctl stop 3; cp -p /run/layers {layers}; rm {program}; l4d2ctl start 3")
    assert b"server 3 did not start" in said
    assert b"gotcha" in said
    for each in (said, base64.b64decode(shown)):
        assert b"\x1b]0;" not in each
        assert b"\x1b[31mred" not in each
        assert b"\x07" not in each
    said.decode("utf-8")


def test_a_maps_name_cannot_reach_the_terminal(deployed: Box) -> None:
    wait_for_server(deployed, 27015)
    rude = "\x1b[31mred"
    maps = "/var/lib/left4me/runtime/3/merged/left4dead2/maps"
    deployed.run(f"cp {maps}/c1m1_hotel.bsp $'{maps}/{rude}.bsp'; chmod a+r {maps}/*")
    rcon(deployed, 27015, f'map "{rude}"')
    wait_for("the map runs", lambda: status(deployed)["3"]["map"] == rude)
    assert "?[31mred" in ctl(deployed, "status 3").stdout
    for lines in (on_a_terminal(deployed, "status 3"), ctl(deployed, "status 3").stdout.splitlines()):
        assert not any("\x1b" in line for line in lines)
    ctl(deployed, "restart 3")
    wait_for_server(deployed, 27015)


CLOSED_PIPE = """
import os
reading, writing = os.pipe()
os.close(reading)
os.dup2(writing, 1)
os.execvp("l4d2ctl", ["l4d2ctl", "status"])
"""


def test_a_pipe_that_nobody_reads_is_one_line(deployed: Box) -> None:
    done = deployed.run("python3 -", input=CLOSED_PIPE.encode(), check=False)
    assert (done.returncode, done.stderr) == (1, "l4d2ctl: [Errno 32] Broken pipe\n")
