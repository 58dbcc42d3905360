"""The pending states of a host's servers, each with the command that ends it.

left4me_host/status.py decides on the host whether a restart is required. For a dry run, restarts() of operations.py
predicts that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from left4me import model

REQUIRED = "restart required"
WILL_BE_REQUIRED = "will require a restart"
"""A dry run reports this instead of REQUIRED."""
RESTART = "l4d2ctl restart "


@dataclass(frozen=True)
class Pending:
    """A pending state of a server. If `command` ends with a space, lines() appends the server's id."""

    what: str
    server: str
    command: str


def _of(row: Mapping[str, Any], declares: model.Host, ports: Mapping[int, str]) -> Iterator[Pending]:
    """Yield a server's pending states; `row` is from l4d2ctl status, `ports` maps ports to running servers."""
    server = row["id"]
    runs = row["state"] not in ("inactive", "failed")
    declared = declares.servers.get(server)
    if declared is None:
        yield Pending("no longer declared, kept: it has players or does not respond", server, "deploy again")
        return
    if declared.state == "stopped" and runs:
        yield Pending("declared stopped, still running", server, "l4d2ctl stop ")
    elif row["held"] and declared.state == "running":
        yield Pending("stopped by hand", server, "l4d2ctl start ")
    if row.get("reset_unfinished"):
        yield Pending("reset unfinished", server, "l4d2ctl reset ")
    if row["restart_due"]:
        yield Pending(REQUIRED, server, RESTART)
    elif row["next_map"]:
        yield Pending("configuration at the next map", server, "wait, or l4d2ctl restart ")
    other = ports.get(row["port"], server)
    if declared.state == "running" and not runs and not row["held"] and other != server:
        way = "restart" if other in declares.present else "stop"
        what = f"not started, port {row['port']} is still held by server {other}"
        yield Pending(what, server, f"l4d2ctl {way} {other} && l4d2ctl start ")


def pending(rows: Iterable[Mapping[str, Any]], declares: model.Host) -> list[Pending]:
    """Return the pending states of a host's servers; `rows` are from l4d2ctl status."""
    rows = list(rows)
    ports = {row["port"]: row["id"] for row in rows if row["state"] not in ("inactive", "failed")}
    return [each for row in rows for each in _of(row, declares, ports)]


def lines(found: Iterable[Pending]) -> list[str]:
    """Return a line for each pending state: the state, its servers, and the command that ends it."""
    together: dict[tuple[str, str], list[str]] = {}
    for each in found:
        together.setdefault((each.what, each.command), []).append(each.server)
    return [
        f"{what}: {', '.join(servers)}: {command}{' '.join(servers) if command.endswith(' ') else ''}"
        for (what, command), servers in together.items()
    ]
