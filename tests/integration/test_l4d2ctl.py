"""l4d2ctl as an operator meets it: its help, its exit codes, who may use it, what status tells, a stop that holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.boxes.boxes import Box
from tests.integration.ctl import LAYER, ctl, fleet, rcon, unit
from tests.integration.harness import SERVERS, properties, wait_for_server

COMMANDS = ("status", "start", "stop", "restart", "reset", "holders", "logs", "doctor")
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
    assert "exit codes: 0 done, 1 failed, 2 wrong command line" in everything


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "COMMAND"),
        ("frobnicate 3", "frobnicate"),
        ("stop", "3, 4"),
        ("stop 3 --all", "either ids or --all"),
        ("start 9", "server 9 is not declared on this host; declared: 3, 4"),
        ("stop 3/../4", "is no server's id"),
        ("stop 'left4me*'", "is no server's id"),
        ("logs 3 -n many", "invalid int value"),
        ("status --xml", "--xml"),
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
    rcon(deployed, 27015, "standin_players 3", "standin_bots 2", "standin_sourcetv 1")
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


@pytest.mark.parametrize("television", [0, 1])
def test_players_are_people(deployed: Box, television: int) -> None:
    rcon(deployed, 27015, "standin_players 3", "standin_bots 2", f"standin_sourcetv {television}")
    assert status(deployed)["3"]["players"] == 3
