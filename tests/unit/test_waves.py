"""Waves, times, and how pyinfra, pytest and servers that answer or do not are judged."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from left4me import connection
from left4me.lock import protocol
from left4me.lock.wave_locks import Locks
from left4me.remote.program_text import program_command
from left4me.rollout import results, waves
from left4me.rollout.report import Report
from left4me.rollout.waves import Host
from left4me_host.idle import IdleTimer


def host(name: str, *groups: str) -> Host:
    return Host(name, frozenset(groups), {}, ())


def fleet(count: int) -> list[Host]:
    return [host(f"h{number}") for number in range(1, count + 1)]


def names(split: list[list[Host]]) -> list[str]:
    return [" ".join(each.name for each in wave) for wave in split]


# -- waves


@pytest.mark.parametrize(
    ("count", "wanted", "expected"),
    [
        (12, "canary,25%,100%", [1, 3, 8]),
        (12, "1,10%,100%", [1, 2, 9]),
        (12, "5", [5, 5, 2]),
        (7, "1,2", [1, 2, 2, 2]),
        (1, "canary,25%,100%", [1]),
        (3, "100", [3]),
        (100, "1%", [1] * 100),
    ],
)
def test_sizes_of_waves(count: int, wanted: str, expected: list[int]) -> None:
    split = waves.split(fleet(count), waves.sizes(wanted))
    assert [len(wave) for wave in split] == expected
    assert [each for wave in split for each in wave] == fleet(count)


def test_the_canaries_come_first_and_the_rest_in_the_inventorys_order() -> None:
    hosts = [host("a"), host("b", "canary", "eu"), host("c", "eu"), host("d", "canary"), host("e")]
    assert names(waves.split(hosts, waves.sizes("canary,100%"))) == ["b d", "a c e"]
    assert names(waves.split(hosts, waves.sizes("1,100%"))) == ["b", "d a c e"]


@pytest.mark.parametrize("text", ["", "0", "10%,", "-1", "1.5", "0%", "half", "1,,2"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a wave size"):
        waves.sizes(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0), ("90s", 90), ("20m", 1200), ("1h30m", 5400), ("1h", 3600), ("1h1m1s", 3661)]
)
def test_times(text: str, seconds: int) -> None:
    assert waves.duration(text) == seconds


@pytest.mark.parametrize("text", ["", "20", "m", "5 m", "1m1h", "-1s", "1.5h", "20min"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a duration"):
        waves.duration(text)


# -- locks


@pytest.fixture
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Locks]:
    """Locks of hosts that are directories of this machine: each has its deploy.lock in it, and may have a `noise`."""

    def command(name: str, _data: object, *words: str) -> connection.Command:
        here = shlex.quote(str(tmp_path / name))
        return connection.Command(["sh", "-c", f"cat {here}/noise >&2 2>/dev/null; cd {here} && {shlex.join(words)}"])

    def program(name: str, *arguments: str) -> list[str]:
        return [word.replace("/run/left4me", ".") for word in program_command(name, *arguments)]

    monkeypatch.setattr("left4me.lock.wave_locks.program_command", program)
    monkeypatch.setattr(protocol, "HEARTBEAT", 0.2)
    monkeypatch.setattr(protocol, "SILENCE", 1)
    monkeypatch.setattr(connection, "command", command)
    monkeypatch.setenv("SSH_CONNECTION", "192.0.2.1 1 192.0.2.2 22")
    for name in "ab":
        (tmp_path / name).mkdir()
    with Locks() as mine:
        yield mine


def test_a_lock_is_held_over_the_silence_and_one_that_waits_for_its_turn_is_not_taken(
    locks: Locks, tmp_path: Path
) -> None:
    for name in "ab":
        locks.connect(host(name))
    assert locks.take(host("a")) == []
    answers = locks._holders["a"].stdout
    assert answers
    assert [answers.readline() for _ in range(15)] == ["\n"] * 15  # three seconds
    assert (tmp_path / "a/deploy.lock").exists()
    assert not (tmp_path / "b/deploy.lock").exists()
    assert locks.take(host("b")) == []


def test_what_is_said_before_the_answer_is_none(locks: Locks, tmp_path: Path) -> None:
    (tmp_path / "a/noise").write_text("Authorized access only.\nsudo: unable to resolve host a\n")
    locks.connect(host("a"))
    assert locks.take(host("a")) == []
    with Locks() as second:
        second.connect(host("a"))
        assert "is being deployed by" in second.take(host("a"))[-1]


def test_a_host_that_prints_without_end_gives_no_lock(locks: Locks, tmp_path: Path) -> None:
    (tmp_path / "a/noise").symlink_to("/dev/zero")
    locks.connect(host("a"))
    assert locks.take(host("a")) == ["it printed more than 64 KB before its answer"]
    locks.connect(host("b"))
    assert locks.take(host("b")) == []


# -- players


def test_a_server_is_empty_when_every_answer_of_the_quiet_time_says_so() -> None:
    quiet = IdleTimer(10)
    assert [quiet.seen(0, now) for now in (0, 5, 9, 10)] == [False, False, False, True]


@pytest.mark.parametrize("interruption", [1, None])
def test_a_player_and_a_missing_answer_begin_the_quiet_time_anew(interruption: int | None) -> None:
    quiet = IdleTimer(10)
    quiet.seen(0, 0)
    assert not quiet.seen(interruption, 5)
    assert [quiet.seen(0, now) for now in (6, 11, 15, 16)] == [False, False, False, True]


def test_no_quiet_time_still_wants_one_answer() -> None:
    quiet = IdleTimer(0)
    assert not quiet.seen(None, 0)
    assert not quiet.seen(2, 1)
    assert quiet.seen(0, 2)


# -- the report


def test_what_is_under_way_at_the_end_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    report = Report()
    report.begin(1, ["a", "b"], "deploy")
    report.end("a", "done")
    report.close(130)
    told = json.loads((tmp_path / report.path).read_text())
    assert [told["hosts"][name]["steps"][0]["result"] for name in "ab"] == ["done", "interrupted"]
    assert told["hosts"]["b"]["steps"][0]["seconds"] >= 0


# -- pyinfra


def ended(code: int, out: object = None, err: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.CompletedProcess([], code, json.dumps(out) if out is not None else "", err)


def operation(**hosts: list[str]) -> dict[str, Any]:
    return {"name": "Put the game in place", "success": [], "error": [], "no_change": [], **hosts}


def answer(*operations: dict[str, Any], failed: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"plan": [], "results": {"operations": operations, "failed_hosts": failed}}


def test_a_host_is_deployed_where_each_operation_went_well() -> None:
    told = answer(operation(success=["a"], no_change=["b"]), operation(no_change=["a"], error=["b"]), failed=("b",))
    done = ended(1, told, "    [b] the disk is full\n    [b] Error: executed 0 commands\n    [bb] what is another's\n")
    verdicts = results.deployed(done, ["a", "b"])
    assert (verdicts["a"].wrong, verdicts["a"].changed) == ([], ["Put the game in place"])
    assert verdicts["b"].wrong == ["failed: Put the game in place", "the disk is full"]


@pytest.mark.parametrize(
    "done",
    [
        ended(0),
        ended(0, {"plan": [], "results": None}),
        ended(0, answer()),
        ended(0, answer(operation(success=["b"]))),
        ended(0, answer(operation(success=["a"]), failed=("a",))),
        ended(0, answer(operation(success=["a"]), operation(error=["a"]))),
        subprocess.CompletedProcess([], 0, '{"plan": [], "results": {"opera', ""),
    ],
)
def test_exit_0_proves_nothing(done: subprocess.CompletedProcess[str]) -> None:
    assert results.deployed(done, ["a"])["a"].wrong


def test_the_exit_code_of_another_host_is_not_this_ones() -> None:
    done = ended(1, answer(operation(success=["a"]), failed=("b",)), "[b] Could not connect\n")
    assert not results.deployed(done, ["a", "b"])["a"].wrong


def planned_operation(*hosts: str, conditional: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"name": "Write", "hosts_with_change": list(hosts), "hosts_with_conditional_change": list(conditional)}


def test_the_plan_names_what_would_change_and_who_is_not_reached() -> None:
    told = {"plan": [planned_operation("a")], "results": None}
    verdicts = results.planned(ended(0, told), ["a", "b"])
    assert [(each.changed, each.wrong) for each in verdicts.values()] == [(["Write"], []), ([], [])]
    said = "[a] Connected\n[a] Ready: deploy.py\n[b] Could not connect (timed out)\n"
    verdicts = results.planned(ended(1, told, said), ["a", "b"])
    assert [each.wrong for each in verdicts.values()] == [[], ["Could not connect (timed out)"]]


def test_the_plan_names_the_servers_that_will_require_a_restart() -> None:
    will = {"what": "will require a restart", "command": "l4d2ctl restart "}
    pending = {"a": [{**will, "server": "3"}, {**will, "server": "4"}, {**will, "server": "6", "what": "other"}]}
    pending["aa"] = [{**will, "server": "5"}]
    verdicts = results.planned(ended(0, {"plan": [], "results": None, "pending": pending}, ""), ["a", "aa", "b"])
    assert [each.pending for each in verdicts.values()] == [
        ["will require a restart: 3, 4: l4d2ctl restart 3 4", "other: 6: l4d2ctl restart 6"],
        ["will require a restart: 5: l4d2ctl restart 5"],
        [],
    ]


def test_a_name_that_pyinfra_pads_is_ready_and_what_an_inventory_prints_is_no_result() -> None:
    said = "[a]    Ready: deploy.py\n[a]    a warning\n[long] Could not connect\n"
    verdicts = results.planned(ended(1, {"plan": [], "results": None}, said), ["a", "long"])
    assert [each.wrong for each in verdicts.values()] == [[], ["Could not connect"]]
    noisy = ended(0, answer(operation(success=["a"])))
    noisy.stdout = f"loading the fleet\n{noisy.stdout}"
    assert not results.deployed(noisy, ["a"])["a"].wrong


@pytest.mark.parametrize(
    "done", [ended(0, err="--> No hosts"), ended(1, {"plan": [], "results": None}, "[a] Ready: deploy.py")]
)
def test_a_plan_that_failed_without_a_reason_is_no_plan(done: subprocess.CompletedProcess[str]) -> None:
    assert all(each.wrong for each in results.planned(done, ["a", "b"]).values())


# -- pytest


def junit(path: Path, *cases: str) -> Path:
    path.write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")
    return path


def case(name: str, inside: str = "") -> str:
    return f'<testcase classname="tests.deployed" name="{name}">{inside}</testcase>'


def test_a_failed_test_is_its_hosts(tmp_path: Path) -> None:
    failed = case("test_files[a1/3]", '<failure message="wrong">a1: /etc/x is missing</failure>')
    path = junit(tmp_path / "x", case("test_units[a]"), failed, case("test_units[a1]"))
    verdicts = results.verified(ended(1), path, ["a", "a1"])
    assert verdicts["a"].wrong == []
    assert verdicts["a1"].wrong == ["test_files[a1/3]", "a1: /etc/x is missing"]
    assert verdicts["a1"].tests == ["test_files[a1/3]"]


def test_who_was_not_tested_is_not_proved(tmp_path: Path) -> None:
    path = junit(tmp_path / "x", case("test_units[a]"), case("test_units[b]", "<skipped/>"))
    verdicts = results.verified(ended(0), path, ["a", "b", "c"])
    assert [not each.wrong for each in verdicts.values()] == [True, False, False]


def test_an_error_of_no_host_is_everybodys(tmp_path: Path) -> None:
    path = junit(tmp_path / "x", case("test_units[a]"), case("tests.deployed.test_x", "<error>SyntaxError</error>"))
    assert results.verified(ended(1), path, ["a"])["a"].wrong


@pytest.mark.parametrize("code", [2, 3, 4, 5, -9])
def test_a_pytest_that_did_not_end_well_proves_nothing(tmp_path: Path, code: int) -> None:
    path = junit(tmp_path / "x", case("test_units[a]"))
    assert results.verified(ended(code), path, ["a"])["a"].wrong
    assert results.verified(ended(0), tmp_path / "none", ["a"])["a"].wrong
