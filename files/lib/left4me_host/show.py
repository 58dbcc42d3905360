"""`l4d2ctl show`: all about one server, from systemd, the kernel, the game's answers and the declared files."""

from __future__ import annotations

import os
import re
import socket
from contextlib import suppress
from typing import Any

from left4me_host import a2s, attic, instance, layout, quota, status

_SECRET = re.compile(r'(password"?\s+)("[^"]*"|\S+)', re.IGNORECASE)
"""A cvar with a password and its value, in a cfg file or on the game's command line."""
_NOWHERE = ("192.0.2.1", 9)
"""An address for documentation (RFC 5737): no packet is sent to it."""


def about(server: str) -> dict[str, Any]:
    """Return what `show --json` prints. Raises Failed."""
    [row] = status.status([server])
    started = instance.started_with(server)
    return {
        "status": vars(row),
        "address": _address(started or instance.environment(server)),
        "players": _players(server, started) if row.players is not None else None,
        "layers": _layers(server, bool(started)),
        "limits": _limits(server),
        "disk": _disk(server, started),
        "attic": [entry for entry in attic.rows() if entry["id"] == server],
        "declared": _declared(server),
    }


def _address(env: dict[str, str]) -> str:
    """Return where players connect: the declared address, or the host's own that its default route uses."""
    address = env.get("LEFT4ME_ADDRESS", "0.0.0.0")
    if address == "0.0.0.0":
        address = socket.gethostname()
        with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as routed:
            routed.connect(_NOWHERE)
            address = routed.getsockname()[0]
    return f"{address}:{env.get('LEFT4ME_PORT', '')}"


def _players(server: str, started: dict[str, str]) -> list[dict[str, object]] | None:
    """Return the players, the longest on the server first; None without an answer."""
    address = instance.address_of(started or instance.environment(server))
    answers = a2s.ask_players({server: address} if address else {})
    if server not in answers:
        return None
    return [vars(each) for each in sorted(answers[server], key=lambda each: -each.seconds)]


def _layers(server: str, runs: bool) -> list[dict[str, str]]:
    """Return the layers that a running server has mounted, or that a start would mount, topmost first."""
    mounted = instance.overlays().get(layout.merged(server)) if runs else None
    lowers = mounted[0] if mounted else instance.lowers(server)
    return [
        {"name": os.path.basename(os.path.dirname(path)), "version": os.path.basename(path)} for path in lowers[:-1]
    ]


def _limits(server: str) -> dict[str, int | None]:
    unit = instance.properties([server], "MemoryMax", "CPUWeight", "Nice")[server]

    def number(name: str) -> int | None:
        text = unit.get(name, "")
        return int(text) if text.lstrip("-").isdigit() else None  # "infinity", "[not set]"

    return {"memory_max": number("MemoryMax"), "cpu_weight": number("CPUWeight"), "nice": number("Nice")}


def _disk(server: str, started: dict[str, str]) -> dict[str, int | None] | None:
    """Return what a server with disk_max uses of it; None without. Of a stopped server the use may be unknown: None."""
    most = quota.declared_of(started or instance.environment(server))
    usage = quota.usage(server, most) if most else None
    none = {"used": None, "limit": most, "files": None, "files_limit": most // quota.BYTES_PER_FILE}
    return (usage._asdict() if usage else none) if most else None


def _declared(server: str) -> dict[str, str]:
    """Return the text of the declared files by name, without the values of passwords."""
    found = {}
    for entry in sorted(os.scandir(f"{layout.SERVERS}/{server}"), key=lambda entry: entry.name):
        if entry.is_file(follow_symlinks=False):
            with open(entry.path, encoding="utf-8", errors="replace") as file:
                found[entry.name] = _SECRET.sub(r"\1(not shown)", file.read())
    return found


def sheet(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines of `show` on a terminal: a heading and a text each."""
    row, players, limits = found["status"], found["players"], found["limits"]
    memory = f"{limits['memory_max'] / 2**30:.1f} GiB" if limits["memory_max"] else "no limit"
    used = f"{row['memory'] / 2**20:.0f} MiB of " if row["memory"] is not None else ""
    disk = found["disk"]
    lines = [
        ("server", f"{row['id']}, {row['state']} since {row['since'] or '?'}"),
        ("address", found["address"]),
        ("map", row["map"] or "-"),
        ("players", f"{row['players']} of {row['slots']}" if row["players"] is not None else "no answer"),
        *(("", f"{each['name'] or '(connecting)'}, {each['seconds'] / 60:.0f} min") for each in players or ()),
        ("build", row["build"] or "-"),
        ("layers", ", ".join(f"{each['name']} {each['version']}" for each in found["layers"]) or "-"),
        ("memory", f"{used}{memory}"),
        *([("disk", _disk_line(disk))] if disk else []),
        ("CPU", f"weight {limits['cpu_weight'] or 'default'}, nice {limits['nice'] or 0}"),
        ("attic", f"{len(found['attic'])} entries; see l4d2ctl attic {row['id']}" if found["attic"] else "empty"),
    ]
    if row["held"]:
        lines.append(("stopped", f"by hand{' by ' + row['held_by'] if row['held_by'] else ''}"))
    if row["restart_for"]:
        lines.append(("pending", f"restart required ({', '.join(row['restart_for'])})"))
    elif row["next_map"]:
        lines.append(("pending", "configuration at the next map"))
    if row["reset_unfinished"]:
        lines.append(("pending", f"reset is unfinished: l4d2ctl reset {row['id']}"))
    return lines


def _disk_line(disk: dict[str, Any]) -> str:
    if disk["used"] is None:
        return f"limit {disk['limit'] / 2**20:,.0f} MiB, not in force"
    used, limit = disk["used"] / 2**20, disk["limit"] / 2**20
    return f"{used:,.0f} MiB of {limit:,.0f} MiB, {disk['files']:,} of {disk['files_limit']:,} files"
