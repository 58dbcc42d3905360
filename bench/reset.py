"""`python -m bench.reset [DEBIAN]` compares a reset in a box with a shell script of the same steps.

It also shows how the time depends on the number of written files and on the size of the game.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.boxes import boxes as machines
from tests.boxes.game import build
from tests.integration.harness import deploy, wait_for_server, write_inventory

ROUNDS = int(os.environ.get("ROUNDS", "40"))


def measured(program: str, debian: int, **data: Any) -> dict[str, list[float]]:
    """Deploy a box with `data`, run `on_host.py PROGRAM` in it, and return the measurements by kind."""
    build()
    name = f"bench-{debian}"
    [box] = machines.up([name], debian)
    try:
        with tempfile.TemporaryDirectory() as folder:
            deploy(write_inventory(Path(folder) / "inventory", [box], **data))
        wait_for_server(box, 27015)
        box.run("cat >/root/on_host.py", input=Path(__file__).with_name("on_host.py").read_bytes())
        output = box.run(f"python3 /root/on_host.py {program} {ROUNDS}", timeout=3600).stdout
    finally:
        machines.down([name])
    seconds: dict[str, list[float]] = json.loads(output)
    return seconds


def line(name: str, values: list[float]) -> str:
    """Return a line of the table: count, median and 95th percentile in milliseconds."""
    p95 = statistics.quantiles(values, n=20, method="inclusive")[18]
    return f"{name:28} {len(values):5} {statistics.median(values) * 1000:9.0f} {p95 * 1000:9.0f}"


def main(debian: int) -> None:
    seconds = measured("resets", debian)
    print(f"{'reset of a running server':28} {'times':>5} {'median/ms':>9} {'p95/ms':>9}")
    for kind, values in seconds.items():
        print(line(kind, values))
    for over, under in (
        ("l4d2ctl", "shell"),
        ("100000 files in upper", "10 files in upper"),
        ("8 GB of installation", "80 MB of installation"),
    ):
        ratio = statistics.median(seconds[over]) / statistics.median(seconds[under])
        print(f"{over} : {under} = {ratio:.2f} at the median")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 13)
