"""Print the validated data of each host of an inventory as JSON.

The output is for programs that must not import pyinfra, which patches the whole interpreter (gevent). With --show, the
output is for people. INVENTORY, --limit and --exclude work as in pyinfra. Mistakes in the data are refused as in a
deploy: a line for each mistake, exit code 2.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
from pathlib import Path
from typing import Any

from pyinfra.api.config import Config
from pyinfra.api.host import Host as PyinfraHost
from pyinfra.api.state import State
from pyinfra.context import ctx_config, ctx_inventory, ctx_state
from pyinfra_cli import cli

from left4me import model, pyinfra_hooks

HIDDEN = "**********"  # as pydantic shows a secret


def _described(host: PyinfraHost) -> dict[str, Any]:
    data = host.data.dict()
    return {
        "name": host.name,
        "groups": list(host.groups),
        # pyinfra puts @local into a group with the same name.
        "called_as_a_group": host.inventory.groups.get(host.name, [host]) != [host],
        "connection": {key: data[key] for key in model.Connection.__annotations__ if data.get(key) is not None},
        "declares": pyinfra_hooks.MODELS[host.name].model_dump(mode="json"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m left4me.inventory_export", description=__doc__)
    parser.add_argument("inventory", metavar="INVENTORY", help="the inventory file, as for pyinfra")
    for option, which in (("--limit", "only this"), ("--exclude", "not this")):
        text = f"{which} host, group or pattern; can be repeated"
        parser.add_argument(option, action="append", default=[], metavar="NAME", help=text)
    parser.add_argument("--show", action="store_true", help="show all values with defaults; hide secrets")
    arguments = parser.parse_args()
    if not arguments.show and sys.stdout.isatty():
        parser.error("the output has passwords and is for programs: add --show")
    # pyinfra sets these before it runs an inventory file, which may use them.
    state = State()
    state.cwd = str(Path.cwd())
    ctx_state.set(state)
    ctx_config.set(Config())
    with contextlib.redirect_stdout(sys.stderr):  # an inventory and its data may print
        inventory = pyinfra_hooks.load_inventory(
            cli.make_inventory,  # type: ignore[attr-defined]
            arguments.inventory,
            cwd=state.cwd,
        )
        ctx_inventory.set(inventory)
        limit = cli._apply_inventory_limit(inventory, arguments.limit)
        limit = cli._apply_inventory_exclude(inventory, limit, arguments.exclude)
        pyinfra_hooks.check_hosts(inventory, limit)
    patterns = [("--limit", each) for each in arguments.limit] + [("--exclude", each) for each in arguments.exclude]
    # pyinfra only warns of a pattern that matches nothing.
    if unknown := [each for each in patterns if not cli._get_inventory_pattern_matches(inventory, each[1:], each[0])]:
        pyinfra_hooks._refuse(f"{option} {name}: the inventory has no such host or group" for option, name in unknown)
    selected = [host for host in inventory if limit is None or host in limit]
    described = [_described(host) for host in selected]
    if arguments.show:
        shown = {each["name"]: each["declares"] for each in described}
        for declares in shown.values():
            declares["webhook"] = declares["webhook"] and HIDDEN  # anyone who knows the URL can post to it
            for server in declares["servers"].values():
                server["cvars"] |= {name: HIDDEN for name in server["cvars"] if model.is_secret(name)}
        text = json.dumps(shown, indent=2, ensure_ascii=False)
        print(re.sub(r"(://[^\s\"?]*\?)[^\s\"]+", rf"\1{HIDDEN}", text))  # a URL's query may contain secrets
    else:
        print(json.dumps(described, default=str))


if __name__ == "__main__":
    main()
