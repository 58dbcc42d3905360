"""Reconstruct the start records of running servers that have none: generation.py [--record] ID…

Prints JSON by id: a record, or only `error` if the unit template, a drop-in or server.env have changed since the
server's start. A server without a record requires a restart. --record also writes the records, as left4me-overlay does.

A generation is the digest of the settings in these files that only a restart applies; comments do not count. The
deploy writes the generation into server.env.
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
        # systemd reads the newest values only at the next start or stop (systemd.service(5)).
        *("ExecCondition", "ExecStartPre", "ExecStop", "ExecStopPost", "Restart", "RestartSec", "SuccessExitStatus"),
        *("RestartForceExitStatus", "RestartPreventExitStatus", "KillSignal", "KillMode", "SendSIGKILL"),
        *("TimeoutSec", "TimeoutStartSec", "TimeoutStopSec"),
        # systemd writes these into the cgroup of a running server (systemd.resource-control(5)).
        *("CPUWeight", "CPUQuota", "IOWeight", "MemoryHigh", "MemoryMax", "MemorySwapMax", "TasksMax"),
    }
)
"""Directives of [Service] that need only a daemon-reload, like all of [Unit] and [Install]."""


def directives(text: str) -> list[str]:
    """Return the directives of a unit file or drop-in that only a restart applies, one line each."""
    found, section, begun = [], "", ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith(("#", ";")):
            continue  # also within a continued line (systemd.syntax(7))
        if line.endswith("\\"):
            begun += line.removesuffix("\\")
            continue
        whole, begun = " ".join(f"{begun}{line}".split()), ""
        if whole.startswith("["):
            section = whole
        elif section == "[Service]" and whole and whole.partition("=")[0].strip() not in LIVE:
            found.append(whole)
    return found


def generation(template: str, drop_ins: str, environment: str) -> str:
    """Return the digest of a unit template, drop-ins one after the other, and a server.env.

    LEFT4ME_GENERATION in server.env does not count.
    """
    lines = [line for line in environment.splitlines() if line[:1] not in ("", "#")]
    values = [line for line in lines if not line.startswith("LEFT4ME_GENERATION=")]
    parts = "\0".join("\n".join(each) for each in (directives(template), directives(drop_ins), values))
    return hashlib.sha256(parts.encode()).hexdigest()[:16]


def started(server: str) -> float:
    """Return when a running server's start began, in seconds since the epoch."""
    show = ["systemctl", "show", "--value", "--property=InactiveExitTimestampMonotonic", layout.unit(server)]
    microseconds = subprocess.run(show, capture_output=True, text=True, check=True).stdout
    return time.time() - time.monotonic() + int(microseconds) / 1e6


def lowers(server: str) -> str:
    """Return the lower layers of a server's overlay, joined by colons; "" unless PID 1 sees exactly one mount."""
    found = [mount for mount in mountinfo.mounts() if mount.point == layout.merged(server)]
    return ":".join(found[0].lowers()) if len(found) == 1 else ""


def reconstructed(server: str) -> dict[str, str]:
    """Return a server's record, built from its files, or only `error`."""
    environment = f"{layout.SERVERS}/{server}/server.env"
    paths = [TEMPLATE, f"{layout.OWN_UNITS}/{layout.unit(server)}.d/limits.conf", environment]
    paths[2:2] = [layout.SANDBOX] if os.path.exists(layout.SANDBOX) else []
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
    pairs = [line.partition("=") for line in texts[-1].splitlines() if line.startswith("LEFT4ME_")]
    values = {key: value.strip('"') for key, _, value in pairs}
    return values | {"LEFT4ME_GENERATION": generation(texts[0], "".join(texts[1:-1]), texts[-1]), "LOWERS": layers}


def write(server: str, record: dict[str, str]) -> None:
    os.makedirs(layout.RUN, 0o755, exist_ok=True)
    path = layout.started_record(server)
    with open(f"{path}.new", "w", encoding="utf-8", errors="surrogateescape") as file:
        file.writelines(f"{key}={value}\n" for key, value in record.items())
    os.rename(f"{path}.new", path)


def main(words: list[str]) -> None:
    records = {server: reconstructed(server) for server in words if server != "--record"}
    for server, record in records.items() if "--record" in words else ():
        if "error" not in record:
            write(server, record)
        elif os.path.lexists(path := layout.started_record(server)):
            os.unlink(path)  # a record of an earlier start, see gather.py
    print(json.dumps(records))


if __name__ == "__main__":
    main(sys.argv[1:])
