"""Print `l4d2ctl status` of every host of an inventory in one table; with --html, also write it as a page.

If a host does not answer, the reason is printed on standard error and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

from pydantic import TypeAdapter

from left4me import answers, fleet_page, model
from left4me.connection import Command, answer, command, marked, reason
from left4me_host import layout
from left4me_host.commands import print_table
from left4me_host.status import Status, table

LIMIT = 30
"""Seconds per host. ssh waits up to 10 for a connection, l4d2ctl up to 1 for a server."""

ROWS = TypeAdapter(list[Status])
"""A newer l4d2ctl sends more keys; they are ignored."""
WIDEST = 200
"""Characters in a cell of the table: one server must not make it wide for all."""

Run = Callable[[Command, float], "subprocess.CompletedProcess[str]"]
"""Runs a command with a limit in seconds, like answers.run."""


class Unreachable(Exception):
    """A host did not answer; the message is the reason, in one line."""


def ask(name: str, connection: Mapping[str, Any], run: Run = answers.run) -> list[Status] | Unreachable:
    """Return the status of a host's servers, or why the host did not answer."""
    try:
        done = run(command(name, connection, *marked("l4d2ctl", "status", "--json")), LIMIT)
    except subprocess.TimeoutExpired:
        return Unreachable(f"no answer within {LIMIT} s")
    except answers.Wrong as wrong:
        return Unreachable(str(wrong))
    if done.returncode:
        return Unreachable(reason(done.stderr, f"exit {done.returncode}"))
    try:
        rows = answers.read(answer(done.stdout), ROWS, answers.STATUS)
        table(rows)
        for row in rows:
            if not re.fullmatch(layout.SERVER_ID, row.id):
                raise answers.Wrong(f"{row.id!r} is no server id")  # the page shows it in commands
    except (ValueError, OverflowError) as error:  # an absurd number is not printable
        return Unreachable(f"its l4d2ctl printed no valid status: deploy this host ({answers.short(str(error))})")
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m left4me.fleet_status", description=__doc__)
    parser.add_argument("inventory", metavar="INVENTORY", help="the inventory file, as for pyinfra")
    text = "only this host, group or pattern; can be repeated"
    parser.add_argument("--limit", action="append", default=[], metavar="NAME", help=text)
    text = "also write a page for browsers to this file"
    parser.add_argument("--html", metavar="FILE", help=text)
    arguments = parser.parse_args()
    if arguments.html is not None:
        try:
            fleet_page.check(arguments.html)
        except fleet_page.Unwritable as error:
            print(f"refused: {error}", file=sys.stderr)
            return 2
    limits = [f"--limit={limit}" for limit in arguments.limit]
    # In a separate process, since pyinfra's gevent patches the whole interpreter.
    loading = [sys.executable, "-m", "left4me.inventory_export", arguments.inventory, *limits]
    fleet = subprocess.run(loading, stdout=subprocess.PIPE, text=True, check=False)
    if fleet.returncode:
        return fleet.returncode
    described = json.loads(fleet.stdout)
    hosts = {each["name"]: each["connection"] for each in described}
    when = datetime.now().astimezone()
    with ThreadPoolExecutor(32) as pool:
        found_of = dict(zip(hosts, pool.map(ask, hosts, hosts.values()), strict=True))
    lines = [["HOST", *table([])[0]]]
    for name, found in found_of.items():
        if not isinstance(found, Unreachable):
            lines += [[name, *(cell[:WIDEST] for cell in line)] for line in table(found)[1:]]
    print_table(lines)
    sys.stdout.flush()
    for name, found in found_of.items():
        if isinstance(found, Unreachable):
            print(f"{name}: {found}", file=sys.stderr)
    code = 1 if any(isinstance(found, Unreachable) for found in found_of.values()) else 0
    if arguments.html is not None:
        models = {each["name"]: model.Host.model_validate_json(json.dumps(each["declares"])) for each in described}
        shown = [fleet_page.host(name, found, models[name]) for name, found in found_of.items()]
        page = fleet_page.render(shown, arguments.inventory, arguments.limit, when)
        try:
            fleet_page.write(arguments.html, page)
        except fleet_page.Unwritable as error:
            print(error, file=sys.stderr)
            return 1
    return code


if __name__ == "__main__":
    sys.exit(main())
