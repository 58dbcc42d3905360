"""`python -m bench.stops [DEBIAN]`: how long a neighbour's stops take beside each flood of a server, and without.

In a test box: with the machine's own processors, but without the limits of CPU, memory and processes that a host has.
`pytest tests/vm/test_flooded_machine.py -s` prints the same of an emulated machine, which has them.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

from tests.attacks import floods
from tests.attacks.test_floods import SIZES
from tests.boxes import boxes as machines
from tests.boxes import deployed, game
from tests.integration.harness import deploy, wait_for_server, write_inventory

STOPS = 11
AIM = 0.5
"""Seconds for a stop beside any flood."""


def main(debian: int) -> None:
    game.build()
    name = f"bench-stops-{debian}"
    machines.down([each.name for each in machines.boxes() if each.name == name])
    [box] = machines.up([name], debian, deployed.PACKAGES)
    try:
        with tempfile.TemporaryDirectory() as folder:
            deploy(write_inventory(Path(folder, "inventory"), [box], **floods.declared(Path(folder))))
        wait_for_server(box, floods.PORTS[floods.NEIGHBOUR])
        print(f"Debian {debian}, {STOPS} stops each: median in s (aim {AIM}), longest, ratio to a quiet stop beside it")
        for kind in floods.FLOODS:
            quiet = [floods.stopping(box) for _ in range(STOPS)]
            with floods.flooding(box, kind, SIZES.get(kind, 0)):
                beside = [floods.stopping(box) for _ in range(STOPS)]
            median, before = statistics.median(beside), statistics.median(quiet)
            print(f"{kind:12} {median:6.2f} {max(beside):6.2f} {median / before:6.1f}", flush=True)
    finally:
        box.down()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 13)
