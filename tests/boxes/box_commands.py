"""The command line of ./box."""

import argparse
import json
import os
import sys
from collections.abc import Sequence

from tests.boxes import boxes as box_module
from tests.boxes import requirements
from tests.boxes.boxes import Box, BoxError, boxes, down, up

_HELP = """\
Debian machines to deploy to and to break: systemd as PID 1, sshd, an address of their own.

  ./box up                      one box, box1, with Debian 13; the first one builds the image
  ./box up a b --debian 12      two more, side by side; what is already up is left alone
  ./box list --json             what there is, for programs
  ./box ssh a uptime            a command as root (without one: a shell); `a-admin` is the user with sudo
  ./box reboot a                as an operator does it
  ./box crash a                 as a power cut does it; `./box start a` brings it back
  ./box down                    removes all of this checkout, and everything they leave on this machine

`pyinfra inventory deploy.py` deploys to the boxes that are up. Keys and disks are in .boxes/, images
in /var/cache/left4me/boxes/ (delete one there to have it built afresh).
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command of ./box and return its exit code: 1 for what went wrong, 2 for bad usage."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "list":
            return _list(options.json)
        requirements.ensure()
        return int(_run(options) or 0)
    except BoxError as error:
        print(f"box: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("box: interrupted; the same command again, or ./box down, cleans up", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace) -> int | None:
    match options.command:
        case "up":
            for one in up(options.name or ["box1"], options.debian):
                print(f"{one.name} is up: Debian {one.debian}, {one.address}")
        case "down":
            down(options.name or None)
        case "ssh":
            return _ssh(options.name, options.words)
        case "start":
            box_module.box(options.name).start()
        case "reboot":
            box_module.box(options.name).reboot()
        case "crash":
            box_module.box(options.name).crash()
    return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="./box", description=_HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    one = commands.add_parser("up", help="have these boxes up (default: box1)")
    one.add_argument("name", nargs="*", metavar="NAME")
    one.add_argument("--debian", type=int, choices=(12, 13), default=13, help="default: 13")
    one = commands.add_parser("list", help="what boxes there are; needs no root")
    one.add_argument("--json", action="store_true", help="name, address, users, key, debian and state")
    one = commands.add_parser("ssh", help="a shell or a command in a box, as root; NAME-admin: as admin")
    one.add_argument("name", metavar="NAME")
    one.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND")
    for command, what in (
        ("reboot", "reboot in good order and wait until it runs again"),
        ("crash", "cut the power: kill PID 1, wait until nothing of the box is alive"),
        ("start", "start a box that is stopped"),
    ):
        commands.add_parser(command, help=what).add_argument("name", metavar="NAME")
    one = commands.add_parser("down", help="remove these boxes (default: all of this checkout)")
    one.add_argument("name", nargs="*", metavar="NAME")
    return parser


def _ssh(host: str, words: list[str]) -> int:
    one = box_module.box(host.removesuffix("-admin") if host.endswith("-admin") else host)
    if one.state != "up":
        raise BoxError(f"{one.name} is stopped; ./box start {one.name}")
    sys.stdout.flush()
    os.execvp("ssh", ["ssh", "-F", str(one.ssh_config), host, *words])


def _list(as_json: bool) -> int:
    there = boxes()
    if as_json:
        print(json.dumps([_facts(one) for one in there], indent=2))
        return 0
    for one in there:
        print(f"{one.name:20} {one.state:8} Debian {one.debian}  {one.address}")
    if not there:
        print("no boxes; ./box up makes one")
    return 0


def _facts(one: Box) -> dict[str, object]:
    return {
        "name": one.name,
        "address": one.address,
        "ssh_user": "root",
        "ssh_admin_user": "admin",
        "ssh_key": str(one.ssh_key),
        "ssh_config": str(one.ssh_config),
        "known_hosts": str(one.known_hosts),
        "debian": one.debian,
        "state": one.state,
    }
