"""One deploy at a time on a host: the second is told whose it is, and what nobody holds any more is free at once."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from left4me.remote.program_text import program_command
from tests.boxes.boxes import Box
from tests.boxes.network import BRIDGE
from tests.integration.harness import (
    PYINFRA,
    ROOT,
    SERVERS,
    SILENCE,
    assert_idle,
    changed,
    deploy,
    impatient_checkout,
    pyinfra,
    standing,
    started,
    wait_for,
    write_inventory,
)
from tests.integration.trap import Trap, command_line, is_stopped

LOCK = "/run/left4me/deploy.lock"
PLACE, HOLDER = "apply_files.py, with", "holder.py REQUEST"
REQUEST = {
    "who": "olga@desk",
    "revision": "abc1234",
    "token": "hers",
    "given": False,
    "waits": False,
    "silence": 60,
    "mark": "",
}
OLGAS = "refused, nothing changed: is being deployed by olga@desk from "
# In Python, for no shell has this kind of lock. It says nothing where the lock is free.
PROBE = f"import fcntl; fcntl.lockf(open({LOCK!r}, 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"


def is_free(box: Box) -> bool:
    """Tell whether nobody holds the deploy lock of a box."""
    probed = box.run(f"python3 -c {shlex.quote(PROBE)}", check=False)
    assert probed.returncode == 0 or "BlockingIOError" in probed.stderr, probed.stderr
    return probed.returncode == 0


def revision() -> str:
    """Return the revision of this checkout, put together from two commands that say nothing else."""
    git = ["git", "--no-optional-locks", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
    dirty = subprocess.run([*git, "diff", "--quiet", "HEAD"], check=False).returncode
    return head.strip() + ("+" if dirty else "")


@contextmanager
def stopped(box: Box, inventory: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Have a deploy of something new that stands in the middle of a command; it and the outer PID of that command."""
    with started(inventory, "deploy.py", "-y") as first:
        with Trap(box, "fsync") as trap:
            command = trap.landing(r"servers/3/\.server\.cfg", PLACE)
        wait_for("the command stands", lambda: is_stopped(command))
        yield first, command


@contextmanager
def elsewhere(box: Box) -> Iterator[str]:
    """Have another machine on the boxes' network: a network namespace, by its name, as is its cable's outer end."""
    # One for each box: tests run side by side. Boxes have the addresses from the other end.
    name, there = f"{BRIDGE}c{box.index}", ipaddress.ip_interface(f"{box.address}/24").network[-2 - box.index]
    made = (
        f"ip netns add {name}",
        f"ip link add name {name} type veth peer name eth0 netns {name}",
        f"ip link set {name} master {BRIDGE} up",
        f"ip -n {name} address add {there}/24 dev eth0",
        f"ip -n {name} link set eth0 up",
    )
    # The cable first: the kernel removes what goes with a namespace when it finds the time.
    gone = (f"ip link delete {name}", f"ip netns delete {name}")
    for command in gone:  # what a killed test left
        subprocess.run(command.split(), capture_output=True, check=False)
    try:
        for command in made:
            subprocess.run(command.split(), check=True)
        yield name
    finally:
        for command in gone:
            subprocess.run(command.split(), check=False)


@contextmanager
def held(box: Box, **more: object) -> Iterator[subprocess.Popen[str]]:
    """Hold a box's lock as somebody else does it, with the token `hers`."""
    remote = shlex.join(program_command("holder", json.dumps({**REQUEST, **more})))
    ssh = ["ssh", "-F", str(box.ssh_config), box.name, remote]
    with subprocess.Popen(ssh, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdin
        assert holder.stdout
        assert holder.stdout.readline() == "locked\n"
        yield holder
        holder.stdin.close()


@pytest.fixture
def other(box: Box, tmp_path: Path) -> Iterator[Path]:
    """An inventory with another server 3, by way of sudo; the box has the usual one again afterwards."""
    servers = {**SERVERS, "3": {**SERVERS["3"], "hostname": "another", "memory_max": "3G"}}
    yield write_inventory(tmp_path / "other", [box], user="admin", servers=servers)
    deploy(write_inventory(tmp_path / "usual", [box]))


def test_a_second_deploy_is_told_whose_the_host_is_and_changes_nothing(
    deployed: Box, inventory: Path, other: Path
) -> None:
    with socket.create_connection((deployed.address, 22)) as connection:
        here = connection.getsockname()[0]
    before = time.time()
    with stopped(deployed, other) as (first, command):
        seen = standing(deployed)
        begun = time.monotonic()
        second = pyinfra(inventory, "deploy.py", "-y")
        assert time.monotonic() - begun < 30  # it does not wait as for what a killed one left
        assert second.returncode == 1
        [line] = [line for line in second.stderr.splitlines() if "refused" in line]
        found = re.search(
            r"refused, nothing changed: is being deployed by (\S+) from (\S+) since (.+) UTC \(revision (\S+)\); wait",
            line,
        )
        assert found, line
        assert found[1].endswith(f"@{socket.gethostname()}")
        assert (found[2], found[4]) == (here, revision())
        since = subprocess.run(["date", "-u", "-d", found[3], "+%s"], capture_output=True, text=True, check=True).stdout
        assert before - 5 < int(since) < time.time() + 5
        # Only showing what would be done needs nobody's leave.
        assert pyinfra(inventory, "deploy.py", "--dry").returncode == 0
        assert standing(deployed) == seen
        os.kill(command, signal.SIGCONT)
        first.communicate(timeout=60)
        assert first.returncode == 0
    wait_for("the lock is free", lambda: is_free(deployed), 10)


def test_a_dry_run_takes_no_lock(deployed: Box, inventory: Path) -> None:
    deployed.run(f"rm {LOCK}")
    assert pyinfra(inventory, "deploy.py", "--dry").returncode == 0
    assert pyinfra(inventory, "deploy.py", "--json").returncode == 0  # asks nobody, and without -y does nothing
    deployed.run(f"test ! -e {LOCK}")


def test_the_lock_of_a_killed_deploy_is_free_at_once_but_for_its_command(
    deployed: Box, inventory: Path, other: Path
) -> None:
    with stopped(deployed, other) as (first, command):
        assert not is_free(deployed)
        first.kill()
        wait_for("the lock is free", lambda: is_free(deployed), 10)
        assert deployed.run(f"flock --nonblock {LOCK} true", check=False).returncode == 1
        os.kill(command, signal.SIGCONT)
        wait_for("the command ends", lambda: not command_line(command))
    deployed.run(f"flock --nonblock {LOCK} true")
    deploy(inventory)


def test_a_deploy_that_lost_its_lock_to_another_changes_nothing_more(
    deployed: Box, inventory: Path, other: Path
) -> None:
    with stopped(deployed, other) as (first, command):
        first.send_signal(signal.SIGSTOP)
        os.kill(command, signal.SIGCONT)
        wait_for("the command ends", lambda: not command_line(command))
        deployed.run(f"pkill -f '{HOLDER}'")
        wait_for("the lock is free", lambda: is_free(deployed), 10)
        with held(deployed):
            seen = standing(deployed)
            first.send_signal(signal.SIGCONT)
            _, said = first.communicate(timeout=60)
            assert first.returncode == 1
            assert "this deploy lost its lock to another one; wait for that, then deploy again" in said
            assert standing(deployed) == seen


def test_silence_frees_the_lock_and_a_heartbeat_keeps_it(deployed: Box) -> None:
    with held(deployed, silence=5) as holder:
        assert holder.stdin
        for _ in range(7):
            time.sleep(1)
            holder.stdin.write("\n")
            holder.stdin.flush()
            assert not is_free(deployed)
        wait_for("silence ends it", lambda: is_free(deployed), 12)
        assert holder.wait(10) == 0


def test_who_connects_again_has_the_lock_once_the_connection_before_has_ended(deployed: Box) -> None:
    with held(deployed) as before, held(deployed) as after:
        assert before.stdin
        assert after.stdin
        assert after.stdout
        before.stdin.close()
        assert before.wait(5) == 0
        after.stdin.write("\n")
        after.stdin.flush()
        assert after.stdout.readline() == "\n"
        assert not is_free(deployed)
        # It is named as the holder from now on.
        record = json.loads(deployed.run(f"cat {LOCK}").stdout)
        assert deployed.run(f"cat /proc/{record['pid']}/comm").stdout == "python3\n"


def test_an_earlier_deploys_name_is_not_told_for_that_of_one_that_has_just_begun(
    deployed: Box, inventory: Path
) -> None:
    with held(deployed):
        pass  # what it wrote stays there
    assert "olga@desk" in deployed.run(f"cat {LOCK}").stdout
    holds = f"import fcntl, time; file = open({LOCK!r}, 'r+'); fcntl.lockf(file, fcntl.LOCK_EX); time.sleep(600)"
    deployed.run(f"systemd-run --quiet --unit=holds python3 -c {shlex.quote(holds)}")
    try:
        wait_for("the lock is held", lambda: not is_free(deployed))
        done = pyinfra(inventory, "deploy.py", "-y")
        assert "refused, nothing changed: another deploy of it has just begun; wait for it" in done.stderr
        assert "olga" not in done.stderr
    finally:
        deployed.run("systemctl stop holds")


def test_a_token_from_outside_is_honoured_as_long_as_its_lock_is_held(
    deployed: Box, inventory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with held(deployed, silence=600):  # a heartbeat is not what this is about
        monkeypatch.setenv("LEFT4ME_LOCK_TOKEN", "hers")
        assert_idle(deploy(inventory), [deployed])
        assert not is_free(deployed)
        seen = standing(deployed)
        monkeypatch.setenv("LEFT4ME_LOCK_TOKEN", "stale")
        wrong = pyinfra(inventory, "deploy.py", "-y")
        assert (wrong.returncode, OLGAS in wrong.stderr) == (1, True), wrong.stderr
    monkeypatch.setenv("LEFT4ME_LOCK_TOKEN", "hers")
    late = pyinfra(inventory, "deploy.py", "-y")
    assert late.returncode == 1
    assert "refused, nothing changed: the lock that this deploy was given is held no more" in late.stderr
    assert standing(deployed) == seen


def test_the_machine_itself_is_locked_too() -> None:
    """By `@local`, in a /run of its own, for it is this machine's."""
    script = f"""
import subprocess, sys
import pyinfra_cli
from pyinfra.api import Config, Inventory, State
from left4me.lock import client as lock
inventory = Inventory((["@local", "@fake/one"], {{}}))
state = State(inventory, Config())
print([lock.take(host) for host in inventory])
probed = subprocess.run([sys.executable, "-c", {PROBE!r}], capture_output=True, text=True)
print("BlockingIOError" in probed.stderr)
"""
    inside = ["sh", "-c", 'mount -t tmpfs none /run && exec "$@"', "sh", sys.executable, "-c", script]
    done = subprocess.run(
        ["unshare", "--mount", *inside], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "['', '']\nTrue\n", done.stderr


def test_the_host_knows_its_revision(deployed: Box, inventory: Path) -> None:
    assert deployed.run("cat /etc/left4me/revision").stdout == f"{revision()}\n"
    before = deployed.run("stat -c '%i %y' /etc/left4me/revision").stdout
    assert_idle(deploy(inventory), [deployed])
    assert deployed.run("stat -c '%i %y' /etc/left4me/revision").stdout == before
    deployed.run("echo another >/etc/left4me/revision")
    assert changed(deploy(inventory)) == ["Record the revision"]
    when = deployed.run("date -r /etc/left4me/revision '+%a %Y-%m-%d %H:%M:%S %Z'").stdout.strip()
    shown = deployed.run("script --quiet --command 'l4d2ctl status' /dev/null").stdout.splitlines()
    assert shown[-1] == f"revision {revision()}, deployed {when}"
    rows = json.loads(deployed.run("l4d2ctl status --json").stdout)
    assert {row["revision"] for row in rows} == {revision()}


def test_a_control_machine_that_vanishes_costs_the_silence(
    deployed: Box, inventory: Path, other: Path, tmp_path: Path
) -> None:
    here = impatient_checkout(tmp_path / "here")
    with elsewhere(deployed) as machine:
        deploying = ["ip", "netns", "exec", machine, str(PYINFRA), str(other), "deploy.py", "-y"]
        with subprocess.Popen(deploying, cwd=here, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
            with Trap(deployed, "fsync") as trap:
                command = trap.landing(r"servers/3/\.server\.cfg", PLACE)
            wait_for("the command stands", lambda: is_stopped(command))
            assert not is_free(deployed)
            subprocess.run(["ip", "link", "set", machine, "down"], check=True)
            os.kill(command, signal.SIGCONT)
            begun = time.monotonic()
            wait_for("the lock is free", lambda: is_free(deployed), SILENCE + 2)
            assert time.monotonic() - begun > SILENCE / 2  # not for another reason
            deploy(inventory)
            seen = standing(deployed)
            subprocess.run(["ip", "link", "set", machine, "up"], check=True)
            assert first.wait(90) == 1  # its command has run out of time
            assert standing(deployed) == seen


def test_an_operator_who_thinks_it_over_keeps_the_lock(deployed: Box, inventory: Path, tmp_path: Path) -> None:
    here = impatient_checkout(tmp_path / "here")
    command = [str(PYINFRA), str(inventory), "deploy.py"]
    with subprocess.Popen(command, cwd=here, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as thinking:
        assert thinking.stderr
        while "Detected changes displayed above" not in thinking.stderr.readline():
            pass
        time.sleep(SILENCE * 1.25)
        assert not is_free(deployed)
        thinking.communicate("\n", timeout=60)
        assert thinking.returncode == 0
