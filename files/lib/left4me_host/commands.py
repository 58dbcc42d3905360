"""l4d2ctl's command line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

from left4me_host import instance, layout, version

# What a command waits for first is the import of what it uses: json and typing are for few of them, or for none.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

_EPILOG = """\
examples:
  l4d2ctl status                 every server: state, players, what a change of its data waits for
  l4d2ctl stop 3                 stop server 3; no deploy and no reboot brings it back
  l4d2ctl start 3                start it again
  l4d2ctl reset 3                server 3 as new; its files are put aside
  l4d2ctl reset --undo 3         bring back what the latest reset put aside; once more: the one before
  l4d2ctl attic 3                what was put aside of server 3; reset --undo WHEN 3 brings one of these back
  l4d2ctl rcon 3 changelevel c2m1_highway
  l4d2ctl holders --watch 3      who keeps its overlay busy, while it stops
  l4d2ctl game update            bring and try Steam's newest build; running servers keep theirs
  l4d2ctl game rollback          back to the build before, without a download
  l4d2ctl doctor --fix           find what is wrong on this host, mend what is safe

exit codes: 0 done, 1 failed, 2 wrong command line, 130 interrupted
"""


Run = Callable[[argparse.Namespace], None]


class _Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        # argparse makes one for each argument, and to learn the width it would import shutil.
        columns = os.environ.get("COLUMNS", "")
        super().__init__(prog, width=int(columns) if columns.isdecimal() else 100)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise instance.Usage(f"{message}; {self.prog} --help tells more")


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of lines")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="l4d2ctl",
        description="Left 4 Dead 2 servers on this host: what runs, and to run it.",
        epilog=_EPILOG,
        formatter_class=_Help,
    )
    parser.add_argument("--version", action="version", version=f"{parser.prog} {version()}")
    # With prog argparse needs no formatter, which costs more imports than all of the rest.
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, prog=parser.prog)

    def add(name: str, run: Run, text: str, ids: bool = True) -> argparse.ArgumentParser:
        about = text[0].upper() + text[1:] + "."
        command = commands.add_parser(name, help=text, description=about, formatter_class=_Help)
        command.set_defaults(run=run)
        if ids:
            command.add_argument("ids", metavar="ID", nargs="*", help="a server's id: what follows the @ of its unit")
            command.add_argument("--all", action="store_true", help="every declared server")
        return command

    status = add("status", _status, "show each server: state, players, memory, what a change waits for")
    status.add_argument("--json", action="store_true", help="for programs")
    add("start", _run, "start servers, also those that were stopped by hand")
    add("stop", _run, "stop servers for good: neither a deploy nor a reboot starts them, only `l4d2ctl start` does")
    restart = add("restart", _restart, "stop servers and start them again")
    restart.add_argument(
        "--unless-stopped", action="store_true", help="leave alone what does not run, or is stopped by hand meanwhile"
    )
    reset = add("reset", _reset, "make servers as new: put what they wrote into the attic; start again those that ran")
    reset.add_argument(
        "--undo",
        metavar="WHEN",
        nargs="?",
        const="",
        help="bring back what the latest reset put aside that is not back yet, or that of a time as `attic` lists it",
    )
    attic = add("attic", _attic, "list what resets, undos and removals put aside, the latest first")
    attic.add_argument("--json", action="store_true", help="for programs")
    holders = add("holders", _holders, "show every process that holds a server's overlay, and how")
    holders.add_argument("--json", action="store_true", help="for programs")
    holders.add_argument("--watch", action="store_true", help="follow it until the overlay is gone (Ctrl-C ends it)")
    rcon = add("rcon", _rcon, "execute a command on a server's console and show what it says", ids=False)
    rcon.add_argument("ids", metavar="ID", nargs=1, help="a server's id")
    rcon.add_argument("words", metavar="COMMAND", nargs=argparse.REMAINDER, help="the command, whatever it begins with")
    rcon.set_defaults(all=False)
    logs = add("logs", _logs, "show a server's journal, without a pager")
    logs.add_argument("-f", "--follow", action="store_true", help="go on as it is written")
    logs.add_argument("-n", "--lines", type=_count, default=50, metavar="N", help="the last N lines (default 50)")
    game = add("game", _game, "show the builds of the game, bring a new one from Steam, go back to another", ids=False)
    acts = game.add_subparsers(dest="act", metavar="status|update|rollback", required=True, prog=f"{parser.prog} game")
    builds = acts.add_parser("status", help="the builds on this host, and who runs on which", formatter_class=_Help)
    builds.add_argument("--json", action="store_true", help="for programs")
    update = acts.add_parser(
        "update", help="bring Steam's build and make it current if its trial is good", formatter_class=_Help
    )
    update.add_argument("--check", action="store_true", help="only tell whether there is a new one")
    back = acts.add_parser(
        "rollback", help="make another build current: the latest good one, or BUILD", formatter_class=_Help
    )
    back.add_argument("build", metavar="BUILD", nargs="?", help="as game status names it")
    doctor = add("doctor", _doctor, "find what is wrong here: mounts, layers, leftovers, units, owners", ids=False)
    doctor.add_argument("--fix", action="store_true", help="mend what is safe to mend with no running server touched")
    doctor.add_argument("--json", action="store_true", help="for programs")
    return parser


def _selected(arguments: argparse.Namespace) -> list[str]:
    """Return the ids that a command is for; `status` alone is for all without saying so."""
    every = instance.declared()
    if arguments.all or (not arguments.ids and arguments.command == "status"):
        if arguments.ids:
            raise instance.Usage("either ids or --all")
        return every
    if not arguments.ids:
        raise instance.Usage(
            f"{arguments.command} which server? name ids, or --all. Declared: {', '.join(every) or 'none'}"
        )
    # One that is no longer declared can still be read, and where it is there still be stopped and looked at: like a
    # trial of the game.
    looks = arguments.command in ("stop", "logs", "holders")
    for server in arguments.ids:
        if not instance.ID.fullmatch(server) and not (looks and server in instance.instances()):
            raise instance.Usage(f"{server!r} is no server's id: {instance.ID.pattern}")
        there = arguments.command == "logs" or os.path.isdir(layout.runtime(server))
        if server not in every and not (there and looks):
            raise instance.Usage(
                f"server {server} is not declared on this host; declared: {', '.join(every) or 'none'}"
            )
    return list(dict.fromkeys(arguments.ids))


def print_json(value: object) -> None:
    """Print what --json asks for, dataclasses too."""
    import json

    print(json.dumps(value, indent=2, default=vars))


def print_table(lines: list[list[str]]) -> None:
    """Print aligned columns on a terminal, and columns with tabs between in a pipe."""
    lines = [list(map(instance.plain, line)) for line in lines]
    if not sys.stdout.isatty():
        for line in lines:
            print("\t".join(line))
        return
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _status(arguments: argparse.Namespace) -> None:
    from left4me_host import status

    rows = status.status(_selected(arguments))
    if arguments.json:
        print_json(rows)
    else:
        print_table(status.table(rows))
        if sys.stdout.isatty():
            print("revision {}, deployed {}".format(*status.revision()))


def _run(arguments: argparse.Namespace) -> None:
    from left4me_host import lifecycle

    getattr(lifecycle, arguments.command)(_selected(arguments))


def _restart(arguments: argparse.Namespace) -> None:
    from left4me_host import lifecycle

    lifecycle.restart(_selected(arguments), arguments.unless_stopped)


def _reset(arguments: argparse.Namespace) -> None:
    from left4me_host import reset

    if arguments.undo and "T" not in arguments.undo:
        # argparse takes the word after --undo for its WHEN. No id of a server has a capital letter, each time has one.
        arguments.ids.insert(0, arguments.undo)
        arguments.undo = ""
    failures = []
    for server in _selected(arguments):
        try:
            times = reset.reset(server, arguments.undo)
        except (instance.Failed, OSError) as failed:
            failures.append(str(failed))
            continue
        steps = ", ".join(f"{step} {seconds:.2f} s" for step, seconds in times.items())
        print(f"server {server}: {steps}; {sum(times.values()):.2f} s in all")
    if failures:
        raise instance.Failed("\n".join(failures))


def _attic(arguments: argparse.Namespace) -> None:
    from left4me_host import attic

    # What a removed server wrote is there for when it is declared again: that one can be named too.
    rows = attic.rows()
    if not arguments.all and arguments.ids:
        known = {*instance.declared(), *(row["id"] for row in rows)}
        if unknown := [server for server in arguments.ids if server not in known]:
            raise instance.Usage(f"server {unknown[0]} is not declared on this host, and nothing of it is in the attic")
        rows = [row for row in rows if row["id"] in arguments.ids]
    if arguments.json:
        print_json(rows)
    else:
        print_table(attic.table(rows))


def _holders(arguments: argparse.Namespace) -> None:
    from left4me_host import holders

    servers = _selected(arguments)
    if arguments.watch:
        if len(servers) != 1 or arguments.json:
            raise instance.Usage("holders --watch follows one server, as text")
        _watch(servers[0])
        return
    found = {server: holders.holders(server) for server in servers}
    if arguments.json:
        print_json({server: [each._asdict() for each in held] for server, held in found.items()})
        return
    lines = [[server, str(h.pid), h.command, h.kind, h.path] for server, each in found.items() for h in each]
    print_table([["ID", "PID", "COMMAND", "BY", "PATH"], *lines])


def _watch(server: str) -> None:
    import time

    from left4me_host import holders

    seen: set[holders.Holder] = set()
    before, now = None, (True, [(0, "")])
    begin = time.monotonic()
    try:
        while now != (False, []):
            mounted, found = instance.mounted(server), holders.holders(server)
            seen.update(found)
            now = (mounted, [(each.pid, each.kind) for each in found])
            if now != before:
                names = instance.plain(", ".join(sorted({f"{each.pid}({each.command})" for each in found})))
                at = f"[t={time.monotonic() - begin:6.2f}]"
                print(f"{at} mounted={'Y' if mounted else 'N'} holders=[{names}]", flush=True)
                before = now
            time.sleep(0.02)  # /proc has nothing to wait on
    except KeyboardInterrupt:
        print()
    print(f"seen in total: {len({each.pid for each in seen})} processes")
    print_table([["PID", "COMMAND", "BY", "PATH"], *([str(h.pid), h.command, h.kind, h.path] for h in sorted(seen))])


def _rcon(arguments: argparse.Namespace) -> None:
    from left4me_host import rcon

    [server] = _selected(arguments)
    words = arguments.words[1:] if arguments.words[:1] == ["--"] else arguments.words
    if not words:
        raise instance.Usage(f"rcon: what shall server {server} execute?")
    for line in rcon.rcon(server, " ".join(words)).splitlines():
        print(instance.plain(line))


def _logs(arguments: argparse.Namespace) -> None:
    units = [f"--unit={layout.unit(server)}" for server in _selected(arguments) or ["*"]]
    follow = ["--follow"] if arguments.follow else []
    os.execvp("journalctl", ["journalctl", "--no-pager", *units, f"--lines={arguments.lines}", *follow])


def _game(arguments: argparse.Namespace) -> None:
    from left4me_host import game

    if arguments.act == "status":
        rows = game.status()
        if arguments.json:
            print_json(rows)
        elif rows:
            print_table(game.table(rows))
        else:
            print("no build")
        if line := game.update_state():
            print(line, file=sys.stderr if arguments.json else sys.stdout)
    elif arguments.act == "rollback":
        if arguments.build is not None and not game.is_name(arguments.build):
            raise instance.Usage(f"{arguments.build!r} is no name of a build: see l4d2ctl game status")
        build = game.rollback(arguments.build)
        print(f"build {build} is current; running servers keep theirs until they are restarted")
    elif arguments.check:
        here, there = game.check()
        print(
            f"build {here} is current here, and Steam's" if here == there else f"current here: {here}; Steam's: {there}"
        )
    else:
        game.update()


def _doctor(arguments: argparse.Namespace) -> None:
    from left4me_host import doctor

    left = [(finding, doctor.mended(finding) if arguments.fix else None) for finding in doctor.examine()]
    if arguments.json:
        rows = [{"server": f.server, "what": f.what, "do": f.do, "done": done} for f, done in left]
        print_json(rows)
    else:
        for finding, done in left:
            where = f"server {finding.server}: " if finding.server else ""
            print(f"{where}{finding.what}: {done or finding.do}")
        if not left:
            print("nothing found")
    if any(done is None for _finding, done in left):
        raise instance.Failed("")


def main(words: list[str]) -> int:
    """Do what the command line says and return the exit code."""
    try:
        arguments = _parser().parse_args(words)
        if os.geteuid() != 0:
            raise instance.Failed("needs root: sudo l4d2ctl, as a member of the operators' group")
        try:
            arguments.run(arguments)
        finally:
            sys.stdout.flush()  # here, where a pipe that nobody reads any more is an error like another
    except instance.Usage as error:
        print(f"l4d2ctl: {error}", file=sys.stderr)
        return 2
    except (instance.Failed, OSError) as error:
        if str(error):
            print(f"l4d2ctl: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("l4d2ctl: interrupted; the same command again finishes it", file=sys.stderr)
        return 130
    return 0
