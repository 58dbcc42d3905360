"""Split the hosts of a fleet into waves."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

CANARY = "canary"


@dataclass(frozen=True)
class Host:
    """A host as left4me.inventory_export prints it; `running` has the ids of the servers declared to run."""

    name: str
    groups: frozenset[str]
    connection: Mapping[str, Any] = field(repr=False)  # may have passwords
    running: tuple[str, ...]

    @classmethod
    def read(cls, exported: Mapping[str, Any]) -> Host:
        servers = exported["declares"]["servers"]
        running = tuple(server for server, declared in servers.items() if declared["state"] == "running")
        return cls(exported["name"], frozenset(exported["groups"]), exported["connection"], running)


def duration(text: str) -> float:
    """Return the seconds of a duration such as 90s, 20m, 1h30m or 0. Raises ArgumentTypeError."""
    found = re.fullmatch(r"0|(?=\d)(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text)
    if not found:
        raise ArgumentTypeError(f"{text!r} is not a duration such as 90s, 20m, 1h30m or 0")
    hours, minutes, seconds = (int(each or 0) for each in found.groups())
    return float(hours * 3600 + minutes * 60 + seconds)


def sizes(text: str) -> list[str]:
    """Return the wave sizes in a comma-separated list. Raises ArgumentTypeError."""
    for size in text.split(","):
        if not re.fullmatch(rf"{CANARY}|[1-9]\d*%?", size):
            raise ArgumentTypeError(f"{size!r} is not a wave size: use a number of hosts, 25%, or {CANARY}")
    return text.split(",")


def _size(size: str, hosts: Sequence[Host]) -> int:
    if size == CANARY:
        return sum(CANARY in host.groups for host in hosts) or 1
    if size.endswith("%"):
        return -(-len(hosts) * int(size[:-1]) // 100)
    return int(size)


def split(hosts: Sequence[Host], wave_sizes: Sequence[str]) -> list[list[Host]]:
    """Return the waves: the group canary first, then the others in order. The last size repeats."""
    left = sorted(hosts, key=lambda host: CANARY not in host.groups)
    waves: list[list[Host]] = []
    while left:
        size = _size(wave_sizes[min(len(waves), len(wave_sizes) - 1)], hosts)
        waves.append(left[:size])
        left = left[size:]
    return waves
