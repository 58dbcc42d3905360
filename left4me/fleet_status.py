"""Print `l4d2ctl status` of every host of an inventory in one table.

If a host does not answer, the reason is printed on standard error and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from typing import Any

from left4me.connection import Command, answer, command, marked, reason
from left4me_host.commands import print_table
from left4me_host.status import Status, table

LIMIT = 30
"""Seconds per host. ssh waits up to 10 for a connection, l4d2ctl up to 1 for a server."""

Run = Callable[[Command, float], "subprocess.CompletedProcess[str]"]
"""Runs a command with a limit in seconds, like subprocess.run."""


class Unreachable(Exception):
    """A host did not answer; the message is the reason, in one line."""


def _run(command: Command, limit: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command.words,
        env=command.full_environment,
        input=command.stdin,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=limit,
        check=False,
    )


def ask(name: str, connection: Mapping[str, Any], run: Run = _run) -> list[Status] | Unreachable:
    """Return the status of a host's servers, or why the host did not answer."""
    try:
        done = run(command(name, connection, *marked("l4d2ctl", "status", "--json")), LIMIT)
    except subprocess.TimeoutExpired:
        return Unreachable(f"no answer within {LIMIT} s")
    if done.returncode:
        return Unreachable(reason(done.stderr, f"exit {done.returncode}"))
    try:
        known = {each.name for each in fields(Status)}  # a newer l4d2ctl sends more keys
        rows = json.loads(answer(done.stdout))
        return [Status(**{key: row[key] for key in row if key in known}) for row in rows]
    except ValueError:
        return Unreachable("its l4d2ctl printed no valid status: deploy this host")
    except TypeError:
        return Unreachable("its l4d2ctl is older than this checkout: deploy this host")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m left4me.fleet_status", description=__doc__)
    parser.add_argument("inventory", metavar="INVENTORY", help="the inventory file, as for pyinfra")
    text = "only this host, group or pattern; can be repeated"
    parser.add_argument("--limit", action="append", default=[], metavar="NAME", help=text)
    arguments = parser.parse_args()
    limits = [f"--limit={limit}" for limit in arguments.limit]
    # In a separate process, since pyinfra's gevent patches the whole interpreter.
    loading = [sys.executable, "-m", "left4me.inventory_export", arguments.inventory, *limits]
    fleet = subprocess.run(loading, stdout=subprocess.PIPE, text=True, check=False)
    if fleet.returncode:
        return fleet.returncode
    hosts = {each["name"]: each["connection"] for each in json.loads(fleet.stdout)}
    with ThreadPoolExecutor(32) as pool:
        answers = dict(zip(hosts, pool.map(ask, hosts, hosts.values()), strict=True))
    lines = [["HOST", *table([])[0]]]
    for name, found in answers.items():
        if not isinstance(found, Unreachable):
            lines += [[name, *line] for line in table(found)[1:]]
    print_table(lines)
    sys.stdout.flush()
    for name, found in answers.items():
        if isinstance(found, Unreachable):
            print(f"{name}: {found}", file=sys.stderr)
    return 1 if any(isinstance(found, Unreachable) for found in answers.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
