"""left4me-remove: what is gone, what is in the attic, who is left alone, and that a killed one is finished."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.boxes.boxes import Box
from tests.integration.ctl import ATTIC, RUNTIME, ctl, fleet, game_writes, main_pid, state
from tests.integration.harness import deploy, name_over_a2s, overlays, wait_for, wait_for_server
from tests.integration.trap import Trap

REMOVE = "/usr/local/libexec/left4me/left4me-remove"
ANYTHING = """
    cd /var/lib/left4me
    find /etc/left4me /etc/systemd /run/left4me $PWD '(' -path $PWD/attic -o -path $PWD/jobs ')' -prune -o \\
        '(' -name 3 -o -name '3.*' -o -name '*@3.service*' ')' -print
"""
MINE = "left4dead2/mine.txt"


@pytest.fixture(scope="module")
def inventory(box: Box, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fleet(tmp_path_factory.mktemp("fleet") / "inventory", [box], attic_keep=2)


@pytest.fixture
def host(deployed: Box, inventory: Path) -> Box:
    """Have servers 3 and 4 run, 3 with a secret and with something that it wrote, and nothing in the attic."""
    deployed.run("systemctl stop shell", check=False)
    again(deployed, inventory)
    deployed.run(f"""
        systemctl start left4me-attic
        rm -rf {ATTIC}/* /var/lib/left4me/secrets/3
        install -d -m 500 -o left4me-3 /var/lib/left4me/secrets/3
        echo 'rcon_password "x"' >/var/lib/left4me/secrets/3/rcon.cfg
    """)
    game_writes(deployed, "mine.txt", "mine")
    return deployed


def again(box: Box, inventory: Path) -> None:
    """Deploy, which declares what was removed, and have both servers run."""
    deploy(inventory)
    ctl(box, "start --all")
    for port in (27015, 27016):
        wait_for_server(box, port)
    ctl(box, "status")  # which leaves something in /run


def remove(box: Box, servers: str, code: int = 0) -> str:
    """Remove servers and return what is said: a line for each that could not be."""
    done = box.run(f"{REMOVE} {servers}", check=False)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    return done.stderr


def left(box: Box) -> list[str]:
    """Return every path that has to do with server 3, but for the attic's."""
    return box.run(ANYTHING).stdout.split()


def attic(box: Box) -> list[str]:
    return box.run(f"ls -A {ATTIC}").stdout.split()


def assert_gone(box: Box) -> None:
    """Assert that server 3 is gone, and what it wrote is in the attic, once."""
    assert left(box) == []
    assert overlays(box) == [f"{RUNTIME}/4/merged"]
    [aside] = [name for name in attic(box) if name.startswith("3@")]
    assert box.run(f"cat {ATTIC}/{aside}/upper/{MINE}").stdout == "mine\n"
    box.run("getent passwd left4me-3")


def test_a_running_server(host: Box) -> None:
    assert len(left(host)) == 9
    pid = main_pid(host, "4")
    assert remove(host, "3") == ""
    assert_gone(host)
    with pytest.raises(OSError, match=r"."):
        name_over_a2s(host, 27015)
    assert main_pid(host, "4") == pid
    assert "server 3 is not declared" in ctl(host, "start 3", code=2).stderr
    assert remove(host, "3 never-was") == ""
    assert_gone(host)
    ctl(host, "doctor --fix")
    assert ctl(host, "doctor").stdout == "no problems found\n"


def test_a_server_that_was_stopped_by_hand(host: Box) -> None:
    ctl(host, "stop 3")
    assert remove(host, "3") == ""
    assert_gone(host)


def test_what_a_server_wrote_comes_back_with_it(host: Box, inventory: Path) -> None:
    remove(host, "3")
    again(host, inventory)
    assert host.run(f"cat {RUNTIME}/3/merged/{MINE}", check=False).returncode
    ctl(host, "reset --undo 3")
    wait_for_server(host, 27015)
    assert host.run(f"cat {RUNTIME}/3/merged/{MINE}").stdout == "mine\n"
    game_writes(host, "mine.txt", "more")
    wait_for("the rest of it is gone from the attic", lambda: len(attic(host)) == 1)
    assert ctl(host, "doctor").stdout == "no problems found\n"


def test_a_server_whose_reset_did_not_finish(host: Box, inventory: Path) -> None:
    host.run(f"mount --bind {ATTIC} {ATTIC} && mount -o remount,bind,ro {ATTIC}")
    ctl(host, "reset 3", code=1)
    host.run(f"umount {ATTIC}")
    assert remove(host, "3") == ""
    assert_gone(host)
    again(host, inventory)
    ctl(host, "reset --undo 3")
    wait_for_server(host, 27015)
    assert host.run(f"cat {RUNTIME}/3/merged/{MINE}").stdout == "mine\n"


def test_a_server_whose_undo_did_not_finish(host: Box, inventory: Path) -> None:
    ctl(host, "reset 3")
    wait_for_server(host, 27015)
    game_writes(host, "mine.txt", "since")
    call = "inject=rename:error=EIO:when=4"  # what is to come back is out of the attic, half of the rest aside
    host.run(f"strace -o /dev/null -e {call} l4d2ctl reset --undo 3", check=False)
    host.run(f"ls -d {RUNTIME}/3/undo {RUNTIME}/3/reset")
    assert remove(host, "3") == ""
    assert left(host) == []
    again(host, inventory)
    ctl(host, "reset --undo 3")
    wait_for_server(host, 27015)
    assert host.run(f"cat {RUNTIME}/3/merged/{MINE}").stdout == "mine\n"
    assert host.run(f"cat {ATTIC}/3@*-undo/upper/{MINE}", check=False).stdout == "since\n"


def test_a_password_that_is_a_symlink_is_not_kept(host: Box) -> None:
    about = "stat -c '%h %U %a' /etc/shadow"
    before = host.run(f"ln -sfn /etc/shadow /var/lib/left4me/secrets/3/rcon.cfg; {about}").stdout
    assert remove(host, "3") == ""
    assert host.run(f"{about}; ls {ATTIC}/3@*").stdout.split() == [*before.split(), "merged", "port", "upper", "work"]


def test_the_attic_keeps_as_many_as_of_resets(host: Box, inventory: Path) -> None:
    for kept in (1, 2, 2):
        before = attic(host)
        remove(host, "3")
        wait_for("only the latest stay", lambda kept=kept: len(attic(host)) == kept)  # type: ignore[misc]
        assert set(attic(host)) - set(before)
        again(host, inventory)


def test_a_server_with_a_holder_is_left_and_the_others_are_not(host: Box) -> None:
    host.run(f"systemd-run -q --unit=shell --working-directory={RUNTIME}/3/merged sleep 999")
    ctl(host, "stop 4")
    before = left(host)
    [line] = remove(host, "3 4", code=1).splitlines()
    assert re.search(r"server 3 is not removed: .* held by pid \d+ \(sleep\) by its cwd", line), line
    assert set(left(host)) == set(before)
    assert host.run(f"ls -d {RUNTIME}/[!_]* /etc/left4me/servers/[!_]*").stdout.split() == [
        "/etc/left4me/servers/3",
        f"{RUNTIME}/3",
    ]
    host.run("systemctl stop shell")
    # The stop before, which failed by the holder, is told of once.
    assert "it is stopped and unmounted" in remove(host, "3")
    assert left(host) == []


def test_what_is_mounted_in_a_servers_directory_goes_nowhere(host: Box) -> None:
    ctl(host, "stop 3")
    host.run(f"mount -t tmpfs none {RUNTIME}/3/work")
    assert f"{RUNTIME}/3/work is mounted; umount {RUNTIME}/3/work" in remove(host, "3", code=1)
    assert attic(host) == []
    host.run(f"umount {RUNTIME}/3/work")
    assert remove(host, "3") == ""
    assert_gone(host)


def test_a_reset_that_is_at_work_is_not_disturbed(host: Box) -> None:
    [line] = host.run(f"flock /run/left4me/3.job {REMOVE} 3 2>&1", check=False).stdout.splitlines()
    assert "another command (not noted, since " in line
    assert state(host, "3") == "active"


@pytest.mark.parametrize("servers", ["", "3 ../4", "3 Left", "3 ''", "'3 4'", "3 --all"])
def test_what_is_no_id_is_refused_before_anything(host: Box, servers: str) -> None:
    before = left(host)
    assert len(remove(host, servers, code=2).splitlines()) == 1
    assert left(host) == before
    assert state(host, "3") == "active"


@pytest.mark.parametrize(
    ("syscall", "call"),
    [
        ("flock", r"runtime/3>"),
        ("rename", r'"/var/lib/left4me/runtime/3", '),
        ("unlinkat", r"rcon\.cfg"),
        ("unlink", r"3\.job"),
        ("fsync", r"multi-user\.target\.wants>"),
        ("unlinkat", r"limits\.conf"),
        ("unlinkat", r"server\.env"),
        ("rmdir", r"servers/3"),
    ],
)
def test_a_killed_removal_is_finished_by_the_next(host: Box, syscall: str, call: str) -> None:
    command = ["ssh", "-S", "none", "-F", str(host.ssh_config), host.name, f"{REMOVE} 3"]
    with Trap(host, syscall) as trap, subprocess.Popen(command, stdin=subprocess.DEVNULL) as removing:
        os.kill(trap.landing(call, REMOVE), signal.SIGKILL)
        assert removing.wait(20)
    assert remove(host, "3") == ""
    assert_gone(host)
