"""Pending states: left4me itself causes them, so verification lists them and does not fail.

They are read from systemd, the kernel, the journal and root's files, never from l4d2ctl.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from left4me import model

VAR = "/var/lib/left4me"
RESTART = "restart required"
NEXT_MAP = "configuration at the next map"
HELD = "stopped by hand"
STOPPED = "declared stopped, still running"
RESET = "reset unfinished"
PORT = "port is held"
KEPT = "no longer declared, kept"
STARTING = "starting"
DOWN = (HELD, RESET, PORT)
"""The states that keep a server down although it is declared to run."""


@dataclass(frozen=True)
class Pending:
    """A pending state of a server; `since` (host's time) and `by` (who caused it) are empty if unknown."""

    host: str
    server: str
    pending: str
    since: str
    by: str
    do: str


def unit_of(server: str) -> str:
    return f"left4me-server@{server}.service"


def is_up(found: Mapping[str, Any], server: str) -> bool:
    """Return whether a server's unit is active, activating or deactivating."""
    return found["units"].get(unit_of(server), {}).get("ActiveState", "inactive") not in ("inactive", "failed")


def target_of(found: Mapping[str, Any], link: str) -> str:
    """Return the path that a relative symlink below /var/lib/left4me points to."""
    return f"{link.rpartition('/')[0]}/{found['entries'].get(link, {}).get('target', '?')}"


def lowers_of(found: Mapping[str, Any], declared: model.Server) -> list[str]:
    """Return the lower layers that a server would get at a start, topmost first, the build last."""
    layers = [target_of(found, f"{VAR}/overlays/{name}/current") for name in declared.lowers]
    return [*layers, f"{VAR}/releases/{declared.build}" if declared.build else target_of(found, f"{VAR}/installation")]


def environment_of(found: Mapping[str, Any], server: str) -> dict[str, str]:
    """Return a server's server.env on disk; another test compares it with the data."""
    text = found["entries"].get(f"/etc/left4me/servers/{server}/server.env", {}).get("text", "")
    return dict(re.findall(r'^(LEFT4ME_[A-Z_]+)="(.*)"$', text, re.MULTILINE))


def _differences(found: Mapping[str, Any], server: str, declared: model.Server) -> list[str]:
    """Return the names of what a restart of a server would change."""
    record, on_disk = found["servers"][server]["record"], environment_of(found, server)
    if not record:
        return ["its start is not recorded: restart it"]
    keys = [key for key in on_disk if record.get(key) != on_disk[key] and key != "LEFT4ME_GENERATION"]
    names = [key.removeprefix("LEFT4ME_").lower() for key in keys]
    if not names and record.get("LEFT4ME_GENERATION") != on_disk.get("LEFT4ME_GENERATION"):
        names = ["unit"]
    before, after = record.get("LOWERS", "").split(":"), lowers_of(found, declared)
    return [*names, *["layers"] * (before[:-1] != after[:-1]), *["build"] * (before[-1] != after[-1])]


def _restart(found: Mapping[str, Any], server: str, declared: model.Server) -> tuple[str, str, str, str] | None:
    names = _differences(found, server, declared)
    if not names:
        return None
    links = [f"{VAR}/overlays/{name}/current" for name in declared.lowers] + [f"{VAR}/installation"]
    changed = [
        found["servers"][server]["declared"],
        *(found["entries"].get(each, {}).get("since", "") for each in links),
    ]
    since = changed[0] if set(names) - {"layers", "build"} else max(changed[1:])
    # Servers that exchange their ports must be restarted together.
    together = [server, *filter(None, [_holder(found, server)])]
    return f"{RESTART} ({', '.join(names)})", since, "", f"l4d2ctl restart {' '.join(sorted(together))}"


def _holder(found: Mapping[str, Any], server: str) -> str:
    """Return the other server that still runs with a server's port, or an empty string."""
    port = environment_of(found, server).get("LEFT4ME_PORT")
    others = [
        other
        for other, about in found["servers"].items()
        if other != server and is_up(found, other) and about["record"].get("LEFT4ME_PORT") == port
    ]
    return others[0] if port and others else ""


def _kinds(found: Mapping[str, Any], host: model.Host, server: str, grace: float) -> Iterator[tuple[str, Any]]:
    """Yield the kinds of pending states of a declared server, each with text, since, by and do."""
    declared, about = host.servers[server], found["servers"][server]
    up, unit = is_up(found, server), found["units"][unit_of(server)]
    if about["reset"]:
        yield RESET, (RESET, about["reset"], "", f"l4d2ctl reset {server}")
    if declared.state == "stopped":
        if up:
            yield STOPPED, (STOPPED, about["since"], "", f"l4d2ctl stop {server}")
    elif about["held"] and not up:
        yield HELD, (HELD, about["held"]["since"], about["held"]["by"], f"l4d2ctl start {server}")
    elif not up and unit["ActiveState"] != "failed" and (other := _holder(found, server)):
        port = environment_of(found, server).get("LEFT4ME_PORT")
        way = "restart" if other in host.present else "stop"
        do = f"l4d2ctl {way} {other} && l4d2ctl start {server}"
        yield PORT, (f"port {port} is still held by server {other}", found["servers"][other]["since"], "", do)
    if not up:
        return
    if restart := _restart(found, server, declared):
        yield RESTART, restart
    elif about["unread"]:
        yield NEXT_MAP, (NEXT_MAP, about["unread"], "", f"wait, or l4d2ctl restart {server}")
    is_starting = unit["SubState"] in ("start-pre", "start") or (about["age"] is not None and about["age"] < grace)
    # A server that systemd restarted has crashed.
    if is_starting and unit["NRestarts"] == "0" and found["answers"].get(server) is None:
        yield STARTING, (STARTING, about["since"], "", f"l4d2ctl status {server}")


def pending(name: str, found: Mapping[str, Any], host: model.Host, grace: float) -> dict[str, dict[str, Pending]]:
    """Return the pending states of a host by server and kind; `grace` is how long a start may take, in seconds."""
    result: dict[str, dict[str, Pending]] = {}
    for server in host.present:
        result[server] = {kind: Pending(name, server, *words) for kind, words in _kinds(found, host, server, grace)}
    for server in found["servers"]:
        if server not in host.servers and is_up(found, server):
            answer = found["answers"].get(server)
            players = "it does not answer" if answer is None else f"{answer['players'] - answer['bots']} players"
            do = 'deploy again, or declare {"state": "absent"}'
            since = found["servers"][server]["since"]
            result[server] = {KEPT: Pending(name, server, f"{KEPT}: {players}", since, "", do)}
    return result
