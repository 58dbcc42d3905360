"""remove.py where a story does not go: who is in the way, what a killed one leaves, what a game has left behind."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.boxes.boxes import Box
from tests.integration.ctl import RUNTIME, ctl, fleet, main_pid, rcon
from tests.integration.harness import deploy, inodes, pyinfra, started, wait_for, wait_for_server
from tests.integration.trap import Trap, kill_both

PROGRAM = '{"act": "remove"'
LEFT = """
    find / /run -xdev '(' -name '*left4me*' -o -name '*l4d2ctl*' ')' -print
    ls -d /usr/local/lib/systemd /usr/local/share/bash-completion /etc/needrestart 2>/dev/null
    getent passwd | grep ^left4me; getent group | grep left4me
    systemctl list-units --all --plain --no-legend '*left4me*'
    systemctl list-unit-files --no-legend '*left4me*'
    findmnt --list --output TARGET | grep left4me || true
"""


@pytest.fixture(scope="module")
def inventory(box: Box, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fleet(tmp_path_factory.mktemp("fleet") / "inventory", [box], operators="sudo")


@pytest.fixture
def host(deployed: Box, inventory: Path) -> Iterator[Box]:
    """Have servers 3 and 4 run and answer, 3 with a file that it wrote, and no archive of another test."""
    deploy(inventory)
    ctl(deployed, "start --all")
    for port in (27015, 27016):
        wait_for_server(deployed, port)
    deployed.run(f"echo mine >{RUNTIME}/3/merged/left4dead2/mine.txt; rm -f /root/left4me-*")
    yield deployed
    deployed.run("systemctl stop shell", check=False)


def remove(inventory: Path, box: Box, *more: str, code: int = 0) -> str:
    """Take left4me off a host as a script does, and return what is said."""
    done = pyinfra(inventory, "remove.py", "--limit", box.name, "-y", "--data", f"remove={box.name}", *more)
    said = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)
    assert done.returncode == code, said
    assert "Traceback" not in said
    return said


def archives(box: Box) -> list[str]:
    return box.run("ls -d /root/left4me-* /root/.left4me-* 2>/dev/null || true").stdout.split()


def left(box: Box) -> list[str]:
    """Return what is left of left4me on a host but the archives."""
    return [line for line in box.run(LEFT).stdout.splitlines() if not line.startswith("/root/left4me-")]


def assert_as_before(box: Box, pids: Sequence[str], before: str) -> None:
    assert [main_pid(box, server) for server in ("3", "4")] == list(pids)
    assert inodes(box) == before
    assert archives(box) == []


@pytest.mark.parametrize(
    ("begin", "end", "why"),
    [
        (
            f"systemd-run -q --unit=shell --working-directory={RUNTIME}/3/merged sleep 999",
            "systemctl stop shell",
            r"server 3: pid \d+ \(sleep\) keeps its overlay busy \(cwd: ",
        ),
        (
            "systemd-run -q --unit=shell --uid=left4me-4 sleep 999",
            "systemctl stop shell",
            r"pid \d+ \(sleep\) runs as left4me-4: end that process first",
        ),
        (
            f"mount -t tmpfs none {RUNTIME}/3/work",
            f"umount {RUNTIME}/3/work",
            rf"{RUNTIME}/3/work is mounted, but not by left4me: umount {RUNTIME}/3/work",
        ),
        (
            "kill -STOP $(systemctl show -P MainPID left4me-server@4)",
            "kill -CONT $(systemctl show -P MainPID left4me-server@4)",
            "server 4 does not respond, so its players are unknown: wait, or l4d2ctl stop 4",
        ),
    ],
    ids=["holder", "process", "mount", "silent"],
)
def test_who_is_in_the_way_is_named_before_anything_changes(
    host: Box, inventory: Path, begin: str, end: str, why: str
) -> None:
    pids = [main_pid(host, server) for server in ("3", "4")]
    host.run(begin)
    before = inodes(host)
    try:
        assert re.search(f"refused, nothing changed: {why}", remove(inventory, host, code=1))
        assert_as_before(host, pids, before)
    finally:
        host.run(end)


def test_players_are_not_thrown_out(host: Box, inventory: Path) -> None:
    pids, before = [main_pid(host, server) for server in ("3", "4")], inodes(host)
    rcon(host, 27016, "standin_players 1")
    assert "refused, nothing changed: server 4 has 1 player: wait" in remove(inventory, host, code=1)
    assert_as_before(host, pids, before)
    rcon(host, 27016, "standin_players 0")


def test_another_who_has_the_lock_is_named(host: Box, inventory: Path) -> None:
    pids = [main_pid(host, server) for server in ("3", "4")]
    record = {"who": "olga@desk", "from": "here", "since": "now", "revision": "1", "token": "t"}
    hold = f"""
import fcntl, json, os, time
file = open("/run/left4me/deploy.lock", "w")
fcntl.lockf(file, fcntl.LOCK_EX)
file.write(json.dumps({record} | {{"pid": os.getpid()}}))
file.flush()
time.sleep(999)
"""
    host.run(f"systemd-run -q --unit=shell python3 -c {shlex.quote(hold)}")
    wait_for("the lock is held", lambda: "olga" in host.run("cat /run/left4me/deploy.lock").stdout)
    assert "is being deployed by olga@desk" in remove(inventory, host, code=1)
    assert [main_pid(host, server) for server in ("3", "4")] == pids


def test_a_look_changes_nothing(host: Box, inventory: Path) -> None:
    pids, before = [main_pid(host, server) for server in ("3", "4")], inodes(host)
    for how in ("--dry", "--json"):
        done = pyinfra(inventory, "remove.py", "--limit", host.name, how)
        assert done.returncode == 0, done.stderr
        assert "removes users: left4me-3 left4me-4 left4me" in re.sub(r"\x1b\[[0-9;]*m", "", done.stderr)
        assert_as_before(host, pids, before)


def test_nothing_is_kept_where_that_is_said(host: Box, inventory: Path) -> None:
    said = remove(inventory, host, "--data", "keep=no")
    assert "deletes what servers wrote" in said
    assert left(host) == []
    assert archives(host) == []


def test_what_a_game_has_left_behind_is_kept_and_leads_nowhere(host: Box, inventory: Path) -> None:
    host.run("mkdir -p /srv/outside && echo safe >/srv/outside/file")
    ctl(host, "reset 4")
    ctl(host, "stop 3")
    host.run("echo secret >$(echo /var/lib/left4me/attic/4@*)/rcon.cfg")  # as a removal leaves it there
    host.run(f"""
        cd {RUNTIME}/3/upper && ln -s /srv/outside out && mkfifo pipe && truncate -s 50G sparse
        python3 -c 'import os
for _ in range(300): os.mkdir("d" * 200); os.chdir("d" * 200)'
    """)
    assert "left4me is removed from this host" in remove(inventory, host)
    assert left(host) == []
    assert host.run("cat /srv/outside/file").stdout == "safe\n"
    [archive] = archives(host)
    listed = host.run(f"tar -tzf {archive} | cut -c 1-60 | uniq").stdout
    assert "runtime/3/upper/out\n" in listed
    assert "runtime/3/upper/left4dead2/mine.txt\n" in listed
    assert re.search(r"^attic/4@[^/]+/upper/", listed, re.MULTILINE)
    assert "rcon.cfg" not in listed
    host.run("test -d /usr/local/libexec")  # Debian 13 has it by itself
    assert int(host.run(f"stat -c %s {archive}").stdout) < 100_000_000


def test_a_full_disk_keeps_what_servers_wrote_where_it_is(host: Box, inventory: Path) -> None:
    host.run("""
        mount -t tmpfs -o size=64k,mode=700 none /mnt
        cp -a /root/.ssh /mnt && mount --bind /mnt /root
    """)
    try:
        host.run(f"head -c 1M /dev/urandom >{RUNTIME}/3/merged/left4dead2/big")
        said = remove(inventory, host, code=1)
        assert "cannot write the archive /root/left4me-" in said
        assert archives(host) == []
    finally:
        host.run("cd / && umount --lazy /root /mnt")
    assert host.run(f"cat {RUNTIME}/3/upper/left4dead2/mine.txt").stdout == "mine\n"
    remove(inventory, host)
    assert left(host) == []
    assert len(archives(host)) == 1


@pytest.mark.parametrize(
    ("program", "syscall", "call"),
    [
        ("rm --recursive", "unlinkat", r"left4me-server@\.service"),
        (PROGRAM, "fsync", r"/root/\.left4me-"),
        (PROGRAM, "rename", r'"/var/lib/left4me/runtime", '),
        ("rm --recursive", "unlinkat", r'"deploy\.lock"'),
    ],
)
def test_a_killed_one_is_finished_by_the_same_command(
    host: Box, inventory: Path, program: str, syscall: str, call: str
) -> None:
    arguments = ("remove.py", "--limit", host.name, "-y", "--data", f"remove={host.name}")
    with Trap(host, syscall) as trap, started(inventory, *arguments) as removing:
        kill_both(removing, trap.landing(call, program))
    remove(inventory, host)
    assert left(host) == []
    [first, *_] = archives(host)
    assert not any("/." in each for each in archives(host))
    assert "runtime/3/upper/left4dead2/mine.txt" in host.run(f"tar -tzf {first}").stdout
    assert "nothing to remove" in remove(inventory, host)
