"""A deploy that dies anywhere is finished by running it again."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.boxes import boxes as machines
from tests.boxes.boxes import Box
from tests.integration.harness import (
    SERVERS,
    bare,
    deploy,
    listing,
    pyinfra,
    started,
    wait_for,
    wait_for_server,
    write_inventory,
)
from tests.integration.trap import Trap, command_line, frozen, is_stopped, kill_both, sshd, waits_for_a_lock

PORTS = (27015, 27016)


@pytest.fixture(scope="module")
def packages() -> tuple[str, ...]:
    """Let the deploy install what it needs."""
    return ()


VAR = "/var/lib/left4me"
UNITS = "/usr/local/lib/systemd/system"
PLACE, CONTENT = "apply_files.py, with", "left4me-content build"


class Death(NamedTuple):
    """Where a deploy dies: after a system call of a program; and a command that succeeds in a box left like that."""

    operation: str
    syscall: str
    call: str
    program: str
    left: str


DEATHS = [
    Death("Packages", "/^rename", r"/usr/lib/.*\.dpkg-new", "dpkg", "dpkg --audit | grep 'in a mess'"),
    Death(
        "Accounts", "/^rename", r'/etc/group"', "systemd-sysusers", "getent group left4me && ! getent passwd left4me"
    ),
    Death("Layout", "mkdir", r"runtime/3/merged", PLACE, f"test -e {VAR}/runtime/3/merged -a ! -e {VAR}/runtime/4"),
    Death("Game-unpacking", "mkdirat", "left4dead2", "tar", f"test -d {VAR}/releases/.new-*/left4dead2"),
    Death("Game-renamed", "rename", "releases/control-", CONTENT, f"test ! -e {VAR}/installation"),
    Death(
        "Helper", "fsync", r"left4me/\.left4me-overlay", PLACE, "test -e /usr/local/libexec/left4me/.left4me-overlay.*"
    ),
    Death("Units", "rename", r'left4me-server@\.service"', PLACE, f"test ! -e {UNITS}/left4me.slice"),
    Death("Servers", "symlink", "left4me-server@3", PLACE, "test ! -e /etc/left4me/servers/4"),
]


@pytest.fixture(scope="module")
def undisturbed(debian: int, game: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """What a deploy that nobody disturbs makes of another box."""
    [box] = machines.up([f"intact-{debian}"], debian)
    deploy(write_inventory(tmp_path_factory.mktemp("fleet") / "inventory", [box]))
    for port in PORTS:
        wait_for_server(box, port)
    yield listing(box)
    box.down()


# The first of them needs the box without packages.
@pytest.mark.parametrize("death", DEATHS, ids=lambda death: death.operation)
def test_a_killed_deploy_is_finished_by_the_next(
    box: Box, inventory: Path, undisturbed: list[str], death: Death
) -> None:
    bare(box)
    with Trap(box, death.syscall) as trap, started(inventory, "deploy.py", "-y") as pyinfra:
        kill_both(pyinfra, trap.landing(death.call, death.program))
    box.run(death.left)
    assert listing(box) != undisturbed
    deploy(inventory)
    for port in PORTS:
        wait_for_server(box, port)
    assert listing(box) == undisturbed


def test_what_a_killed_deploy_left_at_work_is_waited_for(box: Box, inventory: Path, tmp_path: Path) -> None:
    """Else it would put back, after the next deploy, what that one has just replaced."""
    deploy(inventory)
    other = {**SERVERS, "3": {**SERVERS["3"], "hostname": "of the killed one"}}
    with (
        Trap(box, "fsync") as trap,
        started(write_inventory(tmp_path / "other", [box], servers=other), "deploy.py", "-y") as killed,
    ):
        orphan = trap.landing(r"servers/3/\.server\.cfg", PLACE)
        killed.kill()
    # strace lets go of it while it stands.
    wait_for("what was killed stands", lambda: is_stopped(orphan))
    with started(inventory, "deploy.py", "-y") as following:
        wait_for("the next deploy waits", lambda: waits_for_a_lock("holder.py REQUEST"), 25)
        os.kill(orphan, signal.SIGCONT)
        wait_for("the orphan ends", lambda: not command_line(orphan))
        following.communicate(timeout=60)
        assert following.returncode == 0
    assert box.run("grep hostname /etc/left4me/servers/3/server.cfg").stdout == 'hostname "three"\n'


def test_an_orphan_that_does_not_end_stops_the_next_deploy_with_a_line(box: Box, inventory: Path) -> None:
    deploy(inventory)
    hold = "flock --shared /run/left4me/deploy.lock sh -c 'echo held; cat'"
    ssh = ["ssh", "-F", str(box.ssh_config), box.name, hold]
    with subprocess.Popen(ssh, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin
        assert holder.stdout
        assert holder.stdout.readline()
        done = pyinfra(inventory, "deploy.py", "-y")
        holder.stdin.close()
    assert done.returncode == 1
    assert f"[{box.name}] refused, nothing changed: a command of an interrupted deploy is still running" in done.stderr


def test_an_interrupted_deploy_says_so_and_is_finished_by_the_next(box: Box, inventory: Path) -> None:
    bare(box)
    with Trap(box, "fsync") as trap, started(inventory, "deploy.py", "-y") as interrupted:
        orphan = trap.landing(r"left4me/\.left4me-overlay", PLACE)
        interrupted.send_signal(signal.SIGINT)
        _, said = interrupted.communicate(timeout=20)
        assert interrupted.returncode == 130
    assert "Interrupted: hosts may be half done. Run the same command again to finish them." in said
    assert "Traceback" not in said
    os.kill(orphan, signal.SIGCONT)
    deploy(inventory)
    for port in PORTS:
        wait_for_server(box, port)
    placed = box.run("ls -A /usr/local/libexec/left4me").stdout.split()
    names = ("attic", "content", "finish-resets", "game", "notify", "overlay", "remove", "restart")
    assert placed == [f"left4me-{name}" for name in names]  # and no temporary name


def test_a_frozen_host_holds_up_nobody(box: Box, inventory: Path, tmp_path: Path) -> None:
    [beside] = machines.up([f"frozen-{box.debian}"], box.debian)
    bare(box)
    both = write_inventory(tmp_path / "both", [box, beside], _timeout=25)
    with ExitStack() as freezing:
        with Trap(box, "fsync") as trap:
            deploying = freezing.enter_context(started(both, "deploy.py", "-y"))
            command = trap.landing(r"left4me/\.left4me-overlay", PLACE)
        wait_for("the command stands", lambda: is_stopped(command))
        freezing.enter_context(frozen(sshd(box)))
        _, said = deploying.communicate(timeout=90)
        assert deploying.returncode == 1, said
    for port in PORTS:
        wait_for_server(beside, port)
    beside.down()
    deploy(inventory)
