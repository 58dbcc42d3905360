"""A host that cannot be deployed is left as it is; the others are deployed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.boxes.boxes import Box
from tests.boxes.deployed import up
from tests.integration.harness import pyinfra, write_inventory

GOOD_HOSTNAMES = iter(range(10**6))
# Not: what logging in writes.
EVERYTHING = "find / -xdev /var/lib -xdev -path /var/log -prune -o -printf '%i %C@ %p\\n' | sort -u"


@pytest.fixture(scope="module")
def good(debian: int) -> Iterator[Box]:
    """A deployed box beside the one that is refused."""
    [box] = up([f"beside-{debian}"], debian, "plain")
    yield box
    box.down()


class Reason(NamedTuple):
    """What is wrong with a host, how it is made wrong and right again, and what has to be said."""

    name: str
    said: str
    wrong: str = "true"
    right: str = "true"
    data: dict[str, object] = {}  # noqa: RUF012 - nobody writes it


REASONS = [
    Reason(
        "admin-without-sudo",
        "the SSH user is not root: set _sudo = True in the host's data",
        data={"ssh_user": "admin"},
    ),
    Reason(
        "no-installation",
        "game.path: /srv/nothing has no srcds_run: it must be the directory of an installed L4D2 server",
        data={"game": {"source": "host", "path": "/srv/nothing"}},
    ),
    Reason(
        "no-project-quotas",
        "servers.3.disk_max: the filesystem of /var/lib/left4me enforces no project quotas: mount it with them "
        '(docs/servers.md, "A limit of disk space"), or set disk_max to "infinity"',
        data={"servers": {"3": {"port": 27015, "disk_max": "1G"}}},
    ),
    Reason(
        "another-system",
        "runs debian 11; only Debian 12 and 13 are supported",
        wrong="printf 'ID=debian\\nVERSION_ID=\"11\"\\n' >/run/other && mount --bind /run/other /etc/os-release",
        right="umount /etc/os-release",
    ),
    Reason(
        "no-overlayfs",
        "its kernel has no overlayfs: check /lib/modules, or ask the provider if it is a container",
        wrong="grep -v overlay /proc/filesystems >/run/other; mount --bind /run/other /proc/filesystems",
        right="umount /proc/filesystems",
    ),
    Reason(
        "no-systemd",
        "PID 1 is init; left4me needs systemd",
        wrong="echo init >/run/other && mount --bind /run/other /proc/1/comm",
        right="umount /proc/1/comm",
    ),
    Reason(
        "no-python",
        "python3 is missing: apt-get install python3",
        wrong="mv /usr/bin/python3 /usr/bin/python3.away",
        right="mv /usr/bin/python3.away /usr/bin/python3",
    ),
    Reason(
        "one-session",
        "its sshd allows only one session per connection, but a deploy needs two (one holds the lock): "
        "raise MaxSessions in its sshd_config",
        wrong="echo 'MaxSessions 1' >/etc/ssh/sshd_config.d/one.conf && systemctl reload ssh",
        right="rm /etc/ssh/sshd_config.d/one.conf && systemctl reload ssh",
    ),
    Reason(
        "uid-taken",
        "uid 980 is already taken by user somebody: choose another `uid`",
        wrong="useradd --uid 980 --user-group somebody",
        right="userdel somebody",
    ),
    Reason(
        "gid-taken",
        "gid 980 is already taken by group some: choose another `gid`",
        wrong="groupadd --gid 980 some",
        right="groupdel some",
    ),
]


def deploy_beside(tmp_path: Path, bad: Box, good: Box, **data: object) -> str:
    """Deploy both, which has to end with 1 and the good one deployed; return what was said of the bad one."""
    hostname = f"evening {next(GOOD_HOSTNAMES)}"
    hosts = {bad.name: data, good.name: {"servers": {"3": {"port": 27015, "hostname": hostname}}}}
    done = pyinfra(write_inventory(tmp_path / "inventory", [bad, good], hosts=hosts), "deploy.py", "-y")
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert hostname in good.run("cat /etc/left4me/servers/3/server.cfg").stdout
    lines = [line.strip() for line in done.stderr.splitlines() if f"[{bad.name}]" in line]
    return "\n".join(line for line in lines if not line.endswith(("Connected", "Ready: deploy.py")))


@pytest.mark.parametrize("reason", REASONS, ids=lambda reason: reason.name)
def test_preflight_refuses_a_host_that_then_is_as_it_was(box: Box, good: Box, tmp_path: Path, reason: Reason) -> None:
    box.run(reason.wrong)
    try:
        before = box.run(EVERYTHING).stdout
        said = deploy_beside(tmp_path, box, good, **reason.data)
        assert box.run(EVERYTHING).stdout == before
    finally:
        box.run(reason.right)
    assert said == f"[{box.name}] refused, nothing changed: {reason.said}"


def test_a_program_is_told_which_host_was_refused(box: Box, good: Box, tmp_path: Path) -> None:
    inventory = write_inventory(tmp_path / "inventory", [box, good], hosts={box.name: {"ssh_user": "admin"}})
    done = pyinfra(inventory, "deploy.py", "-y", "--json")
    assert done.returncode == 1
    results = json.loads(done.stdout)["results"]
    assert results["failed_hosts"] == [box.name]
    assert {name for each in results["operations"] for name in each["success"] + each["no_change"]} == {good.name}


def test_a_host_that_is_down(box: Box, good: Box, tmp_path: Path) -> None:
    box.crash()
    try:
        said = deploy_beside(tmp_path, box, good)
    finally:
        box.start()
    [line] = said.splitlines()
    assert line.startswith(f"[{box.name}]")
    assert "Could not connect" in line
