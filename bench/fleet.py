"""`python -m bench.fleet` measures the time of a no-change deploy and a verification on the control machine.

It measures 1, 2, 4, 8 and 12 hosts with four servers each, with and without a round trip of 50 ms. "start" is the time
until the programs connect.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from bench.delay import delayed
from tests.boxes import boxes as machines
from tests.boxes.boxes import Box
from tests.boxes.deployed import PACKAGES
from tests.boxes.game import build
from tests.integration.harness import PYINFRA, ROOT, deploy, wait_for_server, write_inventory

ROUNDS = int(os.environ.get("ROUNDS", "5"))
COUNTS = (1, 2, 4, 8, 12)
ROUND_TRIP = 0.05
AWAY = "at 50 ms"
SERVERS = {str(number): {"port": 27012 + number} for number in (3, 4, 5, 6)}


class Cost(NamedTuple):
    """Wall-clock and CPU seconds of a program."""

    wall: float
    cpu: float


def cost(*command: str | Path, unchanged: bool = False) -> Cost:
    """Run a program and return its cost. Exits if it fails or, with `unchanged`, if the deploy changed something."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False)
    wall, after = time.monotonic() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{command} failed: exit {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    if unchanged and (totals := json.loads(done.stdout)["results"]["totals"])["success"]:
        sys.exit(f"{command} changed something: {totals}")
    return Cost(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def steps(inventory: Path) -> dict[str, Callable[[], Cost]]:
    """Return the steps to measure: deploy and verify, and the part of each before its work starts."""
    pytest: list[str | Path] = [sys.executable, "-m", "pytest", "-q", "tests/deployed", "--inventory", inventory]
    return {
        "start": lambda: cost(PYINFRA, inventory, "debug-inventory"),
        "connect": lambda: cost(PYINFRA, inventory, "exec", "--", "true"),
        "deploy": lambda: cost(PYINFRA, inventory, "deploy.py", "-y", "--json", unchanged=True),
        "pytest": lambda: cost(*pytest, "--collect-only"),
        "verify": lambda: cost(*pytest),
    }


def measured(inventories: dict[str, Path]) -> dict[str, dict[str, Cost]]:
    """Return the median cost of each step for each inventory; the rounds are interleaved."""
    seen: dict[tuple[str, str], list[Cost]] = {}
    for _ in range(ROUNDS):
        for name, inventory in inventories.items():
            for step, run in steps(inventory).items():
                seen.setdefault((name, step), []).append(run())

    def median(name: str, step: str) -> Cost:
        costs = seen[name, step]
        return Cost(statistics.median(each.wall for each in costs), statistics.median(each.cpu for each in costs))

    return {name: {step: median(name, step) for step in steps(Path())} for name in inventories}


def show(found: dict[str, dict[str, Cost]]) -> None:
    columns = ("start", "connect", "deploy", "start", "verify", "all", "CPU/host")
    print(f"{'hosts':12}" + "".join(f"{column:>10}" for column in columns) + "   seconds; CPU of the control machine")
    whole = {}
    for name, each in found.items():
        start, connect, deployed, pytest, verified = each.values()
        whole[name] = deployed.wall + verified.wall
        parts = (start.wall, connect.wall - start.wall, deployed.wall - connect.wall)
        figures = (*parts, pytest.wall, verified.wall - pytest.wall, whole[name])
        cpu = (deployed.cpu + verified.cpu) / int(name.split()[0])
        print(f"{name:12}" + "".join(f"{figure:10.2f}" for figure in (*figures, cpu)))
    print(f"12 hosts : 1 host = {whole['12'] / whole['1']:.2f}, ", end="")
    print(f"{whole[f'12 {AWAY}'] / whole[f'1 {AWAY}']:.2f} {AWAY} (aim: below 3)")
    far = found[f"1 {AWAY}"]
    print(f"one host {AWAY}, without program starts: ", end="")
    print(f"deployed in {far['deploy'].wall - far['start'].wall:.2f} s (aim: 2), ", end="")
    print(f"verified in {far['verify'].wall - far['pytest'].wall:.2f} s (aim: 3)")


def main() -> None:
    build()
    names = [f"bench-{number:02}" for number in range(1, COUNTS[-1] + 1)]
    boxes: list[Box] = machines.up(names, 13, PACKAGES)
    try:
        with tempfile.TemporaryDirectory() as folder, ExitStack() as proxies:
            far = {}
            for box in boxes:
                port = proxies.enter_context(delayed(str(box.address), ROUND_TRIP))
                [key] = box.known_hosts.read_text().splitlines()[:1]
                known = Path(folder, f"{box.name}.known_hosts")
                known.write_text(f"[127.0.0.1]:{port} {key.partition(' ')[2]}\n")
                far[box.name] = {"ssh_hostname": "127.0.0.1", "ssh_port": port, "ssh_known_hosts_file": str(known)}
            inventories = {}
            for where, hosts in (("", {}), (f" {AWAY}", far)):
                for count in COUNTS:
                    path = Path(folder, f"{count}{where}")
                    inventories[path.name] = write_inventory(path, boxes[:count], servers=SERVERS, hosts=hosts)
            deploy(inventories[str(COUNTS[-1])])
            for box in boxes:
                for server in SERVERS.values():
                    wait_for_server(box, server["port"], 60)
            show(measured(inventories))
    finally:
        machines.down(names)


if __name__ == "__main__":
    main()
