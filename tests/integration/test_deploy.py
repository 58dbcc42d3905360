"""What a deploy does to a host, again and again: it brings it to the declared state and touches nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.boxes.boxes import Box
from tests.integration.harness import (
    assert_idle,
    bare,
    changed,
    deploy,
    listing,
    standing,
    wait_for_server,
    write_inventory,
)

PORTS = (27015, 27016)


@pytest.fixture
def settled(deployed: Box, inventory: Path) -> Box:
    """The deployed box as its inventory declares it, with its servers past their start."""
    deploy(inventory)
    for port in PORTS:
        wait_for_server(deployed, port)
    return deployed


def test_a_second_deploy_changes_nothing(settled: Box, inventory: Path) -> None:
    before = standing(settled)
    assert_idle(deploy(inventory), [settled])
    assert standing(settled) == before


def test_what_is_damaged_is_seen_and_healed(settled: Box, inventory: Path) -> None:
    before = standing(settled)
    settled.run("chmod 755 /etc/left4me/servers/3/layers")
    results = deploy(inventory)
    assert changed(results) == ["Servers | Write the servers' files"]
    with pytest.raises(AssertionError):
        assert_idle(results, [settled])
    after = standing(settled)
    assert after["inodes"] != before["inodes"]
    assert {**after, "inodes": ""} == {**before, "inodes": ""}
    assert settled.run("stat -c %a /etc/left4me/servers/3/layers").stdout == "644\n"


def test_admin_with_sudo_deploys_what_root_does(settled: Box, inventory: Path, tmp_path: Path) -> None:
    by_root = listing(settled)
    bare(settled)
    assert listing(settled) != by_root
    deploy(write_inventory(tmp_path / "as_admin", [settled], user="admin"))
    for port in PORTS:
        wait_for_server(settled, port)
    assert listing(settled) == by_root
    assert_idle(deploy(tmp_path / "as_admin"), [settled])


def test_servers_are_back_after_a_reboot(settled: Box, inventory: Path) -> None:
    settled.reboot()
    for port in PORTS:
        wait_for_server(settled, port)
    assert_idle(deploy(inventory), [settled])


def test_servers_are_back_after_a_power_cut(settled: Box, inventory: Path) -> None:
    settled.crash()
    settled.start()
    for port in PORTS:
        wait_for_server(settled, port)
    assert_idle(deploy(inventory), [settled])
