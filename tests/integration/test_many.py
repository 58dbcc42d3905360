"""Forty servers with twelve layers each on one box, and one with a hundred: what a deploy of them costs."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.boxes.boxes import Box
from tests.integration.ctl import ctl
from tests.integration.harness import assert_idle, changed, deploy, overlays, wait_for_server, write_inventory
from tests.integration.test_verification import must_pass
from tests.integration.trap import trace

# Two characters each: a hundred of them fit the one page that mount(2) takes.
LAYERS = [f"{number:02}" for number in range(100)]
FEW = {f"s{number}": {"layers": LAYERS[number : number + 12], "memory_max": "256M"} for number in range(4)}
MANY: Mapping[str, Any] = {
    **FEW,
    **{f"s{number}": {"layers": LAYERS[number : number + 12], "memory_max": "256M"} for number in range(4, 40)},
    "all": {"layers": LAYERS, "memory_max": "256M"},
}
MOST = 8  # remote commands for one host, with nothing to change
DISK = 1 << 20


@pytest.fixture(scope="module", params=(12, 13) if os.environ.get("SOAK") else (13,), ids="debian{}".format)
def debian(request: pytest.FixtureRequest) -> int:
    """Run a test once for each Debian where it is counted, else for the newer one."""
    number: int = request.param
    return number


Declare = Callable[[Mapping[str, Any]], Path]


@pytest.fixture(scope="module")
def declare(box: Box, game: Path, tmp_path_factory: pytest.TempPathFactory) -> Declare:
    """Return what writes the inventory with some servers, over a hundred layers that each have a file of their own."""
    folder = tmp_path_factory.mktemp("fleet")
    layers = {}
    for name in LAYERS:
        addons = folder / name / "left4dead2/addons"
        addons.mkdir(parents=True)
        (addons / "which.txt").write_text(f"{name}\n")
        (addons / f"{name}.vpk").write_bytes(name.encode() * 1000)
        layers[name] = {"source": "control", "path": str(folder / name)}
    return lambda servers: write_inventory(folder / "inventory", [box], servers=dict(servers), layers=layers)


def ports(box: Box) -> dict[str, int]:
    rows = json.loads(ctl(box, "status --json", timeout=120).stdout)
    return {row["id"]: row["port"] for row in rows}


def commands(box: Box, inventory: Path, out: Path) -> int:
    """Deploy with nothing to change; return how many commands sshd started for that, as strace saw them.

    Each is run by the user's login shell, bash, as `bash -c`; the `sh -c` in it is the same command still.
    """
    with trace(box, "execve", out) as seen:
        assert_idle(deploy(inventory), [box])
    return len(re.findall(r'execve\("/bin/bash", \["bash", "-c"', seen.read_text()))


def test_forty_servers_deploy_answer_and_cost_no_more_commands_than_four(
    box: Box, declare: Declare, tmp_path: Path
) -> None:
    deploy(declare(FEW))
    few = commands(box, declare(FEW), tmp_path / "few")

    inventory = declare(MANY)
    results = deploy(inventory)
    assert "Start the servers that are not running" in changed(results)
    given = ports(box)
    assert len(given) == len({*given.values()}) == 41
    for port in given.values():
        wait_for_server(box, port, 60)
    assert len(overlays(box)) == 41

    many = commands(box, inventory, tmp_path / "many")
    print(f"remote commands with nothing to change: {few} with 4 servers, {many} with {len(MANY)}")
    assert 0 < few == many <= MOST


def test_each_mount_has_its_layers_in_their_order_and_the_topmost_wins(box: Box) -> None:
    lines = Path(f"/proc/{box.leader}/mountinfo").read_text(encoding="utf-8").splitlines()
    found = {}
    for line in lines:
        if server := re.search(r" /var/lib/left4me/runtime/([^/]+)/merged ", line):
            lowers = re.search(r"lowerdir=([^, ]+)", line)
            assert lowers
            found[server[1]] = [path.split("/")[-2] for path in lowers[1].split(":")[:-1]]
    assert found == {server: declared["layers"] for server, declared in MANY.items()}
    merged = "left4dead2/addons/which.txt"
    texts = box.run(f"cd /var/lib/left4me/runtime; tail -n +1 */merged/{merged}").stdout
    won = dict(re.findall(rf"==> ([^/]+)/merged/{merged} <==\n(\d\d)\n", texts))
    assert won == {server: declared["layers"][0] for server, declared in MANY.items()}


def test_a_server_costs_no_disk_before_it_writes(box: Box) -> None:
    folders = "/var/lib/left4me/runtime /var/lib/left4me/secrets /etc/left4me/servers"
    # As it is before it is started: without what the game writes.
    ctl(box, "stop s5 && l4d2ctl reset s5", timeout=120)
    used = {}
    for server in ("s5", *list(MANY)[6:]):
        paths = " ".join(f"{folder}/{server}" for folder in folders.split())
        out = box.run(f"du --summarize --one-file-system --block-size=1 --total {paths} | tail -1").stdout
        used[server] = int(out.split()[0])
    print(f"bytes of a server: {used['s5']} before it writes, at most {max(used.values())} when it runs")
    assert max(used.values()) < DISK


def test_what_is_deployed_is_proven(box: Box, declare: Declare) -> None:
    ctl(box, "start s5", timeout=120)
    wait_for_server(box, ports(box)["s5"], 60)
    print(must_pass(declare(MANY)).splitlines()[-1])
