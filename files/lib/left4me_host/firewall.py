"""The firewall's table of nftables, as the kernel has it."""

from __future__ import annotations

import re
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass

from left4me_host import layout

TABLE = ("inet", "left4me")
NFT = "/usr/sbin/nft"

DROPPED = {
    "too_short": "packets that are shorter than the engine's",
    "too_long": "packets longer than the engine's",
    "one_source": "packets beyond the limit of one source",
    "newcomers": "packets of newcomers, whose addresses may be spoofed",
    "strangers": "game packets from addresses that do not play",
    "rcon": "RCON packets from addresses that are not in rcon_from",
    "to_host": "the server's own packets to this host, or to link-local, broadcast or multicast addresses",
    "wrong_port": "the server's own packets from another server's port",
}
"""What each counter of the table counts, for each port. templates/firewall.nft.j2 has the rules."""


@dataclass(frozen=True)
class Loaded:
    """The loaded table: its version, which the deploy chose, and dropped packets since it was loaded, by port."""

    version: str
    dropped: dict[int, dict[str, int]]


def loaded() -> Loaded | None:
    """Return the table, or None if the kernel has none or nftables is not installed."""
    try:
        # Terse: without the elements of sets, of which a flood makes half a million.
        listed = subprocess.run(
            [NFT, "--terse", "list", "table", *TABLE], stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
    except FileNotFoundError:
        return None
    if listed.returncode:
        return None
    text = listed.stdout.decode(errors="replace")
    dropped: dict[int, dict[str, int]] = {}
    for reason, port, packets in re.findall(r"^\tcounter (\w+)_(\d+) {\n\t\tpackets (\d+) ", text, re.MULTILINE):
        dropped.setdefault(int(port), {})[reason] = int(packets)
    return Loaded(_version(text), dropped)


def _version(table: str) -> str:
    """Return the version in a table's comment. nft 1.0.6 leaves comments out of its JSON."""
    comment = re.search(r'^\s+comment "([^"]*)"$', table, re.MULTILINE)
    return comment[1] if comment else ""


def deployed_version() -> str | None:
    """Return the version of the table that the host loads at boot, None without a firewall."""
    with suppress(FileNotFoundError), open(layout.FIREWALL, encoding="utf-8", errors="replace") as file:
        return _version(file.read())
    return None


ATTACK = 100
"""Dropped packets per second for one server from which on it is under attack."""
_SECONDS = 0.2


def attacks(before: Loaded) -> dict[int, tuple[int, str]]:
    """Return the servers under attack by port: dropped packets per second, and the most frequent reason.

    Takes 0.2 s if packets have been dropped since the table was loaded.
    """
    if not any(sum(reasons.values()) for reasons in before.dropped.values()):
        return {}
    began = time.monotonic()
    time.sleep(_SECONDS)
    after = loaded()
    seconds = time.monotonic() - began
    found = {}
    for port, reasons in (after.dropped if after else {}).items():
        rates = {
            reason: (count - before.dropped.get(port, {}).get(reason, 0)) / seconds
            for reason, count in reasons.items()
            if reason not in ("to_host", "wrong_port")  # the server's own packets
        }
        if (total := sum(rates.values())) >= ATTACK:
            found[port] = (int(total), max(rates, key=lambda reason: rates[reason]))
    return found
