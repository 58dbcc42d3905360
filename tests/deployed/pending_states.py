"""States that left4me itself brings about: verification knows and lists them, and they are not wrong.

Told by what systemd, the kernel, the journal and root's files say, never by l4d2ctl.
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
"""What keeps a server down that is declared to run."""


@dataclass(frozen=True)
class Pending:
    """One such state of one server; `since` is in the host's time, `by` who brought it about, both empty if unknown."""

    host: str
    server: str
    pending: str
    since: str
    by: str
    do: str


def unit_of(server: str) -> str:
    """Return a server's instance."""
    return f"left4me-server@{server}.service"


def is_up(found: Mapping[str, Any], server: str) -> bool:
    """Tell whether systemd has a server as running, or on its way to or from that."""
    return found["units"].get(unit_of(server), {}).get("ActiveState", "inactive") not in ("inactive", "failed")


def target_of(found: Mapping[str, Any], link: str) -> str:
    """Return the path that a relative symlink below /var/lib/left4me names."""
    return f"{link.rpartition('/')[0]}/{found['entries'].get(link, {}).get('target', '?')}"


def lowers_of(found: Mapping[str, Any], declared: model.Server) -> list[str]:
    """Return the lower layers that a start would give a server, the topmost first and the build last."""
    layers = [target_of(found, f"{VAR}/overlays/{name}/current") for name in declared.lowers]
    return [*layers, f"{VAR}/releases/{declared.build}" if declared.build else target_of(found, f"{VAR}/installation")]


def environment_of(found: Mapping[str, Any], server: str) -> dict[str, str]:
    """Return a server's server.env on disk, which another test compares with what is declared."""
    text = found["entries"].get(f"/etc/left4me/servers/{server}/server.env", {}).get("text", "")
    return dict(re.findall(r'^(LEFT4ME_[A-Z_]+)="(.*)"$', text, re.MULTILINE))


def _differences(found: Mapping[str, Any], server: str, declared: model.Server) -> list[str]:
    """Return in what a server's record differs from what a restart would give it."""
    record, wanted = found["servers"][server]["record"], environment_of(found, server)
    if not record:
        return ["what it was started with is not recorded"]
    keys = [key for key in wanted if record.get(key) != wanted[key] and key != "LEFT4ME_GENERATION"]
    names = [key.removeprefix("LEFT4ME_").lower() for key in keys]
    if not names and record.get("LEFT4ME_GENERATION") != wanted.get("LEFT4ME_GENERATION"):
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
    # Servers that exchange their ports are restarted together.
    together = [server, *filter(None, [_holder(found, server)])]
    return f"{RESTART} ({', '.join(names)})", since, "", f"l4d2ctl restart {' '.join(sorted(together))}"


def _holder(found: Mapping[str, Any], server: str) -> str:
    """Return which other server was started with the port that a server has now."""
    port = environment_of(found, server).get("LEFT4ME_PORT")
    others = [
        other
        for other, about in found["servers"].items()
        if other != server and is_up(found, other) and about["record"].get("LEFT4ME_PORT") == port
    ]
    return others[0] if port and others else ""


def _kinds(found: Mapping[str, Any], host: model.Host, server: str, grace: float) -> Iterator[tuple[str, Any]]:
    """Yield each kind of pending state of a server that is declared, with text, since, by and do."""
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
    begun = unit["SubState"] in ("start-pre", "start") or (about["age"] is not None and about["age"] < grace)
    # One that systemd started again by itself has crashed.
    if begun and unit["NRestarts"] == "0" and found["answers"].get(server) is None:
        yield STARTING, (STARTING, about["since"], "", f"l4d2ctl status {server}")


def pending(name: str, found: Mapping[str, Any], host: model.Host, grace: float) -> dict[str, dict[str, Pending]]:
    """Return what is pending on a host, by server and kind; `grace` is how long a server may start, in seconds."""
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
