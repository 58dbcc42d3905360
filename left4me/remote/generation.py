"""What servers were started with that run since before left4me recorded it: generation.py [--record] ID…

Prints it as JSON by id: a record, or why there can be none (`error`). With --record it is written where left4me-overlay
writes it at a mount, before this deploy changes a unit or a server's file. A record is made only where the files prove
it: server.env, the unit template and the drop-in are what they were when the server was started, since none was changed
after that. For any other server a restart is required.

A generation is the digest of what only a restart applies of these three. It is made of directives, not of text: a
comment changes nothing. The deploy, which writes it into server.env, computes it by the same function.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time

from left4me_host import layout, mountinfo

TEMPLATE = f"{layout.UNITS}/left4me-server@.service"
LIVE = frozenset(
    {
        # What systemd asks for only at the next start or end of a server, as it has it then (systemd.service(5)).
        *("ExecCondition", "ExecStartPre", "ExecStop", "ExecStopPost", "Restart", "RestartSec", "SuccessExitStatus"),
        *("RestartForceExitStatus", "RestartPreventExitStatus", "KillSignal", "KillMode", "SendSIGKILL"),
        *("TimeoutSec", "TimeoutStartSec", "TimeoutStopSec"),
        # What systemd writes into the cgroup of a running server (systemd.resource-control(5)).
        *("CPUWeight", "CPUQuota", "IOWeight", "MemoryHigh", "MemoryMax", "MemorySwapMax", "TasksMax"),
    }
)
"""Directives of [Service] that a daemon-reload applies, as it does all of [Unit] and [Install]."""


def directives(text: str) -> list[str]:
    """Return the lines of a unit file or drop-in that only a restart applies, without comments, as one line each."""
    found, section, begun = [], "", ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith(("#", ";")):
            continue  # also amid a line that goes on (systemd.syntax(7))
        if line.endswith("\\"):
            begun += line.removesuffix("\\")
            continue
        whole, begun = " ".join(f"{begun}{line}".split()), ""
        if whole.startswith("["):
            section = whole
        elif section == "[Service]" and whole and whole.partition("=")[0].strip() not in LIVE:
            found.append(whole)
    return found


def generation(template: str, drop_in: str, environment: str) -> str:
    """Return the digest of a unit template, a drop-in and a server.env, which may hold a digest already."""
    lines = [line for line in environment.splitlines() if line[:1] not in ("", "#")]
    values = [line for line in lines if not line.startswith("LEFT4ME_GENERATION=")]
    parts = "\0".join("\n".join(each) for each in (directives(template), directives(drop_in), values))
    return hashlib.sha256(parts.encode()).hexdigest()[:16]


def started(server: str) -> float:
    """Return when a server's start began, in seconds since the epoch; infinity where it does not run."""
    unit = layout.unit(server)
    show = ["systemctl", "show", "--value", "--property=InactiveExitTimestampMonotonic", unit]
    told = subprocess.run(show, capture_output=True, text=True, check=True).stdout.strip()
    return time.time() - time.monotonic() + int(told) / 1e6


def lowers(server: str) -> str:
    """Return the lower layers of a server's overlay as PID 1 has it mounted; empty where it is not, or not once."""
    found = [mount for mount in mountinfo.mounts() if mount.point == layout.merged(server)]
    return ":".join(found[0].lowers()) if len(found) == 1 else ""


def made(server: str) -> dict[str, str]:
    """Return the record of a server, made from its files; or only why there can be none, as `error`."""
    environment = f"{layout.SERVERS}/{server}/server.env"
    paths = [TEMPLATE, f"{layout.OWN_UNITS}/{layout.unit(server)}.d/limits.conf", environment]
    texts = []
    try:
        changed = max(os.stat(path).st_ctime for path in paths)
        for path in paths:
            with open(path, encoding="utf-8") as file:
                texts.append(file.read())
    except FileNotFoundError as error:
        return {"error": f"{error.filename} is missing"}
    layers = lowers(server)
    if changed >= started(server) or not layers:
        return {"error": "its files were changed after it was started"}
    pairs = [line.partition("=") for line in texts[2].splitlines() if line.startswith("LEFT4ME_")]
    values = {key: value.strip('"') for key, _, value in pairs}
    return values | {"LEFT4ME_GENERATION": generation(*texts), "LOWERS": layers}


def write(server: str, record: dict[str, str]) -> None:
    """Write a record as left4me-overlay does."""
    os.makedirs(layout.RUN, 0o755, exist_ok=True)
    path = layout.started_record(server)
    with open(f"{path}.new", "w", encoding="utf-8", errors="surrogateescape") as file:
        file.writelines(f"{key}={value}\n" for key, value in record.items())
    os.rename(f"{path}.new", path)


def main(words: list[str]) -> None:
    """Make the records, and write them where that is asked for."""
    records = {server: made(server) for server in words if server != "--record"}
    for server, record in records.items() if "--record" in words else ():
        if "error" not in record:
            write(server, record)
        elif os.path.lexists(path := layout.started_record(server)):
            os.unlink(path)  # that of a start before, see gather.py
    print(json.dumps(records))


if __name__ == "__main__":
    main(sys.argv[1:])
