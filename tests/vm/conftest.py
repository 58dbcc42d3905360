"""An operator for whom each host is a full machine of one Debian."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.boxes import boxes as machines
from tests.boxes.boxes import Box
from tests.boxes.game import build
from tests.stories.operator import Operator

SLOW = 900
"""Seconds for one command of an operator: an emulated machine takes several times what a box takes."""
WAIT = 300
"""Seconds until a server answers after a start or a boot."""


@pytest.fixture(params=(12, 13), ids=("debian12", "debian13"))
def debian(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def operator(debian: int, tmp_path: Path) -> Iterator[Operator]:
    build()
    someone = Operator(f"test-vm-{debian}", tmp_path, debian)
    someone.leaves()
    yield someone
    someone.leaves()


def machine(operator: Operator, name: str = "") -> Box:
    """Start a full machine with only Debian and sshd, and add it to the hosts."""
    [host] = machines.up([operator.name + name], operator.debian, is_vm=True)
    operator.hosts.append(host)
    return host
