"""Which hosts come when."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CANARY = "canary"


@dataclass(frozen=True)
class Host:
    """A host of the fleet, as left4me.inventory_export tells it; `running` are its servers that are declared to run."""

    name: str
    groups: frozenset[str]
    connection: Mapping[str, Any]
    running: tuple[str, ...]

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> Host:
        """Return the host that left4me.inventory_export told."""
        running = [name for name, server in told["declares"]["servers"].items() if server["state"] == "running"]
        return cls(told["name"], frozenset(told["groups"]), told["connection"], tuple(running))


def duration(text: str) -> float:
    """Return the seconds of 90s, 20m, 1h30m or 0."""
    found = re.fullmatch(r"0|(?=\d)(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text)
    if not found:
        raise ArgumentTypeError(f"{text!r} is no time such as 90s, 20m, 1h30m or 0")
    hours, minutes, seconds = (int(each or 0) for each in found.groups())
    return float(hours * 3600 + minutes * 60 + seconds)


def sizes(text: str) -> list[str]:
    """Return the sizes of waves that `text` names."""
    for size in text.split(","):
        if not re.fullmatch(rf"{CANARY}|[1-9]\d*%?", size):
            raise ArgumentTypeError(f"{size!r} is no size of a wave: a number of hosts, 25%, or {CANARY}")
    return text.split(",")


def _size(size: str, hosts: Sequence[Host]) -> int:
    if size == CANARY:
        return sum(CANARY in host.groups for host in hosts) or 1
    if size.endswith("%"):
        return -(-len(hosts) * int(size[:-1]) // 100)
    return int(size)


def split(hosts: Sequence[Host], wanted: Sequence[str]) -> list[list[Host]]:
    """Return the hosts in waves: the group canary first, else in their order; the last size again for all the rest."""
    left = sorted(hosts, key=lambda host: CANARY not in host.groups)
    waves: list[list[Host]] = []
    while left:
        size = _size(wanted[min(len(waves), len(wanted) - 1)], hosts)
        waves.append(left[:size])
        left = left[size:]
    return waves
