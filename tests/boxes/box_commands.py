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
Start Debian machines to deploy to and to break. Each has systemd, sshd and its own address.

  ./box up                      start box1 with Debian 13; the first run builds the image
  ./box up a b --debian 12      start two more boxes; running boxes are not changed
  ./box up v --vm               start a full machine with Debian's own kernel; a power cut loses what is not synced
  ./box list --json             list the boxes as JSON
  ./box ssh a uptime            run a command as root (default: a shell);
                                `a-admin`: log in as admin, who has sudo
  ./box reboot a                reboot cleanly
  ./box crash a                 cut the power; `./box start a` boots it again
  ./box down                    remove all boxes of this checkout from this machine

`pyinfra inventory deploy.py` deploys to the boxes that are up. Keys and disks are in .boxes/. Images are
in /var/cache/left4me/boxes/: delete an image to rebuild it.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command of ./box and return its exit code: 1 after an error, 2 for bad usage."""
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
        print("box: interrupted; to clean up, run the same command again or ./box down", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace) -> int | None:
    match options.command:
        case "up":
            for one in up(options.name or ["box1"], options.debian, is_vm=options.vm):
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
    one = commands.add_parser("up", help="create or start boxes (default: box1)")
    one.add_argument("name", nargs="*", metavar="NAME")
    one.add_argument("--debian", type=int, choices=(12, 13), default=13, help="default: 13")
    one.add_argument("--vm", action="store_true", help="full machines with Debian's own kernel (slow without KVM)")
    one = commands.add_parser("list", help="list the boxes, also without root")
    one.add_argument("--json", action="store_true", help="print name, address, users, key, debian and state as JSON")
    one = commands.add_parser("ssh", help="open a shell or run a command as root; NAME-admin: log in as admin")
    one.add_argument("name", metavar="NAME")
    one.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND")
    for command, text in (
        ("reboot", "reboot cleanly and wait until the box is up again"),
        ("crash", "cut the power: kill PID 1 and wait until all processes of the box have ended"),
        ("start", "start a stopped box"),
    ):
        commands.add_parser(command, help=text).add_argument("name", metavar="NAME")
    one = commands.add_parser("down", help="remove boxes (default: all of this checkout)")
    one.add_argument("name", nargs="*", metavar="NAME")
    return parser


def _ssh(host: str, words: list[str]) -> int:
    one = box_module.box(host.removesuffix("-admin") if host.endswith("-admin") else host)
    if one.state != "up":
        raise BoxError(f"{one.name} is stopped; start it with ./box start {one.name}")
    sys.stdout.flush()
    os.execvp("ssh", ["ssh", "-F", str(one.ssh_config), host, *words])


def _list(as_json: bool) -> int:
    found = boxes()
    if as_json:
        print(json.dumps([_facts(one) for one in found], indent=2))
        return 0
    for one in found:
        print(f"{one.name:20} {one.state:8} Debian {one.debian}  {one.address}{'  vm' if one.is_vm else ''}")
    if not found:
        print("no boxes; create one with ./box up")
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
        "vm": one.is_vm,
        "state": one.state,
    }
