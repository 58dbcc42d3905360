"""l4d2ctl's command line."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from left4me_host import VERSION, attic, instance, jobs, layout, lifecycle, reset, server_lock

# Imports are most of a command's run time: the functions import what a reset does not need, and nothing imports typing.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    _Commands = argparse._SubParsersAction["_Parser"]

_EPILOG = """\
examples:
  l4d2ctl status                 show all servers
  l4d2ctl stop 3                 stop server 3; it stays down over deploys and reboots
  l4d2ctl start 3                start server 3 again
  l4d2ctl restart --all          restart all servers
  l4d2ctl restart --when-empty 3 restart server 3 once nobody has played for a minute
  l4d2ctl reset 3                move to the attic what server 3 wrote; restart it if it ran
  l4d2ctl reset --undo 3         undo the latest reset; repeat for earlier ones
  l4d2ctl attic 3                list what server 3 has in the attic
  l4d2ctl jobs                   list who changed what, and how it ended
  l4d2ctl show 3                 show all about server 3
  l4d2ctl rcon 3 changelevel c2m1_highway
  l4d2ctl holders --watch 3      watch which processes keep the overlay busy while server 3 stops
  l4d2ctl logs -f 3              follow the log of server 3
  l4d2ctl game update            install Steam's newest build; servers use it after a restart
  l4d2ctl game rollback          make the previous good build current, without a download
  l4d2ctl doctor --fix           find problems on this host and fix those that are safe to fix

l4d2ctl COMMAND --help explains a command.
exit codes: 0 done, 1 failed, 2 wrong command line, 3 another command is changing the server, 130 interrupted
"""

IDS, DEFAULT_ALL = "server ids, or --all", "server ids (default: all)"
LONGEST_ORIGIN = 200
Run = Callable[[argparse.Namespace], None]


# Without a width argparse imports shutil.
_Help = partial(argparse.RawDescriptionHelpFormatter, width=100)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise instance.Usage(f"{message}; see {self.prog} --help")


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of lines")
    return int(text)


def _number(text: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"{text!r} is not the number of a job")
    return int(text)


def _origin(text: str) -> str:
    if not 0 < len(text) <= LONGEST_ORIGIN or not text.isprintable() or not text.strip():
        raise argparse.ArgumentTypeError(f"is a line of 1 to {LONGEST_ORIGIN} printable characters")
    return text


def _typed(words: list[str]) -> list[str]:
    """Return a command line without --origin, the only option with a value before the command."""
    at = 0
    while words[at].startswith("-"):
        at += 2 if words[at].startswith("--o") and "=" not in words[at] else 1
    return words[at:]


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="l4d2ctl",
        description="Show and operate the Left 4 Dead 2 servers on this host.",
        epilog=_EPILOG,
        formatter_class=_Help,
    )
    text = "why this command runs, for the record of its job; only for commands that change something"
    parser.add_argument("--origin", type=_origin, metavar="TEXT", help=text)
    parser.add_argument("--version", action="store_true", help="show the version and the deployed revision")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_for_servers(partial(_add, commands))
    _add_for_host(partial(_add, commands))
    return parser


def _add(commands: _Commands, name: str, run: Run, text: str, *, ids: str = IDS, examples: str = "") -> _Parser:
    """Add a command that takes server ids if `ids` has their help; `text` is its description."""
    about = text[0].upper() + text[1:] + "."
    shown = f"examples:\n{examples}" if examples else None
    command = commands.add_parser(name, help=text, description=about, epilog=shown, formatter_class=_Help)
    command.set_defaults(run=run)
    if ids:
        command.add_argument("ids", metavar="ID", nargs="*", help=ids)
        command.add_argument(
            "--all", action="store_true", help="all declared servers" if ids == IDS else "the same as no ID"
        )
    return command


def _add_for_servers(add: Callable[..., _Parser]) -> None:
    text = "show servers: state, players, build, layers, and whether a restart is required"
    status = add("status", _status, text, ids=DEFAULT_ALL)
    status.add_argument("--json", action="store_true", help="print JSON")
    text = "with --json: print the servers, jobs and builds in one line, and again at each change"
    status.add_argument("--follow", action="store_true", help=text)
    text = "show all about a server: address, players, layers, limits, attic, declared files"
    show = add("show", _show, text, ids="")
    show.add_argument("ids", metavar="ID", nargs=1, help="a server id, such as 3")
    show.add_argument("--json", action="store_true", help="print JSON")
    show.set_defaults(all=False)
    add("start", _start, "start servers, including those stopped by hand")
    add("stop", _stop, "stop servers; they stay down over deploys and reboots until `l4d2ctl start`")
    restart = add("restart", _restart, "stop servers and start them again")
    text = "skip servers that are not running; a server that someone stops during the restart stays down"
    how = restart.add_mutually_exclusive_group()
    how.add_argument("--unless-stopped", action="store_true", help=text)
    text = "wait until a server has had no players for a minute; like --unless-stopped then. Any stop, start, restart "
    text += "or reset of the server cancels it"
    how.add_argument("--when-empty", action="store_true", help=text)
    command = add(
        "reset",
        _reset,
        "move to the attic what servers wrote, and restart the servers that ran",
        examples="""\
  l4d2ctl reset 3                         reset server 3
  l4d2ctl reset --undo 3                  undo the latest reset of server 3
  l4d2ctl reset --undo 20261128T1503 3    bring back what was moved away then (see l4d2ctl attic 3)
""",
    )
    command.add_argument(
        "--undo",
        metavar="WHEN",
        nargs="?",
        const="",
        help="undo the latest reset; with WHEN, a time that `l4d2ctl attic` lists, bring back what was moved away then",
    )
    text = "list what is in the attic, from resets, undos and removed servers, latest first"
    command = add("attic", _attic, text, ids=DEFAULT_ALL)
    command.add_argument("--json", action="store_true", help="print JSON")
    holders = add(
        "holders", _holders, "list the processes that keep a server's overlay busy, and what each of them holds"
    )
    holders.add_argument("--json", action="store_true", help="print JSON")
    holders.add_argument("--watch", action="store_true", help="repeat until the overlay is released (Ctrl-C to stop)")
    rcon = add(
        "rcon",
        _rcon,
        "execute a command on a server's console and show its output",
        ids="",
        examples="  l4d2ctl rcon 3 status\n  l4d2ctl rcon 3 changelevel c2m1_highway\n",
    )
    rcon.add_argument("ids", metavar="ID", nargs=1, help="a server id, such as 3")
    rcon.add_argument("words", metavar="COMMAND", nargs=argparse.REMAINDER, help="the console command")
    rcon.set_defaults(all=False)
    logs = add("logs", _logs, "show a server's journal, without a pager")
    logs.add_argument("-f", "--follow", action="store_true", help="show new lines as they arrive")
    logs.add_argument("-n", "--lines", type=_count, default=50, metavar="N", help="the last N lines (default 50)")


def _add_for_host(add: Callable[..., _Parser]) -> None:
    listed = add(
        "jobs",
        _jobs,
        "list the jobs, which are all commands that changed something, latest first; or show one",
        ids="",
        examples="""\
  l4d2ctl jobs           the latest jobs: who did what, and how it ended
  l4d2ctl jobs 164       job 164 and its output
  l4d2ctl jobs -f 164    follow job 164 until it ends; exit 0 if it succeeds
""",
    )
    listed.add_argument("number", metavar="N", nargs="?", type=_number, help="the number of a job")
    listed.add_argument("-f", "--follow", action="store_true", help="show the output of job N until it ends")
    listed.add_argument("--json", action="store_true", help="print JSON")
    game = add("game", _game, "list the game's builds, install a new build from Steam, roll back", ids="")
    acts = game.add_subparsers(dest="act", metavar="status|update|rollback", required=True)
    builds = _add(acts, "status", _game, "list the builds on this host and their servers", ids="")
    builds.add_argument("--json", action="store_true", help="print JSON")
    text = "download Steam's newest build and make it current if its smoke test passes"
    update = _add(acts, "update", _game, text, ids="")
    update.add_argument("--check", action="store_true", help="only show the current build and Steam's newest")
    text = "make BUILD current (default: the previous good build)"
    back = _add(acts, "rollback", _game, text, ids="")
    back.add_argument("build", metavar="BUILD", nargs="?", help="a build that `l4d2ctl game status` lists")
    doctor = add("doctor", _doctor, "find problems on this host: mounts, layers, leftovers, units, owners", ids="")
    doctor.add_argument("--fix", action="store_true", help="fix what is safe to fix; never touches a running server")
    doctor.add_argument("--json", action="store_true", help="print JSON")


def _selected(arguments: argparse.Namespace) -> list[str]:
    """Return the server ids of a command line; for `status` without ids, all. Raises Usage."""
    declared = instance.declared()
    shown = f"declared: {', '.join(declared) or 'none'}"
    if arguments.all or (not arguments.ids and arguments.command == "status"):
        if arguments.ids:
            raise instance.Usage("name server ids or use --all, not both")
        return declared
    if not arguments.ids:
        raise instance.Usage(f"{arguments.command} needs server ids or --all; {shown}")
    # These commands also accept servers that are no longer declared, and the instances of smoke tests.
    lenient = arguments.command in ("stop", "logs", "holders")
    for server in arguments.ids:
        if not instance.ID.fullmatch(server) and not (lenient and server in instance.instances()):
            raise instance.Usage(f"{server!r} is not a server id; an id matches {instance.ID.pattern}")
        exists = arguments.command == "logs" or os.path.isdir(layout.runtime(server))
        if server not in declared and not (exists and lenient):
            raise instance.Usage(f"server {server} is not declared on this host; {shown}")
    return list(dict.fromkeys(arguments.ids))


def print_json(value: object) -> None:
    import json

    print(json.dumps(value, indent=2, default=vars))


def print_table(lines: list[list[str]]) -> None:
    """Print aligned columns on a terminal, tab-separated ones into a pipe."""
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

    if arguments.follow:
        if not arguments.json:
            raise instance.Usage("status --follow needs --json; for people: watch l4d2ctl status")
        from left4me_host import status_stream

        status_stream.stream(partial(_selected, arguments))
        return
    rows = status.status(_selected(arguments))
    if arguments.json:
        print_json(rows)
    else:
        print_table(status.table(rows))
        if sys.stdout.isatty():
            print("revision {}, deployed {}".format(*status.revision()))


def _show(arguments: argparse.Namespace) -> None:
    from left4me_host import show

    [server] = _selected(arguments)
    found = show.about(server)
    if arguments.json:
        print_json(found)
    else:
        for heading, text in show.sheet(found):
            print(f"{heading:9}{instance.plain(text)}")


@contextmanager
def _change(arguments: argparse.Namespace, servers: list[str], verb: str = "") -> Iterator[jobs.Job]:
    """Run a command that changes servers as a job. Raises Failed if another command changes one of them."""
    with server_lock.held(servers) as lock, _job(arguments, servers, verb) as job:
        lock.note(job.number, job.about)
        _cancel_waiting(servers, job)
        yield job


def _cancel_waiting(servers: list[str], job: jobs.Job) -> None:
    """Cancel the jobs that wait to restart the servers when empty."""
    if any(os.path.exists(layout.waiting_marker(server)) for server in servers):
        from left4me_host import when_empty

        when_empty.cancel(servers, f"job {job.number} ({job.about})")


@contextmanager
def _job(arguments: argparse.Namespace, servers: list[str], verb: str = "") -> Iterator[jobs.Job]:
    """Run a command as a job that ends even if its terminal, its SSH connection or its browser goes."""
    jobs.outlive()
    with jobs.recorded(_new_job(arguments, servers, verb)) as job:
        yield job


def _new_job(arguments: argparse.Namespace, servers: list[str], verb: str = "") -> jobs.Job:
    return jobs.Job(verb or arguments.command, servers, " ".join(arguments.typed), origin=arguments.origin or "")


def _in_unit(arguments: argparse.Namespace, servers: list[str], verb: str, act: Callable[[jobs.Job], None]) -> None:
    """Run a long command as a job in a unit of its own, and follow it; in the unit, run it."""
    number = os.environ.pop(layout.JOB, None)
    if number is None:
        from left4me_host import job_unit

        job_unit.run(_new_job(arguments, servers, verb), arguments.typed, getattr(arguments, "json", False))
        return
    jobs.outlive()
    job = jobs.Job.take_over(int(number), verb) if number.isdecimal() else None
    job = job or _new_job(arguments, servers, verb)
    job.json, job.warns = getattr(arguments, "json", False), number != "0"
    with jobs.recorded(job):
        act(job)


def _start(arguments: argparse.Namespace) -> None:
    servers = _selected(arguments)
    with _change(arguments, servers), jobs.timed("start"):
        lifecycle.start(servers)


def _stop(arguments: argparse.Namespace) -> None:
    servers = _selected(arguments)
    with _job(arguments, servers) as job:
        lifecycle.hold(servers)  # first: whatever is about to start them sees it
        _cancel_waiting(servers, job)
        failures = []
        for locked in server_lock.awaited(servers, job.number, job.about):
            try:
                with jobs.timed("stop"):
                    lifecycle.stop(locked)  # which holds them again, for a `start` may have ended meanwhile
            except instance.Failed as failed:
                failures.append(str(failed))
        if failures:
            raise instance.Failed("\n".join(failures))


def _restart(arguments: argparse.Namespace) -> None:
    servers = _selected(arguments)
    if arguments.when_empty:
        from left4me_host import when_empty

        if layout.JOB not in os.environ:
            when_empty.require_none(servers)
        _in_unit(arguments, servers, "restart", partial(when_empty.run, servers))
        return
    with _change(arguments, servers):
        lifecycle.restart(servers, arguments.unless_stopped)


def _reset(arguments: argparse.Namespace) -> None:
    if arguments.undo and "T" not in arguments.undo:
        # argparse took an ID as WHEN. A time contains a "T"; a server id has no capital letters.
        arguments.ids.insert(0, arguments.undo)
        arguments.undo = ""
    servers, failures = _selected(arguments), []
    with _change(arguments, servers, "reset" if arguments.undo is None else "undo"):
        for server in servers:
            try:
                times = reset.reset(server, arguments.undo)
            except (instance.Failed, OSError) as failed:
                failures.append(str(failed))
                continue
            steps = ", ".join(f"{step} {seconds:.2f} s" for step, seconds in times.items())
            print(f"server {server}: {steps}; {sum(times.values()):.2f} s in all")
        if failures:
            raise instance.Failed("\n".join(failures))


def _jobs(arguments: argparse.Namespace) -> None:
    from left4me_host import job_output

    if arguments.follow and (arguments.number is None or arguments.json):
        raise instance.Usage("jobs -f takes the number of a job and no --json")
    if arguments.number is None:
        if arguments.json:
            print_json(jobs.listed(jobs.latest()))
        else:
            print_table(job_output.table(jobs.listed(jobs.latest(job_output.SHOWN))))
        return
    if (job := jobs.read(arguments.number)) is None:
        raise instance.Failed(f"there is no job {arguments.number}; see l4d2ctl jobs")
    if arguments.json:
        print_json(job)
    elif arguments.follow:
        job_output.follow(arguments.number)
    else:
        job_output.show(job)


def _attic(arguments: argparse.Namespace) -> None:
    rows = attic.rows()
    if not arguments.all and arguments.ids:
        known = {*instance.declared(), *(row["id"] for row in rows)}  # removed servers too
        if unknown := [server for server in arguments.ids if server not in known]:
            raise instance.Usage(f"server {unknown[0]} is not declared on this host and has nothing in the attic")
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
            raise instance.Usage("holders --watch takes exactly one server and no --json")
        _watch(servers[0])
        return
    found = {server: holders.holders(server) for server in servers}
    if arguments.json:
        print_json({server: [each._asdict() for each in held] for server, held in found.items()})
        return
    lines = [[server, str(h.pid), h.command, h.kind, h.path] for server, each in found.items() for h in each]
    print_table([["ID", "PID", "COMMAND", "BY", "PATH"], *lines])


def _watch(server: str) -> None:
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
            time.sleep(0.02)  # /proc cannot be waited on
    except KeyboardInterrupt:
        print()
    print(f"seen in total: {len({each.pid for each in seen})} processes")
    print_table([["PID", "COMMAND", "BY", "PATH"], *([str(h.pid), h.command, h.kind, h.path] for h in sorted(seen))])


def _rcon(arguments: argparse.Namespace) -> None:
    from left4me_host import rcon

    [server] = _selected(arguments)
    words = arguments.words[1:] if arguments.words[:1] == ["--"] else arguments.words
    if not words:
        raise instance.Usage(f"rcon needs a command, such as: l4d2ctl rcon {server} status")
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
            print("no build on this host")
        if line := game.update_state():
            print(line, file=sys.stderr if arguments.json else sys.stdout)
    elif arguments.act == "rollback":
        if arguments.build is not None and not game.is_name(arguments.build):
            raise instance.Usage(f"{arguments.build!r} is not a build name; see l4d2ctl game status")
        _in_unit(arguments, [], "game rollback", partial(_rollback, arguments.build))
    elif arguments.check:
        current, newest = game.check()
        both = f"current build: {current}; Steam's newest: {newest}"
        print(f"build {current} is current and Steam's newest" if current == newest else both)
    else:
        game.update(_new_job(arguments, [], "game update"))


def _rollback(build: str | None, _job: jobs.Job) -> None:
    from left4me_host import game

    print(f"build {game.rollback(build)} is current; running servers use it after a restart")


def _doctor(arguments: argparse.Namespace) -> None:
    if arguments.fix:
        _in_unit(arguments, [], "doctor --fix", partial(_examine, arguments))
    else:
        _examine(arguments)


def _examine(arguments: argparse.Namespace, job: jobs.Job | None = None) -> None:
    from left4me_host import doctor

    results = [(finding, doctor.apply_fix(finding, job.number) if job else None) for finding in doctor.examine()]
    if arguments.json:
        print_json([{"server": f.server, "what": f.what, "do": f.do, "done": done} for f, done in results])
    else:
        for finding, done in results:
            where = f"server {finding.server}: " if finding.server else ""
            print(f"{where}{finding.what}: {done or finding.do}")
        if not results:
            print("no problems found")
    if any(done is None for _finding, done in results):
        raise instance.Failed("")


def _changes(arguments: argparse.Namespace) -> bool:
    """Return whether a command is a job."""
    if arguments.command == "game":
        return arguments.act == "rollback" or (arguments.act == "update" and not arguments.check)
    fixes = arguments.command == "doctor" and arguments.fix
    return fixes or arguments.command in ("start", "stop", "restart", "reset")


def _version() -> str:
    """Return the version and, if a deploy recorded it, the git revision: `0.1.0 (revision abc1234)`."""
    from left4me_host import status

    revision, _since = status.revision()
    return f"{VERSION} (revision {revision})" if revision else VERSION


def main(words: list[str]) -> int:
    try:
        if words == ["--version"]:
            print(f"l4d2ctl {_version()}", flush=True)  # l4d2ctl ends without Python's own clean-up
            return 0
        arguments = _parser().parse_args(words)
        arguments.typed = _typed(words)
        if arguments.origin and not _changes(arguments):
            raise instance.Usage("--origin is only for commands that change something")
        if os.geteuid() != 0:
            raise instance.Failed("needs root: run sudo l4d2ctl (allowed for the operators' group)")
        try:
            arguments.run(arguments)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # here, so that the except below reports a closed pipe
    except instance.Usage as error:
        print(f"l4d2ctl: {error}", file=sys.stderr)
        return 2
    except (instance.Failed, OSError) as error:
        if str(error):
            print(f"l4d2ctl: {error}", file=sys.stderr)
        return server_lock.TAKEN if isinstance(error, server_lock.Taken) else 1
    except jobs.GoesOn as followed:
        print(f"l4d2ctl: {followed}", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("l4d2ctl: interrupted; run the same command again to finish it", file=sys.stderr)
        return 130
    return 0
