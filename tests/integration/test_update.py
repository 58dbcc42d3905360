"""Builds of the game from Steam: installed, updated beside running servers, tried, held back, and left again."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import signal
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from pathlib import Path
from typing import IO, Any

import pytest

from tests.boxes.boxes import Box
from tests.integration import sources
from tests.integration import steam as steams
from tests.integration.ctl import PASSWORD, ctl, jobs, main_pid, rcon, state
from tests.integration.harness import (
    ROOT,
    SERVERS,
    assert_idle,
    changed,
    deploy,
    name_over_a2s,
    properties,
    pyinfra,
    standing,
    started,
    wait_for,
    wait_for_server,
    write_inventory,
)
from tests.integration.layers import lowers, merged
from tests.integration.steam import Build, Steam
from tests.integration.test_verification import must_pass
from tests.integration.test_webhook import outside
from tests.integration.trap import outer_pid

RELEASES = "/var/lib/left4me/releases"
GAME = "/var/lib/left4me/game"
STEP = "Put the game in place"
NUMBERS = count(15_000_001)
LOST = b"#!/bin/sh\nexit 3\n"
PUBLISHED: dict[str, Build] = {}
"""Every build that Steam had, by its number."""


@pytest.fixture(scope="module")
def steam(box: Box, game: Path) -> Iterator[Steam]:
    with steams.serving(outside(box)) as served:
        publish(served, str(next(NUMBERS)), game)
        yield served


def publish(steam: Steam, number: str, tree: Path, changes: Mapping[str, bytes | None] | None = None) -> None:
    """Make a build Steam's current one, and remember it."""
    steam.publish(number, tree, changes or {})
    assert steam.build
    PUBLISHED[number] = steam.build


def declare(path: Path, box: Box, steam: Steam, **data: Any) -> Path:
    """Write an inventory of a host that has its game from Steam."""
    common = {"game": {"source": "steamcmd"}, "steamcmd_url": steam.steamcmd_url}
    return write_inventory(path, [box], **{**common, "steamcmd_sha256": steam.steamcmd_sha256, **data})


@pytest.fixture(scope="module")
def inventory(box: Box, steam: Steam, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return declare(tmp_path_factory.mktemp("fleet") / "inventory", box, steam)


@pytest.fixture
def host(deployed: Box, steam: Steam) -> Iterator[Box]:
    """The box with both servers up on the current build, and nothing asked of Steam yet."""
    ctl(deployed, "restart --all")
    for port in (27015, 27016):
        wait_for_server(deployed, port)
    steam.asked.clear()
    yield deployed
    steam.is_down = steam.cut = steam.hold = False
    steam.go_on.set()
    steam.fail_next(0)


@pytest.fixture
def newer(steam: Steam, game: Path) -> Callable[..., str]:
    """Publish a newer build, with a file that names it, and return its number."""

    def newest(changes: Mapping[str, bytes | None] | None = None) -> str:
        number = str(next(NUMBERS))
        publish(steam, number, game, {"left4dead2/build.txt": number.encode(), **(changes or {})})
        steam.holding.clear()
        steam.go_on.clear()
        return number

    return newest


def current(box: Box) -> str:
    """Return the build that `installation` names, read from outside."""
    return os.readlink(f"/proc/{box.leader}/root/var/lib/left4me/installation").removeprefix("releases/")


def build_of(box: Box, server: str) -> str:
    """Return the build that a server runs on, as the kernel has its mount."""
    return lowers(box, server)[-1].removeprefix(f"{RELEASES}/")


def builds(box: Box) -> list[str]:
    """Return what is in releases/, hidden or not."""
    return sorted(box.run(f"ls -A {RELEASES}").stdout.split())


def downloads(steam: Steam) -> list[str]:
    """Return which trees were asked for."""
    return [path for path in steam.asked if path.endswith((".tar", ".gz"))]


def updating(box: Box) -> bool:
    """Tell whether the update's unit works."""
    return state_of(box, "left4me-game.service") == "activating"


def is_whole(box: Box) -> None:
    """Assert that `installation` names a build as it was published, that was tried, and that servers start on it."""
    build = current(box)
    assert box.run(f"cat {GAME}/verdicts/{build}").stdout == "good\n"
    there = box.run(f"cd {RELEASES}/{build} && find . -type f -print0 | xargs -0 sha256sum").stdout.splitlines()
    found = {name.removeprefix("./"): digest for digest, name in map(str.split, there)}
    expected = {
        name: hashlib.sha256(content if isinstance(content, bytes) else content.read_bytes()).hexdigest()
        for name, content in PUBLISHED[build].files("linux").items()
    }
    assert expected.items() <= found.items()
    assert {name.split("/")[0] for name in found.keys() - expected.keys()} <= {".steam", "steamapps"}
    ctl(box, "restart 3")
    wait_for_server(box, 27015)
    assert build_of(box, "3") == build
    leftovers = box.run("find /var/lib/left4me -path '*/merged/*' -prune -o -name '.[ngd]*-*' -print").stdout
    assert leftovers == ""


def test_a_fresh_install(deployed: Box, inventory: Path, steam: Steam) -> None:
    for port in (27015, 27016):
        wait_for_server(deployed, port)
    assert downloads(steam) == [steams.STEAMCMD, f"{steams.APP}/windows.tar", f"{steams.APP}/linux.tar"]
    assert steam.build
    number = steam.build.number
    assert (current(deployed), build_of(deployed, "3")) == (number, number)
    release = f"{RELEASES}/{number}"
    owners = deployed.run(f"find {release} -printf '%u:%g %M\\n' | sort | uniq -c | sort -rn").stdout
    assert set(re.findall(r"\w+:\w+", owners)) == {"left4me:left4me"}
    # Where the game looks for Steam's client, in all that it can see of the host.
    client = merged(deployed, "../.steam/sdk32/steamclient.so")
    assert client.read_bytes() == steams.ELF32
    environment = deployed.run(f"tr '\\0' '\\n' </proc/{main_pid(deployed, '3')}/environ").stdout
    assert "HOME=/var/lib/left4me/runtime/3/merged\n" in environment
    assert "+@sSteamCmdForcePlatformType windows" in deployed.run(f"cat {GAME}/steamcmd.log").stdout
    assert deployed.run(f"stat -c %U {GAME}/steamcmd/logs/stderr.txt").stdout == "left4me\n"
    steam.asked.clear()
    before = standing(deployed)
    assert_idle(deploy(inventory), [deployed])
    assert (steam.asked, standing(deployed)) == ([], before)
    must_pass(inventory)


def test_what_is_new_at_steam_is_told_and_not_taken(host: Box, steam: Steam, newer: Callable[..., str]) -> None:
    before, number = current(host), newer()
    assert ctl(host, "game update --check").stdout == f"current build: {before}; Steam's newest: {number}\n"
    assert (current(host), downloads(steam), builds(host)) == (before, [], [before])


def test_an_update_beside_running_servers(host: Box, inventory: Path, steam: Steam, newer: Callable[..., str]) -> None:
    old, number = current(host), newer()
    before = {server: (main_pid(host, server), lowers(host, server)) for server in SERVERS}
    files = host.run(f"find {RELEASES}/{old} -printf '%i %C@ %s %p\\n' | sort").stdout
    said = ctl(host, "game update", timeout=120).stdout
    assert f"build {number} is current; running servers use it after a restart" in said
    assert current(host) == number
    assert {server: (main_pid(host, server), lowers(host, server)) for server in SERVERS} == before
    assert host.run(f"find {RELEASES}/{old} -printf '%i %C@ %s %p\\n' | sort").stdout == files
    assert [name_over_a2s(host, port) for port in (27015, 27016)] == ["three", "four"]
    assert not merged(host, "build.txt").exists()
    rows = {row["id"]: row for row in json.loads(ctl(host, "status --json").stdout)}
    assert {(row["build"], row["restart_due"]) for row in rows.values()} == {(old, True)}
    assert "restart required" in ctl(host, "status 3").stdout
    ctl(host, "restart 3")
    assert merged(host, "build.txt").read_text() == number
    assert (build_of(host, "3"), build_of(host, "4"), main_pid(host, "4")) == (number, old, before["4"][0])
    [row] = json.loads(ctl(host, "status --json 3").stdout)
    assert (row["build"], row["restart_due"]) == (number, False)
    assert_idle(deploy(inventory), [host])
    ctl(host, "restart 4")
    must_pass(inventory)
    # One more than the current one is kept, and no more.
    assert builds(host) == sorted([old, number])


def test_a_rollback_takes_seconds_and_no_download(
    host: Box, inventory: Path, steam: Steam, newer: Callable[..., str]
) -> None:
    old = current(host)
    number = newer()
    ctl(host, "game update", timeout=120)
    ctl(host, "restart --all")
    steam.asked.clear()
    pid = main_pid(host, "3")
    assert ctl(host, "game rollback", timeout=10).stdout.startswith(f"build {old} is current")
    assert (current(host), main_pid(host, "3"), build_of(host, "3")) == (old, pid, number)
    ctl(host, "restart --all")
    assert {build_of(host, server) for server in SERVERS} == {old}
    assert steam.asked == []
    deploy(inventory)  # the build before these two goes
    assert builds(host) == sorted([old, number])
    assert_idle(deploy(inventory), [host])
    # The timer's unit does not take it back, an operator does.
    host.run("systemctl start left4me-game.service")
    assert current(host) == old
    assert f"skipping build {number}: left by a rollback to {old}" in journal(host)
    assert downloads(steam) == []
    ctl(host, "game update", timeout=60)
    assert (current(host), downloads(steam)) == (number, [])
    assert ctl(host, "game rollback 1", code=1).stderr.startswith("l4d2ctl: build 1 is not on this host, which has: ")
    assert "is not a build name" in ctl(host, "game rollback ../x", code=2).stderr


def test_where_no_build_is_current_a_rollback_makes_one_so(host: Box) -> None:
    good, pid = current(host), main_pid(host, "3")
    host.run(f"rm {VAR}/installation")
    ctl(host, f"game rollback {good}", timeout=60)
    assert (current(host), main_pid(host, "3")) == (good, pid)
    is_whole(host)


def test_an_update_brings_a_build_again_that_was_deleted(host: Box) -> None:
    number = current(host)
    ctl(host, "stop --all")
    host.run(f"rm -r {VAR}/releases/{number}")
    assert "\tcurrent\t" not in ctl(host, "game status").stdout
    ctl(host, "game update", timeout=120)
    assert current(host) == number
    ctl(host, "start --all")
    is_whole(host)


def journal(box: Box) -> str:
    """Return what updates said."""
    return said_by(box, "left4me-game.service")


def test_data_hold_a_server_back_and_send_one_ahead(
    host: Box, inventory: Path, steam: Steam, newer: Callable[..., str], tmp_path: Path
) -> None:
    old = current(host)
    held = declare(tmp_path / "held", host, steam, game={"source": "steamcmd", "build": old})
    assert changed(deploy(held)) == ["Write the configuration of the test instances"]
    number = newer()
    said = ctl(host, "game update", timeout=120).stdout
    assert f"build {number} is ready; game.build keeps this host at {old}" in said
    assert (current(host), builds(host)) == (old, sorted([old, number]))
    assert "game.build keeps this host" in ctl(host, "game rollback", code=1).stderr
    servers = {**SERVERS, "4": {**SERVERS["4"], "build": number}}
    ahead = declare(tmp_path / "ahead", host, steam, game={"source": "steamcmd", "build": old}, servers=servers)
    deploy(ahead)
    assert_idle(deploy(ahead), [host])
    assert {each["id"]: each["restart_due"] for each in json.loads(ctl(host, "status --json").stdout)} == {
        "3": False,
        "4": True,
    }
    ctl(host, "restart --all")
    assert (build_of(host, "3"), build_of(host, "4")) == (old, number)
    must_pass(ahead)
    # The other way round: all move on, and one stays.
    servers["4"] = {**SERVERS["4"], "build": old}
    back = declare(tmp_path / "back", host, steam, servers=servers, game={"source": "steamcmd", "build": number})
    deploy(back)
    ctl(host, "restart --all")
    assert (current(host), build_of(host, "3"), build_of(host, "4")) == (number, number, old)
    must_pass(back)
    nowhere = declare(tmp_path / "nowhere", host, steam, servers={"3": {**SERVERS["3"], "build": "99"}})
    done = pyinfra(nowhere, "deploy.py", "-y")
    assert done.returncode == 1
    refused = "refused, nothing changed: servers.3.build: 99 is not on this host: set it to None or "
    assert refused in done.stdout + done.stderr
    withdrawn = declare(tmp_path / "withdrawn", host, steam, game={"source": "steamcmd", "build": "99"})
    done = pyinfra(withdrawn, "deploy.py", "-y")
    assert done.returncode == 1
    assert f"game.build: 99 is not available from Steam, which has {number}" in done.stdout + done.stderr
    assert current(host) == number
    deploy(inventory)


# -- what goes wrong


def test_steam_fails_for_a_moment(host: Box, steam: Steam, newer: Callable[..., str]) -> None:
    number = newer()
    steam.fail_next(2)
    said = ctl(host, "game update", timeout=120).stdout
    assert "state is 0x402 after update job." in said
    assert ("retrying in 2 s" in said, "retrying in 10 s" in said) == (True, True)
    assert current(host) == number
    is_whole(host)


def test_a_download_that_breaks_off(host: Box, steam: Steam, newer: Callable[..., str]) -> None:
    """The connection to Steam goes in the middle; SteamCMD's own try comes to nothing, the next one does it."""
    old, number = current(host), newer()
    steam.hold = True
    with started_update(host):
        assert steam.holding.wait(60)
        assert current(host) == old
        steam.hold, steam.cut = False, True
        kill(host, "steamcmd.sh")
        wait_for("it tries again", lambda: "retrying in 10 s" in journal(host)[-600:], 60)
        steam.cut = False
        wait_for("it is done", lambda: not updating(host), 90)
    assert current(host) == number
    is_whole(host)


def started_update(box: Box) -> AbstractContextManager[subprocess.Popen[str]]:
    """Start an update as an operator, over a connection of his own, which ends with the block."""
    return typed(box, "game update")


@contextmanager
def typed(box: Box, words: str) -> Iterator[subprocess.Popen[str]]:
    """Run l4d2ctl as an operator, over a connection of his own, which ends with the block."""
    command = ["ssh", "-F", str(box.ssh_config), box.name, f"l4d2ctl {words}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for_line(stream: IO[str], said: str) -> None:
    """Return when a line has been read that begins so; fail where the stream ends before it."""
    assert any(line.startswith(said) for line in stream), f"it never said {said}"


def kill(box: Box, program: str) -> None:
    """SIGKILL a program in the box by its command line."""
    box.run(f"pkill -KILL -f {program}")


def main_process(box: Box) -> int:
    return outer_pid(box, int(properties(box, "left4me-game.service", "MainPID")["MainPID"]))


def test_the_update_is_killed_at_every_stage(
    host: Box, inventory: Path, steam: Steam, newer: Callable[..., str]
) -> None:
    old, number = current(host), newer()
    steam.hold = True
    with started_update(host):
        assert steam.holding.wait(60)
        os.kill(main_process(host), signal.SIGKILL)
        wait_for("its unit has failed", lambda: not updating(host))
    assert (current(host), host.run("pgrep -c steamcmd", check=False).stdout) == (old, "0\n")
    steam.hold = False
    steam.go_on.set()
    is_whole(host)
    ctl(host, "game update", timeout=120)
    assert current(host) == number
    is_whole(host)


def test_an_update_that_is_killed_amid_a_trial_leaves_no_server_behind(host: Box, newer: Callable[..., str]) -> None:
    old = current(host)
    newer({"srcds_linux": b"#!/bin/sh\nexec sleep 600\n"})
    with started_update(host):
        wait_for("the trial runs", lambda: state(host, "_bare") == "active", 60)
        os.kill(main_process(host), signal.SIGKILL)
        wait_for("the trial has ended", lambda: state(host, "_bare") == "inactive", 30)
    assert current(host) == old
    good = newer()
    ctl(host, "game update", timeout=120)
    assert current(host) == good
    is_whole(host)


def test_a_deploy_that_dies_leaves_the_download_at_work_and_the_next_follows_it(
    host: Box, inventory: Path, steam: Steam, newer: Callable[..., str]
) -> None:
    number = newer()
    ctl(host, "stop --all")
    host.run(f"rm /var/lib/left4me/installation; rm -r {RELEASES}/*")
    steam.hold = True
    with started(inventory, "deploy.py", "-y") as killed:
        assert steam.holding.wait(60)
        # As where its connection drops: what it had started on the host lives on.
        killed.kill()
        killed.wait()
    assert updating(host)
    with started(inventory, "deploy.py", "-y") as second:
        follow = "pgrep -cf '^/usr/bin/python3 -ISXutf8 /usr/local/sbin/l4d2ctl game update$'"
        wait_for("both follow", lambda: host.run(follow, check=False).stdout == "2\n", 60)
        steam.hold = False
        steam.go_on.set()
        out, err = second.communicate(timeout=120)
    assert second.returncode == 0, out + err
    assert "an update is already running; following it" in out + err
    assert f"build {number} is current" in out + err
    assert downloads(steam).count(f"{steams.APP}/linux.tar") == 1
    ctl(host, "start --all")
    is_whole(host)


def test_two_updates_at_once(host: Box, steam: Steam, newer: Callable[..., str]) -> None:
    number = newer()
    steam.hold = True
    with started_update(host) as first:
        assert steam.holding.wait(60)
        with started_update(host) as second:
            wait_for("there are two", lambda: host.run("pgrep -cf 'l4d2ctl game update'").stdout == "2\n")
            steam.hold = False
            steam.go_on.set()
            out, _ = second.communicate(timeout=120)
        progress, _ = first.communicate(timeout=120)
    assert re.search(r"^downloading: [0-9.]+ % \([0-9.]+ MB of [0-9.]+ MB\)$", progress, re.MULTILINE)
    assert (first.returncode, second.returncode) == (0, 0)
    assert "following it" in out
    assert (current(host), downloads(steam).count(f"{steams.APP}/linux.tar")) == (number, 1)
    is_whole(host)


def test_an_update_is_a_job_that_its_unit_ends(host: Box, steam: Steam, newer: Callable[..., str]) -> None:
    number = newer()
    steam.hold = True
    with started_update(host) as first:
        assert steam.holding.wait(60)
        [job] = [each for each in jobs(host) if each["result"] == "running"]
        assert (job["verb"], job["who"], job["words"]) == ("game update", "root", "game update")
        # He types it again, for he has lost sight of it: it is the same job.
        with started_update(host) as second:
            assert second.stdout
            wait_for_line(second.stdout, f"job {job['job']} is running; ")
        assert jobs(host)[0]["job"] == job["job"]
        first.kill()
        host.run("pkill -KILL -f 'l4d2ctl game update$'")
    with typed(host, f"jobs -f {job['job']}") as third:
        assert third.stdout
        wait_for_line(third.stdout, "asking Steam for the current build")
        steam.hold = False
        steam.go_on.set()
        output, _ = third.communicate(timeout=120)
    assert (third.returncode, current(host)) == (0, number)
    assert f"build {number} is current; running servers use it after a restart" in output
    [after] = [each for each in jobs(host) if each["job"] == job["job"]]
    assert (after["result"], after["who"]) == ("succeeded", "root")
    is_whole(host)


def test_a_stale_note_gives_the_timers_update_nobodys_name(host: Box) -> None:
    host.run("systemctl stop left4me-game.service; l4d2ctl --origin desk start 3")
    stale = jobs(host)[0]["job"]
    host.run(f"echo {stale} >/run/left4me/update; systemctl start left4me-game.service", timeout=120)
    [job, before] = jobs(host)[:2]
    assert (before["job"], before["origin"], before["verb"]) == (stale, "desk", "start")
    assert (job["verb"], job["who"], job["origin"], job["result"]) == ("game update", "root", "", "succeeded")


def test_a_power_cut_during_the_switch(host: Box, inventory: Path, steam: Steam, newer: Callable[..., str]) -> None:
    """The disk ends wherever it was: before the rename of the symlink, or after it."""
    old, number = current(host), newer()
    for said, expected in ((f"smoke test of build {number}", old), (f"build {number} is current", number)):
        with started_update(host) as update:
            assert update.stdout
            wait_for_line(update.stdout, said)
        host.crash()
        host.start()
        wait_for_server(host, 27015, 60)
        wait_for_server(host, 27016, 60)
        assert (build := current(host)) in (expected, number)
        deploy(inventory)  # what the update had no time to remove, but for what the next update does
        host.run(f"rm -rf {GAME}/.[ng]*-* {GAME}/verdicts/.new-*")
        assert current(host) == build
        is_whole(host)
        assert_idle(deploy(inventory), [host])


VAR, SMALL = "/var/lib/left4me", "/run/small"


def fill(box: Box, left: int) -> None:
    """Leave so many MB free."""
    box.run(f"""
        fallocate -l $(($(stat -f -c '%a*%S' {VAR}) - {left} * 1000000)) {VAR}/filler ||
        head -c 1G /dev/zero >{VAR}/filler 2>/dev/null; true
    """)


@pytest.fixture
def small(host: Box) -> Iterator[Box]:
    """Put /var/lib/left4me on a small filesystem."""
    host.run(f"""
        l4d2ctl stop --all
        mkdir -p {SMALL}; mount -t tmpfs -o mode=755,size=400M small {SMALL}
        cp -a {VAR}/. {SMALL}; mount --bind {SMALL} {VAR}; l4d2ctl start --all
    """)
    yield host
    host.run(f"l4d2ctl stop --all; umount {VAR} {SMALL}; rmdir {SMALL}; l4d2ctl start --all")


@pytest.mark.parametrize("left", [1, 15, 20])
def test_a_full_disk_while_a_build_is_brought(
    host: Box, small: Box, inventory: Path, newer: Callable[..., str], left: int
) -> None:
    old, number = current(host), newer()
    before = builds(host)
    fill(host, left)
    done = ctl(host, "game update", code=1, timeout=200)
    assert re.search(r"the disk is (too )?full: .*[0-9.]+ MB free|No space left on device", done.stdout)
    assert (current(host), builds(host)) == (old, before)
    host.run("l4d2ctl restart 3")  # which has no record of its job
    assert build_of(host, "3") == old
    host.run(f"rm {VAR}/filler")
    ctl(host, "game update", timeout=120)
    assert current(host) == number
    deploy(inventory)
    is_whole(host)


def test_a_full_disk_while_steamcmd_is_brought(host: Box, small: Box, newer: Callable[..., str]) -> None:
    old, number = current(host), newer()
    host.run(f"rm -r {GAME}/steamcmd")
    fill(host, 0)
    done = ctl(host, "game update", code=1, timeout=120)
    assert "No space left on device" in done.stdout
    assert current(host) == old
    host.run(f"rm {VAR}/filler")
    ctl(host, "game update", timeout=120)
    assert current(host) == number
    is_whole(host)


def test_a_full_disk_while_a_build_is_tried(host: Box, small: Box, newer: Callable[..., str]) -> None:
    old, number = current(host), newer()
    with started_update(host) as update:
        assert update.stdout
        wait_for_line(update.stdout, f"smoke test of build {number}")
        fill(host, 0)
        update.communicate(timeout=120)
    assert current(host) in (old, number)
    host.run(f"rm {VAR}/filler")
    ctl(host, "game update", timeout=120)
    assert current(host) == number
    is_whole(host)


def test_a_build_that_cannot_start(host: Box, inventory: Path, newer: Callable[..., str]) -> None:
    old, pid = current(host), main_pid(host, "3")
    number = newer({"srcds_linux": LOST})
    done = ctl(host, "game update", code=1, timeout=120)
    assert f"build {number} failed its smoke test without layers: it ended with" in done.stdout
    assert (current(host), main_pid(host, "3")) == (old, pid)
    row = next(row for row in json.loads(ctl(host, "game status --json").stdout) if row["build"] == number)
    assert (row["current"], "failed its smoke test" in row["trial"]) == (False, True)
    host.run("systemctl start left4me-game.service")
    assert f"skipping build {number}: build {number} failed its smoke test without layers" in journal(host)
    # A night that only skips it leaves the reason.
    assert "failed its smoke test without layers" in ctl(host, "game status").stdout.partition("the last update")[2]
    assert_idle(deploy(inventory), [host])
    assert state(host, "_bare") == "inactive"
    good = newer()
    ctl(host, "game update", timeout=120)
    assert current(host) == good
    is_whole(host)
    deploy(inventory)
    assert number not in builds(host)


def test_a_build_that_breaks_the_layers_of_a_server(
    host: Box, inventory: Path, steam: Steam, newer: Callable[..., str], tmp_path: Path
) -> None:
    """The layer refuses a build that has a file it does not know, as SourceMod's gamedata may."""
    (tmp_path / "mod").mkdir()
    script = b'#!/bin/sh\n! test -e left4dead2/new.vpk || exit 4\nexec ./bin/srcds_linux -I -S -B bin/start.py "$@"\n'
    (tmp_path / "mod/srcds_linux").write_bytes(script)
    (tmp_path / "mod/srcds_linux").chmod(0o755)
    servers = {**SERVERS, "3": {**SERVERS["3"], "layers": ["mod"]}}
    layers = {"mod": {"source": "control", "path": str(tmp_path / "mod")}}
    modded = declare(tmp_path / "inventory", host, steam, servers=servers, layers=layers, trial_server="3")
    deploy(modded)
    ctl(host, "restart 3")
    old, number = current(host), newer({"left4dead2/new.vpk": b"new"})
    done = ctl(host, "game update", code=1, timeout=120)
    assert f"build {number} failed its smoke test with the layers of server 3: it ended with" in done.stdout
    assert current(host) == old
    good = newer()
    ctl(host, "game update", timeout=120)
    assert current(host) == good
    deploy(inventory)


def test_a_fresh_host_gets_its_layers_and_its_game_in_one_deploy(
    host: Box, inventory: Path, steam: Steam, tmp_path: Path
) -> None:
    """Bringing the game removes no layer that the servers' files are still to name."""
    (tmp_path / "mod/left4dead2/cfg").mkdir(parents=True)
    (tmp_path / "mod/left4dead2/cfg/mod.cfg").write_text("of the layer")
    ctl(host, "stop --all")
    host.run(f"rm /var/lib/left4me/installation /var/lib/left4me/held/*; rm -r {RELEASES}/* {GAME}/verdicts/*")
    servers = {**SERVERS, "3": {**SERVERS["3"], "layers": ["mod"]}}
    layers = {"mod": {"source": "control", "path": str(tmp_path / "mod")}}
    modded = declare(tmp_path / "inventory", host, steam, servers=servers, layers=layers)
    deploy(modded)
    wait_for_server(host, 27015)
    assert merged(host, "cfg/mod.cfg").read_text() == "of the layer"
    assert_idle(deploy(modded), [host])
    deploy(inventory)


MUTE = "import socket, signal; udp = socket.socket(type=socket.SOCK_DGRAM); udp.bind(('', 27200)); signal.pause()"


@pytest.mark.parametrize(
    "foreign",
    ["/tmp/foreign/srcds_run -game left4dead2 -norestart -port 27200 +map c1m1_hotel", f'python3 -c "{MUTE}"'],
)
def test_somebody_else_on_the_trial_port_is_no_proof(host: Box, newer: Callable[..., str], foreign: str) -> None:
    old, number = current(host), newer()
    host.run(f"cp -aL {VAR}/installation /tmp/foreign; systemd-run -q --unit=foreign {foreign}")
    try:
        wait_for("it holds the port", lambda: host.run("ss -Hlnu 'sport = 27200'").stdout != "")
        done = ctl(host, "game update", code=1, timeout=120)
    finally:
        host.run("systemctl stop foreign; rm -r /tmp/foreign")
    assert "trial_port 27200 cannot be used (UDP: Address already in use)" in done.stdout
    # Which tells nothing of the build: the next night tries it again.
    assert (current(host), host.run(f"ls {GAME}/verdicts").stdout.split().count(number)) == (old, 0)
    ctl(host, "game update", timeout=120)
    is_whole(host)


# -- what SteamCMD may do to the host


def test_steamcmd_leads_root_nowhere(host: Box, newer: Callable[..., str]) -> None:
    """What is SteamCMD's own may be anything: root reads and writes nothing through its links."""
    old, number = current(host), newer()
    host.run(f"ln -sf /etc/shadow {GAME}/steamcmd/linux32/steamclient.so")
    ctl(host, "game update", code=1, timeout=120)
    assert (current(host), host.run(f"grep -rl ^root: {RELEASES} {GAME}/stage", check=False).stdout) == (old, "")
    host.run(f"rm -r {GAME}/steamcmd; mkfifo {GAME}/stage/left4dead2/fifo")
    done = ctl(host, "game update", code=1, timeout=120)
    assert "fifo is neither a file nor a directory nor a link" in done.stdout
    # What was no build is gone, and so the next one is made from what is there and Steam.
    ctl(host, "game update", timeout=120)
    assert current(host) == number
    is_whole(host)


def test_a_steamcmd_that_broke_itself_is_brought_anew(host: Box, steam: Steam, newer: Callable[..., str]) -> None:
    number = newer()
    host.run(f"rm -r {GAME}/steamcmd/linux32")
    said = ctl(host, "game update", timeout=120).stdout
    assert "SteamCMD did not start" in said
    assert (current(host), downloads(steam)[0]) == (number, steams.STEAMCMD)
    assert host.run("pgrep -u left4me", check=False).stdout == ""


# -- the night


AT_ONCE = b"[Timer]\nOnCalendar=\nRandomizedDelaySec=0\nOnActiveSec=1s\nAccuracySec=100ms\n"


def test_the_timer_is_there_when_data_say_so(host: Box, inventory: Path, steam: Steam, tmp_path: Path) -> None:
    timer = "left4me-game.timer"
    assert properties(host, timer, "LoadState")["LoadState"] == "not-found"
    nightly = declare(tmp_path / "nightly", host, steam, update_at="04:30")
    deploy(nightly)
    assert state_of(host, timer) == "active"
    assert "04:30:00" in properties(host, timer, "TimersCalendar")["TimersCalendar"]
    assert_idle(deploy(nightly), [host])
    must_pass(nightly)
    # What the timer starts is a job of the timer's.
    host.run(f"mkdir -p /run/systemd/system/{timer}.d; cat >/run/systemd/system/{timer}.d/now.conf", input=AT_ONCE)
    host.run(f"systemctl daemon-reload; systemctl restart {timer}")
    wait_for("it runs", lambda: jobs(host)[0]["who"] == "timer", 30)
    wait_for("it has ended", lambda: jobs(host)[0]["ended"] is not None, 90)
    assert (jobs(host)[0]["verb"], jobs(host)[0]["result"]) == ("game update", "succeeded")
    host.reboot()
    wait_for_server(host, 27015, 60)
    assert state_of(host, timer) == "active"
    deploy(inventory)
    assert state_of(host, timer) == "inactive"
    assert_idle(deploy(inventory), [host])
    must_pass(inventory)


def test_restarts_after_an_update_as_data_say(
    host: Box, inventory: Path, steam: Steam, newer: Callable[..., str], tmp_path: Path
) -> None:
    """Server 3 when it has been empty for a minute, server 4 at a time whoever plays, server 5 never."""

    def deploys(ahead: str) -> None:
        at = host.run(f"date -d '{ahead}' +%H:%M").stdout.strip()
        own: dict[str, dict[str, Any]] = {
            "3": {"restart": "when-empty"},
            "4": {"restart": f"at {at}"},
            "5": {"port": 27017},
        }
        servers = {each: {**SERVERS.get(each, {}), **more, "rcon_password": PASSWORD} for each, more in own.items()}
        deploy(declare(tmp_path / "inventory", host, steam, servers=servers))

    deploys("+12 hours")
    wait_for_server(host, 27017)
    ctl(host, "restart 3 4")  # with the password
    old, number, pid = current(host), newer(), main_pid(host, "5")
    for port in (27015, 27016):
        wait_for_server(host, port)
        rcon(host, port, "standin_players 1")
    host.run("systemctl start left4me-game.service", timeout=120)
    assert current(host) == number
    assert {build_of(host, server) for server in "345"} == {old}
    deploys("+85 seconds")
    wait_for("server 4 has its time", lambda: build_or_none(host, "4") == number, 150)
    # It had players to its end, and was told; and so had server 3, which waits for them.
    assert "restarting server 4, 1 players" in said_by(host, "left4me-restart.service")
    wait_for("its job has ended", lambda: jobs(host)[0]["ended"])
    [job] = [each for each in jobs(host) if each["who"] == "update"]
    assert (job["verb"], job["servers"], job["result"]) == ("restart", ["4"], "succeeded")
    assert (build_of(host, "3"), build_of(host, "5")) == (old, old)
    rcon(host, 27015, "standin_players 0")
    wait_for("server 3 is empty for a minute", lambda: build_or_none(host, "3") == number, 170)
    assert (build_of(host, "5"), main_pid(host, "5")) == (old, pid)
    wait_for("nothing is left to do", lambda: state_of(host, "left4me-restart.service") == "inactive")
    deploy(inventory)


def said_by(box: Box, name: str) -> str:
    """Return what a unit said."""
    box.run("journalctl --sync")
    return box.run(f"journalctl -q --no-pager -o cat _SYSTEMD_UNIT={name}").stdout


def state_of(box: Box, name: str) -> str:
    """Return a unit's state."""
    return properties(box, name, "ActiveState")["ActiveState"]


def build_or_none(box: Box, server: str) -> str:
    """Return the build of a server, or nothing where it is down at this moment."""
    try:
        return build_of(box, server)
    except ValueError:
        return ""


# -- from another tool


def test_an_installation_moves_here_without_a_second_download(
    host: Box, inventory: Path, steam: Steam, newer: Callable[..., str], tmp_path: Path
) -> None:
    """What docs/moving.md says, on a host with what LinuxGSM leaves."""
    blocks = re.findall(r"(?:^    .*\n)+", (ROOT / "docs/moving.md").read_text(encoding="utf-8"), re.MULTILINE)
    [apart] = [block for block in blocks if "--reflink" in block]
    [written] = [block for block in blocks if "banned_user" in block]
    number = newer()
    old = "/home/l4d2server/serverfiles/left4dead2"
    host.run(f"""
        mkdir /home/l4d2server; cp -aL /var/lib/left4me/installation /home/l4d2server/serverfiles
        mkdir -p {old}/addons/sourcemod {old}/cfg
        echo plugin >{old}/addons/sourcemod/mod.smx; echo 'sv_gravity 321' >{old}/cfg/l4d2server.cfg
        echo 'banid 0 STEAM_1:0:1' >{old}/cfg/banned_user.cfg
    """)
    host.run(apart)
    mods = tmp_path / "layers/mods/left4dead2"
    for name in ("addons/sourcemod/mod.smx", "cfg/l4d2server.cfg"):
        (mods / name).parent.mkdir(parents=True)
        (mods / name).write_text(host.run(f"cat /srv/mods/left4dead2/{name}").stdout)
    common: dict[str, Any] = {"layers": {"mods": {"source": "control", "path": str(mods.parent)}}}
    server = {"port": 27017, "layers": ["mods"], "exec": ["l4d2server.cfg"]}
    servers = {**SERVERS, "1": {**server, "state": "stopped"}}
    source = {"source": "host", "path": "/srv/l4d2"}
    deploy(declare(tmp_path / "stopped", host, steam, game=source, servers=servers, **common))
    host.run(written)
    servers = {**SERVERS, "1": server}
    deploy(declare(tmp_path / "running", host, steam, game=source, servers=servers, **common))
    wait_for_server(host, 27017)
    assert merged(host, "addons/sourcemod/mod.smx", "1").read_text() == "plugin\n"
    assert merged(host, "cfg/banned_user.cfg", "1").read_text() == "banid 0 STEAM_1:0:1\n"
    assert '"sv_gravity" = "321"' in ctl(host, "rcon 1 sv_gravity").stdout
    steamed = declare(tmp_path / "steam", host, steam, servers=servers, **common)
    build = current(host)
    assert build.startswith("host-")
    deploy(steamed)
    assert current(host) == build
    assert_idle(deploy(steamed), [host])
    # The stand-in's SteamCMD always downloads: of the real one's saving only the copy that it begins with is seen here.
    assert f"copying build {build} as the base of the update" in ctl(host, "game update", timeout=120).stdout
    assert current(host) == number
    ctl(host, "restart --all")
    must_pass(steamed)
    deploy(inventory)


def test_the_trial_is_not_for_players(host: Box, inventory: Path) -> None:
    config = host.run("cat /etc/left4me/servers/_bare/server.cfg").stdout
    assert 'sv_lan "1"' in config
    assert 'sv_lan "0"' in host.run("cat /etc/left4me/servers/3/server.cfg").stdout
    assert "_bare" not in ctl(host, "status").stdout + ctl(host, "doctor").stdout
    assert ctl(host, "start _bare", code=2).stderr.startswith("l4d2ctl: '_bare' is not a server id")


def test_a_game_by_archive(host: Box, inventory: Path, steam: Steam, game: Path, tmp_path: Path) -> None:
    """The host downloads it; a wrong sum, and an archive without a game, leave what is current."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w:gz", compresslevel=1) as archive:
        archive.add(game, "l4d2")
    before = current(host)
    with sources.serving(outside(host)) as served:
        source = served.archive("/l4d2.tar.gz", whole.getvalue(), strip=1)
        for wrong, said in (({"sha256": "0" * 64}, "has the SHA256"), ({"strip": 0}, "no executable srcds_run")):
            bad = declare(tmp_path / "bad", host, steam, game=source | wrong)
            done = pyinfra(bad, "deploy.py", "-y")
            assert (done.returncode, current(host)) == (1, before)
            assert re.search(rf"\] game: .*{said}", done.stdout + done.stderr)
        good = declare(tmp_path / "good", host, steam, game=source)
        assert STEP in changed(deploy(good))
        served.downloads()
        assert_idle(deploy(good), [host])
        assert served.downloads() == []
    assert current(host).startswith("archive-")
    ctl(host, "restart --all")
    must_pass(good)
