"""A rollout over eight hosts of both Debians, four servers on each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.boxes import boxes as machines
from tests.boxes.boxes import Box
from tests.boxes.deployed import PACKAGES
from tests.integration.ctl import main_pid
from tests.integration.harness import standing, wait_for_server
from tests.integration.rolling import Fleet, hostname, report

NAMES = {debian: [f"test-fleet-{debian}-{letter}" for letter in "abcd"] for debian in (12, 13)}
PORTS = {"3": 27015, "4": 27016, "5": 27017, "6": 27018}


@pytest.fixture(scope="module")
def boxes(reports: None) -> Iterator[list[Box]]:
    """Four boxes of each Debian, in the order of a rollout: the canary is one of the newer."""
    names = [name for each in NAMES.values() for name in each]
    machines.down([each.name for each in machines.boxes() if each.name in names])
    older, newer = (machines.up(each, debian, PACKAGES) for debian, each in NAMES.items())
    yield [newer[0], *older, *newer[1:]]
    machines.down(names)


@pytest.fixture(scope="module")
def eight(boxes: list[Box], game: Path, tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    servers = {server: {"port": port, "hostname": f"server {server}"} for server, port in PORTS.items()}
    # One of the second wave, and of the older Debian, is reached by way of sudo.
    hosts = {boxes[1].name: {"ssh_user": "admin", "_sudo": True}}
    return Fleet(boxes, tmp_path_factory.mktemp("fleet") / "inventory", servers, hosts=hosts)


def test_eight_bare_hosts_are_deployed_and_proved_in_three_waves(eight: Fleet) -> None:
    told = report(eight.rollout("-y"))
    names = [box.name for box in eight.boxes]
    assert told["waves"] == [names[:1], names[1:3], names[3:]]
    assert {step["result"] for host in told["hosts"].values() for step in host["steps"]} == {"done"}
    for box in eight.boxes:
        for port in PORTS.values():
            wait_for_server(box, port)


def test_nothing_to_change_changes_and_restarts_nothing(eight: Fleet) -> None:
    before = [standing(box) for box in eight.boxes]
    assert "Done and verified: 8 hosts." in eight.rollout("-y")
    assert [standing(box) for box in eight.boxes] == before


def test_a_wave_that_fails_is_the_last(eight: Fleet) -> None:
    eight.declare({"hostname": "second thoughts", "tickrate": 60})
    stops_at_its_wave(eight, eight.canary, eight.boxes[:1])
    # The way on is the same command: what is done is not restarted again.
    pid = main_pid(eight.canary, "3")
    stops_at_its_wave(eight, eight.boxes[2], eight.boxes[:3])
    assert main_pid(eight.canary, "3") == pid
    pids = [main_pid(box, "3") for box in eight.boxes[:3]]
    eight.rollout("-y")
    assert [main_pid(box, "3") for box in eight.boxes[:3]] == pids
    assert {hostname(box) for box in eight.boxes} == {"second thoughts"}


def stops_at_its_wave(eight: Fleet, broken: Box, done: list[Box]) -> None:
    """Roll out while a check fails on one box; the waves to its own are done, and none after it is touched."""
    later = eight.boxes[len(done) :]
    before = [standing(box) for box in later]
    broken.run("chmod o+w /usr/local/libexec")
    try:
        said = eight.rollout("-y", code=1)
    finally:
        broken.run("chmod o-w /usr/local/libexec")
    assert [standing(box) for box in later] == before
    assert re.findall(r"^(\S+) failed at (\w+):$", said, re.MULTILINE) == [(broken.name, "verify")]
    assert f"Stopped. Untouched: {', '.join(box.name for box in later)}." in said
    assert {hostname(box) for box in done} == {"second thoughts"}
