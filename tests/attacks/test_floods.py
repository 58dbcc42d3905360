"""A server floods what it shares with its neighbour, whose stops and starts go on.

In boxes, whose processors are the machine's own but where limits of memory, CPU and IO have no effect: the figures are
those of a host that limits nothing. tests/vm/test_flooded_machine.py is the other half.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.attacks import floods
from tests.boxes.boxes import Box
from tests.integration.harness import deploy, wait_for_server, write_inventory

pytestmark = pytest.mark.soak
STOPS = 3
LIMIT = 15.0
"""TimeoutStopSec= of a server. Soak prints the figures, whose aim is 0.5 s; but other tests run beside this one."""
PROCESSES = {"processes": 30, "CPU": 50}
"""In boxes, nothing limits their number and CPU time: they would disturb the tests that run beside this one."""
SIZES = {"memory": 1 << 30, "dirty pages": 256 << 20, "inodes": 50_000, "disk": 512 << 20}
"""Bytes, or inodes, of each process of a flood: no box may fill the machine that runs it."""


@pytest.fixture(scope="module")
def flooded(box: Box, game: Path, tmp_path_factory: pytest.TempPathFactory) -> Box:
    """A box whose server 3 is the flooder, and whose server 4 runs."""
    folder = tmp_path_factory.mktemp("flood")
    deploy(write_inventory(folder / "inventory", [box], **floods.declared(folder)))
    wait_for_server(box, floods.PORTS[floods.NEIGHBOUR])
    return box


@pytest.mark.parametrize("kind", floods.FLOODS)
def test_a_neighbour_stops_and_starts_beside_a_flood(
    flooded: Box, kind: str, debian: int, capsys: pytest.CaptureFixture[str]
) -> None:
    stops = floods.compared(flooded, kind, STOPS, size=SIZES.get(kind, 0), processes=PROCESSES.get(kind))
    with capsys.disabled():
        print(f"\nDebian {debian}, stops beside a flood: {stops}", file=sys.stderr)
    assert max(stops.beside) < LIMIT
