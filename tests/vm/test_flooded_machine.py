"""A server floods a full machine, where limits of memory, CPU and processes bite. By hand, `make soak-vm`.

A disk that is full is in test_quotas.py and in story 31.
"""

from __future__ import annotations

import sys

import pytest

from tests.attacks import floods
from tests.integration.harness import wait_for_server
from tests.stories.operator import Operator
from tests.vm.conftest import SLOW, machine

STOPS = 3
STOP_SECONDS = 15
"""TimeoutStopSec= of a server: no flood may make a stop of its neighbour reach it."""
BUILT_UP = 300
"""Seconds until a flood is at its height: emulated, a hundred thousand files take minutes."""
SIZES = {"memory": 1 << 30, "dirty pages": 512 << 20, "inodes": 50_000, "disk": 512 << 20}
"""Bytes, or inodes, of each process of a flood."""


def test_no_flood_of_a_server_keeps_its_neighbour_from_stopping_and_starting(
    operator: Operator, capsys: pytest.CaptureFixture[str]
) -> None:
    host = machine(operator)
    operator.declare(**floods.declared(operator.fleet, memory_max="1200M"))
    operator.types(f"pyinfra {operator.inventory} deploy.py -y", seconds=SLOW)
    wait_for_server(host, floods.PORTS[floods.NEIGHBOUR], 120)
    slow: dict[str, list[float]] = {}
    for kind in floods.FLOODS:
        stops = floods.compared(host, kind, STOPS, size=SIZES.get(kind, 0), limit=BUILT_UP)
        with capsys.disabled():
            print(f"\nDebian {host.debian}, stops beside a flood: {stops}", file=sys.stderr)
        slow |= {kind: stops.beside} if max(stops.beside) >= STOP_SECONDS else {}
    assert not slow
    operator.types(f"make verify INVENTORY={operator.inventory}", "passed", never=["failed"], seconds=SLOW)
