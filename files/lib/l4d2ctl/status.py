"""What runs, and whether it is what was declared."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass

from l4d2ctl import a2s
from l4d2ctl import server as one

_PROPERTIES = ("ActiveState", "SubState", "StateChangeTimestamp", "MainPID", "MemoryCurrent")


@dataclass(frozen=True)
class Status:
    """A server as `status --json` has it. Times are systemd's text, memory is bytes, `players` is without bots."""

    id: str
    state: str
    since: str
    held: bool
    port: int | None
    map: str | None
    players: int | None
    slots: int | None
    unanswered_since: str | None
    layers: list[str]
    memory: int | None
    restart_due: bool


def generation_of(pid: str) -> str:
    """Return the generation that a running server was started with; empty where it has none or has ended."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            for pair in file.read().split(b"\0"):
                if pair.startswith(b"LEFT4ME_GENERATION="):
                    return pair.partition(b"=")[2].decode("ascii", "replace")
    except OSError:
        pass  # it ended while we looked; systemd's own word on it stands beside this
    return ""


def layers_of(server: str) -> list[str]:
    """Return the names of a server's declared layers, the topmost first."""
    try:
        with open(f"{one.ETC}/{server}/layers", encoding="utf-8") as file:
            return file.read().split()
    except FileNotFoundError:
        return []


def _unanswered_since(server: str, answered: bool, started: str) -> str | None:
    """Remember when a server last answered, and return that where it does not now."""
    path = f"{one.RUN}/{server}.answered"
    if answered:
        os.makedirs(one.RUN, exist_ok=True)
        with open(path, "w", encoding="ascii"):
            return None
    return _written(path) or started


def _written(path: str) -> str:
    """Return when a file was written, as systemd writes times; empty where there is none."""
    try:
        return time.strftime("%a %Y-%m-%d %H:%M:%S %Z", time.localtime(os.stat(path).st_mtime))
    except FileNotFoundError:
        return ""


def status(servers: list[str]) -> list[Status]:
    """Return the status of servers, all asked at once."""
    seen = one.properties(servers, *_PROPERTIES)
    declared = {server: one.environment(server) for server in servers}
    addresses = {}
    for server in servers:
        port, address = declared[server].get("LEFT4ME_PORT"), declared[server].get("LEFT4ME_ADDRESS", "0.0.0.0")
        if port and seen[server]["ActiveState"] == "active":
            addresses[server] = ("127.0.0.1" if address == "0.0.0.0" else address, int(port))
    answers = a2s.ask(addresses)
    rows = []
    for server in servers:
        unit, env, info = seen[server], declared[server], answers.get(server)
        memory = unit["MemoryCurrent"]
        # systemd forgets a unit that does not run; when it was stopped by hand is on disk.
        since = unit["StateChangeTimestamp"] or _written(f"{one.HELD}/{server}")
        due = unit["MainPID"] != "0" and generation_of(unit["MainPID"]) != env.get("LEFT4ME_GENERATION", "")
        rows.append(
            Status(
                id=server,
                state=unit["ActiveState"] if unit["ActiveState"] != "activating" else unit["SubState"],
                since=since,
                held=one.is_held(server),
                port=int(env["LEFT4ME_PORT"]) if "LEFT4ME_PORT" in env else None,
                map=info.map if info else None,
                players=info.players if info else None,
                slots=info.slots if info else None,
                unanswered_since=_unanswered_since(server, info is not None, since) if server in addresses else None,
                layers=layers_of(server),
                memory=int(memory) if memory.isdigit() else None,
                restart_due=due,
            )
        )
    return rows


def as_json(rows: list[Status]) -> list[dict[str, object]]:
    """Return rows as JSON has them."""
    return [asdict(row) for row in rows]


def _players(row: Status) -> str:
    if row.players is not None:
        return f"{row.players}/{row.slots}"
    return f"no answer since {row.unanswered_since}" if row.unanswered_since else "-"


def table(rows: list[Status]) -> list[list[str]]:
    """Return rows of text with their headings first."""
    lines = [["ID", "STATE", "SINCE", "HELD", "PORT", "MAP", "PLAYERS", "LAYERS", "MEMORY", "RESTART"]]
    for row in rows:
        memory = f"{row.memory / 2**20:.0f}M" if row.memory is not None else "-"
        lines.append(
            [
                row.id,
                row.state,
                row.since or "-",
                "by hand" if row.held else "-",
                str(row.port or "-"),
                row.map or "-",
                _players(row),
                ",".join(row.layers) or "-",
                memory,
                "due" if row.restart_due else "-",
            ]
        )
    return lines
