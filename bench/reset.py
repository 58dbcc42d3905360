"""How long a reset takes: `python -m bench.reset [DEBIAN]`, against a shell that does the same with no Python.

Both are timed in one box, in turn. Says whether it depends on how much the server wrote, and on the game's size.
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


def measured(what: str, debian: int, **data: Any) -> dict[str, list[float]]:
    """Have a box with these data and return the seconds of its resets or starts, by what they were."""
    build()
    name = f"bench-{debian}"
    [box] = machines.up([name], debian)
    try:
        with tempfile.TemporaryDirectory() as folder:
            deploy(write_inventory(Path(folder) / "inventory", [box], **data))
        wait_for_server(box, 27015)
        box.run("cat >/root/on_host.py", input=Path(__file__).with_name("on_host.py").read_bytes())
        said = box.run(f"python3 /root/on_host.py {what} {ROUNDS}", timeout=3600).stdout
    finally:
        machines.down([name])
    seconds: dict[str, list[float]] = json.loads(said)
    return seconds


def line(name: str, values: list[float]) -> str:
    """Return one line of the table, in milliseconds."""
    p95 = statistics.quantiles(values, n=20, method="inclusive")[18]
    return f"{name:28} {len(values):5} {statistics.median(values) * 1000:9.0f} {p95 * 1000:9.0f}"


def main(debian: int) -> None:
    """Measure and print."""
    seconds = measured("resets", debian)
    print(f"{'reset of a running server':28} {'times':>5} {'median/ms':>9} {'p95/ms':>9}")
    for what, values in seconds.items():
        print(line(what, values))
    for over, under in (
        ("l4d2ctl", "shell"),
        ("100000 files in upper", "10 files in upper"),
        ("8 GB of installation", "80 MB of installation"),
    ):
        ratio = statistics.median(seconds[over]) / statistics.median(seconds[under])
        print(f"{over} : {under} = {ratio:.2f} at the median")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 13)
