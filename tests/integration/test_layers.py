"""Versions of layers on a real host: built beside the old one, current at once, and under a mount never changed."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.boxes.boxes import Box
from tests.integration.ctl import RUNTIME, ctl, main_pid
from tests.integration.harness import SERVERS, assert_idle, changed, deploy, started, wait_for_server
from tests.integration.layers import (
    LEFTOVERS,
    OVERLAYS,
    about,
    control,
    current,
    declare,
    deploy_fails,
    lowers,
    merged,
    untouched,
    versions,
)
from tests.integration.sources import Sources, serving, tree
from tests.integration.test_verification import must_pass
from tests.integration.test_webhook import outside
from tests.integration.trap import Trap, kill_both, outer_pid, trace, traced

BROUGHT = "Put the layers in place"
PRUNED = "Remove versions that nothing uses"
NUMBERS = count()


@pytest.fixture(scope="module")
def evening(debian: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layer on this machine for the tests of one Debian, of which most is in one large file."""
    path = tmp_path_factory.mktemp("evening")
    write(path, "addons/large.vpk", os.urandom(3 << 20))
    write(path, "cfg/evening.cfg", b"first")
    return path


def write(layer: Path, name: str, content: bytes) -> None:
    """Write a file of a layer."""
    path = layer / "left4dead2" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.fixture(scope="module")
def inventory(box: Box, evening: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return declare(tmp_path_factory.mktemp("fleet") / "inventory", box, {"evening": control(evening)})


@pytest.fixture
def host(deployed: Box, inventory: Path) -> Box:
    """The box as its inventory declares it, with both servers on what is current and nothing else there."""
    deploy(inventory)
    ctl(deployed, "restart --all")
    for port in (27015, 27016):
        wait_for_server(deployed, port)
    deploy(inventory)
    return deployed


def status(box: Box, server: str = "3") -> Any:
    [row] = json.loads(ctl(box, f"status --json {server}").stdout)
    return row


# -- what is sent


def sent_to(lines: list[str]) -> tuple[int, list[str]]:
    """Return how many bytes left4me-content read of its standard input, and which names tar made, of a trace."""
    started = [re.match(r'(\d+) +execve\("([^"]+)".*= 0$', line) for line in lines]
    programs = {found.group(1): found.group(2) for found in started if found}
    own = [(programs.get(line.split()[0], ""), line) for line in lines]
    read = [re.search(r" read\(0<.*= (\d+)$", line) for program, line in own if program.endswith("left4me-content")]
    made = [
        found.group(1)
        for program, line in own
        if program.endswith("/tar")
        and (found := re.search(r'(?:openat\(.*, |mkdirat\(.*, |mkdir\()"([^"]+)"', line))
        and ("O_CREAT" in line or "mkdir" in line)
        and line.endswith("= 0") | bool(re.search(r"= \d+<", line))
    ]
    return sum(int(found.group(1)) for found in read if found), sorted(made)


def test_only_what_changed_is_sent(host: Box, inventory: Path, evening: Path, tmp_path: Path) -> None:
    write(evening, "scripts/run", b"#!/bin/sh\n")
    write(evening, "scripts/becomes_a_directory", b"a file")
    write(evening, "scripts/becomes_a_file/inside", b"in a directory")
    write(evening, "cfg/deleted.cfg", b"deleted")
    write(evening, "cfg/kept.cfg", b"kept")
    deploy(inventory)
    ctl(host, "restart 3")
    deploy(inventory)

    write(evening, "cfg/evening.cfg", b"changed")
    write(evening, "cfg/added.cfg", b"added")
    (evening / "left4dead2/cfg/deleted.cfg").unlink()
    (evening / "left4dead2/scripts/run").chmod(0o755)
    (evening / "left4dead2/scripts/becomes_a_directory").unlink()
    write(evening, "scripts/becomes_a_directory/inside", b"in a directory")
    (evening / "left4dead2/scripts/becomes_a_file/inside").unlink()
    (evening / "left4dead2/scripts/becomes_a_file").rmdir()
    write(evening, "scripts/becomes_a_file", b"a file")
    with trace(host, "execve,openat,mkdir,mkdirat,read", tmp_path / "trace") as seen:
        deploy(inventory)
    read, made = sent_to(traced(seen))
    assert [name.removeprefix("left4dead2/") for name in made] == [
        "cfg/added.cfg",
        "cfg/evening.cfg",
        "scripts/becomes_a_directory",
        "scripts/becomes_a_directory/inside",
        "scripts/becomes_a_file",
        "scripts/run",
    ]
    assert 0 < read < 64 << 10
    # And together with what was there it is the whole.
    compare = "find . | sort; find . -type f -exec sha256sum {} + | sort -k2"
    there = host.run(f"cd {current(host, 'evening')} && {compare}").stdout
    assert there == subprocess.check_output(compare, shell=True, cwd=evening, text=True)
    executable = host.run(f"cd {current(host, 'evening')} && find . -type f -perm /100").stdout
    assert executable == "./left4dead2/scripts/run\n"


# -- versions beside each other


def test_a_running_server_keeps_its_version_until_it_is_restarted(host: Box, inventory: Path, evening: Path) -> None:
    old, before, pid = current(host, "evening"), about(host, current(host, "evening")), main_pid(host, "3")
    content = merged(host, "cfg/evening.cfg").read_bytes()
    assert (versions(host, "evening"), status(host)["restart_due"]) == ([old], False)

    write(evening, "cfg/evening.cfg", b"of the new version")
    write(evening, "cfg/more.cfg", b"more")
    assert changed(deploy(inventory)) == [BROUGHT]
    new = current(host, "evening")
    assert versions(host, "evening") == sorted([old, new])

    def is_on_the_old() -> bool:
        kept = (lowers(host)[0], about(host, old), main_pid(host, "3")) == (old, before, pid)
        return kept and (merged(host, "cfg/evening.cfg").read_bytes(), merged(host, "cfg/more.cfg").exists()) == (
            content,
            False,
        )

    assert is_on_the_old()
    assert (status(host)["restart_due"], status(host, "4")["restart_due"]) == (True, False)
    assert "restart required" in ctl(host, "status 3").stdout
    found = ctl(host, "doctor", code=1).stdout
    assert f"evening: {Path(old).name} is mounted, a restart mounts {Path(new).name}" in found
    assert re.search(r"\s3 +restart required \(layers\)  .*  l4d2ctl restart 3\n", must_pass(inventory))

    assert_idle(deploy(inventory), [host])
    assert is_on_the_old()

    ctl(host, "restart 3")
    wait_for_server(host, 27015)
    assert (lowers(host)[0], merged(host, "cfg/more.cfg").read_bytes()) == (new, b"more")
    assert merged(host, "cfg/evening.cfg").read_bytes() == b"of the new version"
    assert status(host)["restart_due"] is False
    assert versions(host, "evening") == sorted([old, new])
    assert f"unused versions: {old}" in ctl(host, "doctor", code=1).stdout

    assert changed(deploy(inventory)) == [PRUNED]
    assert versions(host, "evening") == [new]
    assert ctl(host, "doctor").stdout == "no problems found\n"
    assert_idle(deploy(inventory), [host])


def test_a_layer_that_nobody_names_goes_with_the_last_server_on_it(host: Box, evening: Path, tmp_path: Path) -> None:
    without = declare(tmp_path / "without", host, {"evening": control(evening)}, servers=SERVERS)
    old, before = current(host, "evening"), about(host, current(host, "evening"))
    deploy(without)
    assert_idle(deploy(without), [host])
    assert (lowers(host)[0], about(host, old)) == (old, before)
    assert "runs with other layers than declared" in ctl(host, "doctor", code=1).stdout
    ctl(host, "restart 3")
    assert changed(deploy(without)) == [PRUNED]
    assert host.run(f"ls -A {OVERLAYS}").stdout == ""
    assert_idle(deploy(without), [host])
    assert ctl(host, "doctor").stdout == "no problems found\n"


# -- which layer wins


def test_the_topmost_layer_wins_and_upper_over_all(host: Box, tmp_path: Path) -> None:
    layers = {}
    for name in ("a", "b", "c"):
        write(tmp_path / name, "cfg/who.cfg", name.encode())
        write(tmp_path / name, f"cfg/{name}.cfg", name.encode())
        layers[name] = control(tmp_path / name)
    who = "left4dead2/cfg/who.cfg"

    def run_with(*top_first: str) -> list[str]:
        """Deploy and restart with these layers; return the lower directories as the kernel has them."""
        deploy(declare(tmp_path / "inventory", host, layers, *top_first))
        ctl(host, "restart 3")
        assert all(merged(host, f"cfg/{name}.cfg").read_text() == name for name in top_first)
        return [path.split("/")[5] for path in lowers(host)[:-1]]

    assert run_with("b", "a", "c") == ["b", "a", "c"]
    assert lowers(host)[-1].startswith("/var/lib/left4me/releases/")
    assert merged(host, "cfg/who.cfg").read_text() == "b"
    as_the_game = "setpriv --reuid left4me-3 --regid left4me --clear-groups"
    host.run(f"cd {RUNTIME}/3/merged && {as_the_game} sh -c 'echo upper >{who}'")
    assert run_with("b", "a", "c") == ["b", "a", "c"]
    assert merged(host, "cfg/who.cfg").read_text() == "upper\n"
    assert host.run(f"cat {RUNTIME}/3/upper/{who}").stdout == "upper\n"
    assert host.run(f"cat {current(host, 'b')}/{who}").stdout == "b"
    ctl(host, "reset 3")
    assert merged(host, "cfg/who.cfg").read_text() == "b"
    assert run_with("c", "b", "a") == ["c", "b", "a"]
    assert merged(host, "cfg/who.cfg").read_text() == "c"
    assert run_with("a") == ["a"]
    assert (merged(host, "cfg/who.cfg").read_text(), merged(host, "cfg/b.cfg").exists()) == ("a", False)


# -- builds that die


@pytest.fixture(scope="module")
def sources(box: Box) -> Iterator[Sources]:
    with serving(outside(box)) as served:
        yield served


class Death(NamedTuple):
    """Where a build dies: after a system call of a program; and what it leaves."""

    at: str
    syscall: str
    call: str
    program: str
    left: str


DEATHS = [
    Death("unpacking", "mkdirat", "new-directory", "tar", r"evening/\.new-"),
    Death("renamed", "rename", rf"evening/\.new-.*{OVERLAYS}/evening/[a-z2-7]{{8}}\"", "left4me-content", "^$"),
    Death("linked", "symlink", r"evening/\.new-", "left4me-content", r"evening/\.new-"),
]


@pytest.mark.parametrize("death", DEATHS, ids=lambda death: death.at)
def test_a_deploy_killed_while_it_builds(host: Box, inventory: Path, evening: Path, death: Death) -> None:
    old, before, pid = current(host, "evening"), about(host, current(host, "evening")), main_pid(host, "3")
    number = next(NUMBERS)
    write(evening, f"new-directory-{number}/file", b"new")
    with Trap(host, death.syscall) as trap, started(inventory, "deploy.py", "-y") as killed:
        kill_both(killed, trap.landing(death.call, death.program))
    assert re.search(death.left, host.run(LEFTOVERS).stdout)
    assert (current(host, "evening"), about(host, old), lowers(host)[0]) == (old, before, old)
    assert BROUGHT in changed(deploy(inventory))
    assert host.run(LEFTOVERS).stdout == ""
    assert (main_pid(host, "3"), about(host, old)) == (pid, before)
    ctl(host, "restart 3")
    assert merged(host, f"new-directory-{number}/file").read_bytes() == b"new"


def test_a_deploy_killed_while_it_downloads(host: Box, sources: Sources, evening: Path, tmp_path: Path) -> None:
    archive = sources.archive("/sm", tree("tar.gz", {"left4dead2/cfg/sm.cfg": os.urandom(1 << 20)}))
    inventory = declare(tmp_path / "inventory", host, {"evening": control(evening), "sm": archive})
    before = untouched(host, "evening")
    sources.held.add("/sm")
    with started(inventory, "deploy.py", "-y") as killed:
        assert sources.holding.wait(60)
        program = int(host.run("pgrep -f 'left4me-content build' --oldest").stdout)
        kill_both(killed, outer_pid(host, program))
    sources.held.clear()
    sources.go_on.set()
    assert "/.download-" in host.run(LEFTOVERS).stdout
    assert untouched(host, "evening") == before
    deploy(inventory)
    assert host.run(LEFTOVERS).stdout == ""
    assert (main_pid(host, "3"), lowers(host)) == before["3"]
    ctl(host, "restart 3")
    wait_for_server(host, 27015)
    must_pass(inventory)


@pytest.fixture
def full(host: Box, inventory: Path) -> Iterator[Callable[[], None]]:
    """Put /var/lib/left4me on a small filesystem; what is yielded fills it."""
    var, small = "/var/lib/left4me", "/run/small"
    host.run(f"""
        l4d2ctl stop --all
        mkdir -p {small}; mount -t tmpfs -o mode=755,size=400M small {small}
        cp -a {var}/. {small}; mount --bind {small} {var}; l4d2ctl start --all
    """)

    def fill() -> None:
        host.run(f"head -c 1G /dev/zero >{var}/.fill 2>/dev/null; true")

    yield fill
    host.run(f"rm -f {var}/.fill; l4d2ctl stop --all; umount {var} {small}; rmdir {small}")
    deploy(inventory)
    host.run("l4d2ctl start --all")


def test_a_full_disk_while_it_builds(
    host: Box, sources: Sources, evening: Path, tmp_path: Path, full: Callable[[], None]
) -> None:
    for port in (27015, 27016):
        wait_for_server(host, port)
    write(evening, "addons/larger.vpk", os.urandom(1 << 20))
    archive = sources.archive("/sm", tree("zip", {"left4dead2/cfg/sm.cfg": os.urandom(1 << 20)}))
    inventory = declare(tmp_path / "inventory", host, {"evening": control(evening), "sm": archive})
    before = untouched(host, "evening")
    full()
    full_disk = "(No space left on device|the disk is full)"
    deploy_fails(inventory, rf"\] layer evening: .*{full_disk}", rf"\] layer sm: .*{full_disk}")
    host.run("rm /var/lib/left4me/.fill")
    assert untouched(host, "evening") == before
    assert BROUGHT in changed(deploy(inventory))
    assert ((main_pid(host, "3"), lowers(host)), host.run(LEFTOVERS).stdout) == (before["3"], "")
    ctl(host, "restart 3")
    wait_for_server(host, 27015)
    must_pass(inventory)


def test_a_killed_switch_to_a_new_game_leaves_nothing(host: Box, inventory: Path) -> None:
    host.run("rm /var/lib/left4me/installation")
    with Trap(host, "symlink") as trap, started(inventory, "deploy.py", "-y") as killed:
        kill_both(killed, trap.landing(r"left4me/\.new-", "left4me-content"))
    assert "/var/lib/left4me/.new-" in host.run(LEFTOVERS).stdout
    deploy(inventory)
    assert host.run(LEFTOVERS).stdout == ""
