"""left4me.inventory_export reads an inventory as pyinfra does, and refuses what a deploy refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent


def fleet(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "left4me.inventory_export", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def hosts(*arguments: str | Path) -> list[dict[str, Any]]:
    done = fleet(*arguments)
    assert done.returncode == 0, done.stderr
    answer: list[dict[str, Any]] = json.loads(done.stdout)
    return answer


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    """A fleet in a directory of its own, with data beside it; every default comes from this repository."""
    (tmp_path / "group_data").mkdir()
    (tmp_path / "group_data" / "all.py").write_text("game = {'source': 'host', 'path': '/srv/l4d2'}\nuid = 700\n")
    (tmp_path / "group_data" / "west.py").write_text(
        "servers = {'w': {'port': 27020}}\nssh_user = 'admin'\n_sudo = True\n"
    )
    path = tmp_path / "inventory"
    path.write_text("west = ['w1', ('w2', {'ssh_hostname': '192.0.2.2', 'ssh_password': 'x'})]\neast = ['e1']\n")
    return path


def test_both_groups_of_data_are_merged_as_pyinfra_merges_them(inventory: Path) -> None:
    first, second, third = hosts(inventory)
    assert [first["name"], second["name"], third["name"]] == ["w1", "w2", "e1"]
    assert first["declares"]["uid"] == 700
    assert first["declares"]["gid"] == 980
    assert first["declares"]["servers"]["w"] | {"port": 27020, "map": "c1m1_hotel"} == first["declares"]["servers"]["w"]
    assert third["declares"]["servers"] == {}
    # A password is not passed on.
    assert second["connection"] == {
        "ssh_hostname": "192.0.2.2",
        "ssh_user": "admin",
        "ssh_password": "x",
        "_sudo": True,
    }


@pytest.mark.parametrize(
    ("limits", "names"),
    [(["w1"], ["w1"]), (["west"], ["w1", "w2"]), (["?1"], ["w1", "e1"]), (["e1", "w2"], ["w2", "e1"])],
)
def test_a_limit_is_a_name_a_group_or_a_pattern(inventory: Path, limits: list[str], names: list[str]) -> None:
    assert [host["name"] for host in hosts(inventory, *(f"--limit={limit}" for limit in limits))] == names


def test_an_inventory_and_its_data_may_print(inventory: Path) -> None:
    for path in (inventory, inventory.parent / "group_data/all.py"):
        path.write_text(f"{path.read_text()}print('hello from', __name__)\n")
    assert [host["name"] for host in hosts(inventory)] == ["w1", "w2", "e1"]
    assert fleet(inventory).stderr.count("hello from") == 2


def test_no_host_is_refused(inventory: Path) -> None:
    done = fleet(inventory, "--limit=nobody")
    assert done.returncode == 2
    assert "refused: --limit and --exclude select no host; the inventory has: e1, w1, w2" in done.stderr
    assert done.stdout == ""


def test_a_limit_that_matches_nothing_beside_one_that_does_is_refused(inventory: Path) -> None:
    done = fleet(inventory, "--limit=west", "--limit=nowhere", "--exclude=nobody")
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("refused: ")]
    assert [line.split()[1:3] for line in lines] == [["--limit", "nowhere:"], ["--exclude", "nobody:"]]
    assert done.stdout == ""


def test_hosts_are_excluded_and_have_their_groups(inventory: Path) -> None:
    [only] = hosts(inventory, "--exclude=w1", "--exclude=east")
    assert only["name"] == "w2"
    assert "west" in only["groups"]
    assert "east" not in only["groups"]


def test_a_host_that_is_called_as_a_group_is_told(inventory: Path) -> None:
    inventory.write_text("west = ['w1']\nw1 = ['w2']\n")
    assert [(each["name"], each["called_as_a_group"]) for each in hosts(inventory)] == [("w1", True), ("w2", False)]


def test_all_mistakes_of_all_hosts_are_refused(inventory: Path) -> None:
    inventory.write_text("west = [('w1', {'servers': {'w': {'port': 1}}}), ('w2', {'colour': 'red'})]\n")
    done = fleet(inventory)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("refused: ")]
    assert [line.split(": ")[1:3] for line in lines] == [["w1", "servers.w.port"], ["w2", "colour"]]
    assert "Traceback" not in done.stderr


def test_an_inventory_that_raises_is_refused(inventory: Path) -> None:
    inventory.write_text("hosts = [1 / 0]\n")
    done = fleet(inventory)
    assert done.returncode == 2
    assert f"refused: {inventory}:1: ZeroDivisionError" in done.stderr
    assert "Traceback" not in done.stderr
