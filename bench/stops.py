"""`python -m bench.stops [DEBIAN]`: how long a neighbour's stops take beside each flood of a server, and without.

In a test box: with the machine's own processors, but without the limits of CPU, memory and processes that a host has.
`pytest tests/vm/test_flooded_machine.py -s` prints the same of an emulated machine, which has them.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.attacks import floods
from tests.attacks.test_floods import PROCESSES, SIZES
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
        print(f"Debian {debian}, {STOPS} stops each; aim: {AIM} s beside a flood", flush=True)
        for kind in floods.FLOODS:
            print(floods.compared(box, kind, STOPS, size=SIZES.get(kind, 0), processes=PROCESSES.get(kind)), flush=True)
    finally:
        box.down()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 13)
