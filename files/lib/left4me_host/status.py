"""The status of servers, and whether they run as declared."""

from __future__ import annotations

import os
import re
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field

from left4me_host import a2s, firewall, instance, layout

_PROPERTIES = (
    *("ActiveState", "SubState", "StateChangeTimestamp", "MainPID", "MemoryCurrent"),
    "ExecMainStartTimestampMonotonic",
)
_GENERATION = "LEFT4ME_GENERATION"


@dataclass(frozen=True)
class Status:
    """A server as `status --json` prints it. Times are systemd's text, memory is in bytes, `players` excludes bots."""

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
    next_map: bool
    revision: str = ""  # of the last deploy
    build: str = ""  # the server runs on it, or would at its next start
    build_due: bool = False  # a restart changes the build
    reset_unfinished: bool = False  # the server does not start until its reset is finished
    held_by: str = ""  # who stopped it by hand, if known
    reset_finished: str = ""  # what the boot did about an unfinished reset: a key of instance.FINISHED
    restart_for: list[str] = field(default_factory=list)  # what a restart changes: port, layers, build, unit …
    dropped: dict[str, int] = field(default_factory=dict)  # packets that the firewall dropped, by firewall.DROPPED


def _at_the_next_map(units: dict[str, dict[str, str]]) -> set[str]:
    """Return the running servers that have not read their configuration since it changed."""
    searches = {}
    for server, unit in units.items():
        changed = _changed(server)
        if unit["MainPID"] == "0" or changed <= _began(unit):
            continue
        # With --lines=1 journalctl searches backwards and stops at the first match.
        was_read = re.escape(_last_echo(f"{layout.SERVERS}/{server}/server.cfg"))
        command = ["journalctl", "--no-pager", "--quiet", "--output=cat", "--lines=1", f"--grep=^{was_read}$"]
        since = f"--since=@{changed // 10**9}.{changed % 10**9 // 1000:06d}"
        command += [since, f"_SYSTEMD_UNIT={layout.unit(server)}"]
        searches[server] = subprocess.Popen(command, stdout=subprocess.PIPE)
    return {server for server, search in searches.items() if not search.communicate()[0]}


def _last_echo(path: str) -> str:
    """Return the text that a server.cfg prints at each map load; without one, a text that no game prints."""
    with suppress(FileNotFoundError), open(path, encoding="utf-8", errors="replace") as file:
        if echoes := re.findall("^echo (left4me: server.cfg .+)$", file.read(), re.MULTILINE):
            return str(echoes[-1])
    return "left4me: no server.cfg"


def _changed(server: str) -> int:
    """Return when the files that the game reads at each map load last changed, in ns since the epoch."""
    folder, secrets = f"{layout.SERVERS}/{server}", f"{layout.SECRETS}/{server}"
    paths = [f"{folder}/server.cfg", f"{folder}/admins_simple.ini"]
    if os.path.isdir(secrets):
        paths += [f"{secrets}/{name}" for name in os.listdir(secrets)]
    # Not mtime: a map may load between the write and the rename, during the fsync(2).
    return max((os.stat(path).st_ctime_ns for path in paths if os.path.exists(path)), default=0)


def _began(unit: dict[str, str]) -> int:
    """Return when a unit's game was started, in ns since the epoch."""
    return time.time_ns() - time.monotonic_ns() + int(unit["ExecMainStartTimestampMonotonic"]) * 1000


def _unanswered_since(server: str, answered: bool, unit: dict[str, str]) -> str | None:
    """If a server `answered`, note the time and return None; otherwise return when it last answered or was started."""
    path = f"{layout.RUN}/{server}.answered"
    if answered:
        os.makedirs(layout.RUN, exist_ok=True)
        with open(path, "w", encoding="ascii"):
            return None
    return _written(path, _began(unit)) or unit["StateChangeTimestamp"]


def _written(path: str, after: int = 0) -> str:
    """Return a file's mtime in systemd's format; empty if the file is missing or not newer than `after` (in ns)."""
    try:
        when = os.stat(path).st_mtime_ns
    except FileNotFoundError:
        return ""
    return time.strftime("%a %Y-%m-%d %H:%M:%S %Z", time.localtime(when // 10**9)) if when > after else ""


def revision() -> tuple[str, str]:
    """Return the revision of the last deploy and when it was first deployed; both empty if unknown."""
    try:
        with open(layout.REVISION, encoding="ascii") as file:
            return file.read().strip(), _written(layout.REVISION)
    except FileNotFoundError:
        return "", ""


def _differences(started: dict[str, str], env: dict[str, str], lowers: list[str], declared: list[str]) -> list[str]:
    """Return the settings that a restart would change, by their keys in the data."""
    if not started:
        return ["its start is not recorded: restart it"]
    keys = [key for key in {**env, **started} if key not in (_GENERATION, "LOWERS")]
    found = [key for key in keys if started.get(key) != env.get(key)]
    names = [key.removeprefix("LEFT4ME_").lower() for key in found]
    if not names and started.get(_GENERATION) != env.get(_GENERATION):
        names = ["unit"]
    return [*names, *["layers"] * (lowers[:-1] != declared[:-1]), *["build"] * (lowers[-1] != declared[-1])]


def status(servers: list[str]) -> list[Status]:
    units = instance.properties(servers, *_PROPERTIES)
    declared = {server: instance.environment(server) for server in servers}
    # A running server uses the port that it was started with, even if another is declared now.
    started = {server: instance.started_with(server) for server, unit in units.items() if unit["MainPID"] != "0"}
    addresses = {
        server: address
        for server, env in started.items()
        if (address := instance.address_of(env or declared[server])) and units[server]["ActiveState"] == "active"
    }
    answers = a2s.ask(addresses)
    mounted = instance.overlays()
    next_map = _at_the_next_map(units)
    deployed, _when = revision()
    table = firewall.loaded()
    rows = []
    for server in servers:
        unit, env, info = units[server], declared[server], answers.get(server)
        memory = unit["MemoryCurrent"]
        # systemd forgets a unit that does not run; the time of a stop by hand is on disk.
        since = unit["StateChangeTimestamp"] or _written(f"{layout.HELD}/{server}")
        runs, next_lowers = unit["MainPID"] != "0", instance.lowers(server)
        lowers = mounted.get(layout.merged(server), [next_lowers])[0] if runs else next_lowers
        address = instance.address_of(started.get(server) or env)
        dropped = table.dropped.get(address[1], {}) if table and address else {}
        restart_for = _differences(started[server], env, lowers, next_lowers) if runs else []
        rows.append(
            Status(
                id=server,
                state=unit["ActiveState"] if unit["ActiveState"] != "activating" else unit["SubState"],
                since=since,
                held=instance.is_held(server),
                port=address[1] if address else None,
                map=info.map if info else None,
                players=info.players if info else None,
                slots=info.slots if info else None,
                unanswered_since=_unanswered_since(server, info is not None, unit) if server in addresses else None,
                layers=instance.declared_lines(server, "layers"),
                memory=int(memory) if memory.isdigit() else None,
                restart_due=bool(restart_for),
                next_map=server in next_map,
                revision=deployed,
                build=os.path.basename(lowers[-1]),
                build_due=runs and lowers[-1] != next_lowers[-1],
                reset_unfinished=instance.reset_unfinished(server),
                reset_finished=instance.finished(server),
                held_by=instance.held_by(server),
                restart_for=restart_for,
                dropped={reason: count for reason, count in dropped.items() if count},
            )
        )
    return rows


def _players(row: Status) -> str:
    if row.players is not None:
        return f"{row.players}/{row.slots}"
    return f"no answer since {row.unanswered_since}" if row.unanswered_since else "-"


def table(rows: list[Status]) -> list[list[str]]:
    lines = [["ID", "STATE", "SINCE", "STOPPED", "PORT", "MAP", "PLAYERS", "BUILD", "LAYERS", "MEMORY", "CHANGE"]]
    for row in rows:
        memory = f"{row.memory / 2**20:.0f}M" if row.memory is not None else "-"
        change = "restart required" if row.restart_due else "at the next map" if row.next_map else ""
        if row.reset_unfinished:
            change = "reset is unfinished"
        lines.append(
            [
                row.id,
                row.state,
                row.since or "-",
                "by hand" if row.held else "-",
                str(row.port or "-"),
                row.map or "-",
                _players(row),
                row.build or "-",
                ",".join(row.layers) or "-",
                memory,
                change or instance.FINISHED.get(row.reset_finished, "-"),
            ]
        )
    return lines
