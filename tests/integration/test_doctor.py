"""l4d2ctl doctor: it finds each thing that is wrong, mends what is safe, and touches no running server."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.boxes.boxes import Box
from tests.integration.ctl import ATTIC, LAYER, RUNTIME, add_version, ctl, main_pid, state
from tests.integration.harness import overlays, wait_for_server

HELPER = "/usr/local/libexec/left4me/left4me-overlay"
OVERLAYS = "/var/lib/left4me/overlays"
LIMITS = "/etc/systemd/system/left4me-server@4.service.d/limits.conf"
OWNERS = f"stat -c '%U:%G %a %n' {RUNTIME}/3 {RUNTIME}/3/upper {RUNTIME}/3/work"


@pytest.fixture
def host(deployed: Box) -> Iterator[Box]:
    """Have server 3 stopped and server 4 run; whatever doctor does, 4 runs on, and in the end nothing is found."""
    wait_for_server(deployed, 27016)
    ctl(deployed, "stop 3")
    assert found(deployed) == []
    pid = main_pid(deployed, "4")
    yield deployed
    assert main_pid(deployed, "4") == pid
    assert ctl(deployed, "doctor").stdout == "no problems found\n"


def found(box: Box, fix: bool = False) -> list[dict[str, Any]]:
    """Return what doctor finds; its exit code has to agree."""
    done = box.run(f"l4d2ctl doctor --json {'--fix' if fix else ''}", check=False)
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    assert done.returncode == (1 if any(row["done"] is None for row in rows) else 0), done.stderr
    return rows


def mended(box: Box, server: str, what: str, did: str) -> None:
    """Assert that doctor finds exactly this, changes nothing by looking, and mends it when told to."""
    for fix in (False, False, True):
        [row] = found(box, fix)
        assert row["server"] == server
        assert what in row["what"]
        assert (did in row["done"]) if fix else row["done"] is None


def left(box: Box, server: str, what: str, do: str) -> None:
    """Assert that doctor finds exactly this, and leaves it to the operator, whom it tells what to do."""
    for fix in (False, True):
        [row] = found(box, fix)
        assert row["server"] == server
        assert what in row["what"]
        assert do in row["do"]
        assert row["done"] is None


def test_a_mount_without_its_server(host: Box) -> None:
    host.run(f"{HELPER} mount 3")
    mended(host, "3", "is mounted, but its unit is not running", "unmounted")
    assert overlays(host) == [f"{RUNTIME}/4/merged"]


def test_a_mount_without_its_server_that_somebody_holds(host: Box) -> None:
    host.run(
        f"{HELPER} mount 3; cd {RUNTIME}/3/merged && systemd-run -q --unit=shell --working-directory=$PWD sleep 999"
    )
    done = ctl(host, "doctor --fix", code=1)
    host.run("systemctl stop shell")
    assert re.search(r"busy: held by pid \d+ \(sleep\) by its cwd", done.stderr)
    mended(host, "3", "is mounted, but its unit is not running", "unmounted")


STARTED_MEANWHILE = """
import sys
sys.path.insert(0, "/usr/local/lib/left4me")
from left4me_host import doctor, lifecycle
[finding] = doctor.examine()
lifecycle.start(["3"])
assert doctor.apply_fix(finding) is None
"""


def test_a_mount_whose_server_was_started_while_doctor_looked(host: Box) -> None:
    host.run(f"{HELPER} mount 3")
    assert "server 3 was started meanwhile" in host.run("python3 -", input=STARTED_MEANWHILE.encode()).stderr
    assert f"{RUNTIME}/3/merged" in overlays(host)
    wait_for_server(host, 27015)


def test_a_current_build_that_was_deleted(host: Box) -> None:
    installation = "/var/lib/left4me/installation"
    build = host.run(f"readlink -f {installation}").stdout.strip()
    host.run(f"ln -sfn releases/gone {installation}")
    try:
        rows = [row for row in found(host) if "the current build gone is not on this host" in row["what"]]
        assert [row["do"] for row in rows] == ["l4d2ctl game update; if the game is not from Steam, deploy this host"]
        assert "\tcurrent\t" not in ctl(host, "game status").stdout
    finally:
        host.run(f"ln -sfn releases/{Path(build).name} {installation}")


def test_a_foreign_mount_in_a_servers_directory(host: Box) -> None:
    host.run(f"mount -t tmpfs none {RUNTIME}/3/work")
    assert any("but not by left4me" in row["what"] for row in found(host, fix=True))
    host.run(f"umount {RUNTIME}/3/work")


def test_a_server_of_which_nothing_is_recorded(host: Box) -> None:
    record = "/run/left4me/4.started"
    host.run(f"mv {record} {record}.away")
    left(host, "4", "runs, but what it was started with is not recorded", "l4d2ctl restart 4 when convenient")
    host.run(f"mv {record}.away {record}")


def test_an_older_version_of_a_layer(host: Box) -> None:
    ctl(host, "start 3")
    old = add_version(host, "newer")
    what = f"{LAYER}: {old} is mounted, a restart mounts newer"
    assert {(row["server"], row["what"], row["do"], row["done"]) for row in found(host, fix=True)} == {
        (server, what, f"l4d2ctl restart {server} when convenient", None) for server in "34"
    }
    ctl(host, "restart 3")
    host.run(f"ln -sfn {old} {OVERLAYS}/{LAYER}/current")
    left(host, "3", f"{LAYER}: newer is mounted, a restart mounts {old}", "l4d2ctl restart 3")
    ctl(host, "restart 3")
    mended(host, "", f"unused versions: {OVERLAYS}/{LAYER}/newer", "removed")
    assert sorted(host.run(f"ls -A {OVERLAYS}/{LAYER}").stdout.split()) == sorted([old, "current"])


def test_an_older_release(host: Box) -> None:
    ctl(host, "start 3")
    old = host.run("readlink /var/lib/left4me/installation").stdout.strip().removeprefix("releases/")
    host.run("cd /var/lib/left4me; cp -a installation/. releases/newer; ln -sfn releases/newer installation")
    rows = {row["server"]: row["what"] for row in found(host)}
    assert rows == dict.fromkeys("34", f"the game: {old} is mounted, a restart mounts newer")
    host.run(f"cd /var/lib/left4me; ln -sfn releases/{old} installation")
    [row] = found(host)
    assert row["what"] == "unused versions: /var/lib/left4me/releases/newer"
    host.run("rm -r /var/lib/left4me/releases/newer")


def test_other_layers_than_declared(host: Box) -> None:
    ctl(host, "start 3")
    layers = "/etc/left4me/servers/3/layers"
    host.run(f"cp -a {layers} /run/layers; : >{layers}")
    left(host, "3", "runs with other layers than declared", "l4d2ctl restart 3")
    host.run(f"cp -a /run/layers {layers}")


def test_versions_that_nobody_uses(host: Box) -> None:
    unused = f"{OVERLAYS}/{LAYER}/unused"
    host.run(f"""
        mkdir {unused}
        systemd-run -q --unit=other -p Type=exec unshare --mount \
            sh -c 'mount -t overlay overlay -o lowerdir={unused}:/usr/lib /mnt && exec sleep 999'
        until grep -q {unused} /proc/$(systemctl show -P MainPID other)/mounts; do :; done
    """)
    assert found(host) == []
    host.run("systemctl stop other")
    mended(host, "", f"unused versions: {unused}", "removed")
    host.run(f"test ! -e {unused}")


def test_two_mounts_over_one_upper(host: Box) -> None:
    runtime = f"{RUNTIME}/4"
    options = f"lowerdir=/var/lib/left4me/installation,upperdir={runtime}/upper,workdir=/var/lib/other"
    host.run(f"""
        mkdir /var/lib/other
        systemd-run -q --unit=other -p Type=exec unshare --mount \
            sh -c 'mount -t overlay overlay -o {options} /mnt && exec sleep 999'
        until grep -q /var/lib/other /proc/$(systemctl show -P MainPID other)/mounts; do :; done
    """)
    left(host, "4", f"2 overlays use {runtime}/upper", "l4d2ctl holders 4")
    host.run("systemctl stop other; rm -r /var/lib/other")


def test_a_leftover_work_directory(host: Box) -> None:
    host.run(f"mkdir -p {RUNTIME}/3/work/work/x; touch {RUNTIME}/3/work/work/x/y; chmod 0 {RUNTIME}/3/work/work")
    mended(host, "3", f"{RUNTIME}/3/work/work is left from an earlier mount", "work/work removed")
    assert not host.run(f"ls -A {RUNTIME}/3/work").stdout


@pytest.mark.parametrize("name", ["9", "Left over"])
def test_a_runtime_directory_of_nobody(host: Box, name: str) -> None:
    host.run(f"mkdir -p '{RUNTIME}/{name}/upper'; echo mine >'{RUNTIME}/{name}/upper/file'")
    mended(host, name, "belongs to no declared server", f"moved to {ATTIC}/{name}@")
    assert host.run(f"cat {ATTIC}/'{name}'@*/upper/file").stdout == "mine\n"


def test_a_unit_that_is_newer_on_disk(host: Box) -> None:
    before = host.run("systemctl show -P CPUWeight left4me-server@4").stdout.strip()
    host.run(f"cp {LIMITS} /run/limits.conf; echo CPUWeight=77 >>{LIMITS}")
    mended(host, "", "systemd has not read the unit files on disk", "reloaded")
    assert host.run("systemctl show -P CPUWeight left4me-server@4").stdout.strip() == "77" != before
    host.run(f"cat /run/limits.conf >{LIMITS}")
    mended(host, "", "systemd has not read the unit files on disk", "reloaded")


@pytest.mark.parametrize(
    "damage", ["chown root upper", "chmod 777 .", "chmod 755 work", "chgrp daemon work", "chown left4me-4 upper"]
)
def test_a_wrong_owner(host: Box, damage: str) -> None:
    before = host.run(OWNERS).stdout
    host.run(f"cd {RUNTIME}/3 && {damage}")
    mended(host, "3", "is not ", "restored owner and mode")
    assert host.run(OWNERS).stdout == before


def test_a_wrong_owner_while_the_server_runs(host: Box) -> None:
    before = host.run(OWNERS).stdout
    ctl(host, "start 3")
    host.run(f"chmod 755 {RUNTIME}/3/work")
    left(host, "3", "/work is not root:root 0700", "l4d2ctl stop 3")
    ctl(host, "stop 3")
    mended(host, "3", "/work is not root:root 0700", "restored owner and mode")
    assert host.run(OWNERS).stdout == before


def test_an_upper_that_is_a_symlink(host: Box) -> None:
    host.run(f"cd {RUNTIME}/3 && mv upper /root/upper && ln -s /root/upper upper && stat -c %U /root/upper")
    rows = found(host, fix=True)
    assert rows
    assert all(row["done"] is None for row in rows)
    host.run(f"cd {RUNTIME}/3 && rm upper && mv /root/upper upper")


@pytest.mark.parametrize("was", ["active", "inactive"])
def test_a_reset_that_did_not_finish(host: Box, was: str) -> None:
    if was == "active":
        ctl(host, "start 3")
    host.run(f"mount --bind {ATTIC} {ATTIC} && mount -o remount,bind,ro {ATTIC}")
    ctl(host, "reset 3", code=1)
    host.run(f"umount {ATTIC}")
    mended(host, "3", "a reset did not finish", "finished")
    assert state(host, "3") == was


def test_as_text_it_says_where_what_and_what_to_do(host: Box) -> None:
    host.run(f"mkdir {RUNTIME}/9")
    done = ctl(host, "doctor", code=1)
    assert done.stdout == f"server 9: {RUNTIME}/9 belongs to no declared server: l4d2ctl doctor --fix\n"
    assert f"{RUNTIME}/9 belongs to no declared server: moved to {ATTIC}/9@" in ctl(host, "doctor --fix").stdout
