"""A deploy that dies anywhere is finished by running it again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.boxes import boxes as machines
from tests.boxes.boxes import Box
from tests.integration.harness import bare, deploy, listing, started, wait_for_server, write_inventory
from tests.integration.trap import Trap, kill_both

PORTS = (27015, 27016)
VAR = "/var/lib/left4me"
UNITS = "/usr/local/lib/systemd/system"
PLACE, RELEASE = "place.py, with", "release.py NAME"


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
    Death("Game-renamed", "rename", "releases/control-", RELEASE, f"test ! -e {VAR}/installation"),
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
