"""The command line of rollout.py: the plan, the waves and the summary."""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import FrameType

from left4me import connection
from left4me.connection import Command
from left4me.lock.wave_locks import Locks
from left4me.manifest import ROOT
from left4me.revision import checked_out
from left4me.rollout import drain, results, waves
from left4me.rollout.children import Done, interrupt, interrupted, last_lines, run
from left4me.rollout.report import FINISHING, Report
from left4me.rollout.results import Result
from left4me.rollout.waves import Host
from left4me_host import layout
from left4me_host.commands import print_table
from left4me_host.instance import plain

STOPPED, REFUSED, INTERRUPTED = 1, 2, 130
HELP = """\
Deploy to a fleet in waves. The steps of each wave: lock the hosts; deploy; restart the servers that require it, each
when it is idle, or after --drain; wait until every server answers; run tests/deployed. The rollout stops after the
first wave in which a host fails.
Servers stopped by hand stay down. At the end, the rollout lists them and what else waits for you.

examples:
  python rollout.py ../fleet/inventory                      three waves: the group canary or one host, 25 %, the rest
  python rollout.py ../fleet/inventory --dry                show the waves and what would change
  python rollout.py ../fleet/inventory --waves 1,10%        one host, then 10 % of all hosts at a time
  python rollout.py ../fleet/inventory --limit eu --exclude game7.example.org
  python rollout.py ../fleet/inventory --drain 20m          restart after 20 minutes even with players
  python rollout.py ../fleet/inventory -y --drain 0         do not ask, do not wait for players

If a rollout ends early, run the same command again: finished hosts are not changed or restarted.
To go back, check out an older commit of this repository (git checkout COMMIT) and run the same command.

After Ctrl-C each host finishes its current step; servers that still have players are not restarted. A second Ctrl-C
stops at once.
exit codes: 0 all hosts deployed and verified; 1 stopped at a failure; 2 refused, nothing changed; 130 interrupted
"""


class Refused(Exception):
    """The rollout does not start; each argument is one line of the reason."""


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="rollout.py", description=HELP, formatter_class=raw)
    parser.add_argument("inventory", help="the inventory file, as for pyinfra")
    for option, which in (("--limit", "only this"), ("--exclude", "not this")):
        text = f"{which} host, group or pattern; can be repeated"
        parser.add_argument(option, action="append", default=[], metavar="NAME", help=text)
    for option, kind, default, help_text in (
        (
            "--waves",
            waves.sizes,
            "canary,25%,100%",
            "wave sizes: a number (5), a share (10%) or canary; the last repeats",
        ),
        (
            "--drain",
            waves.duration,
            "30m",
            "wait at most this long for players to leave, then restart anyway; 0: do not wait",
        ),
        ("--quiet", waves.duration, "1m", "a server is idle after this long without players"),
        ("--grace", waves.duration, "2m", "how long a server may take to answer"),
    ):
        text = f"{help_text} (default: {default})".replace("%", "%%")
        parser.add_argument(option, type=kind, default=default, metavar=option[2:].upper(), help=text)
    parser.add_argument("--no-restart", action="store_true", help="do not restart servers; list those that require it")
    parser.add_argument("--dry", action="store_true", help="show the plan and exit")
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask for confirmation")
    return parser


class Rollout:
    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._report = Report()
        self._locks = Locks()
        self._waves: list[list[Host]] = []
        self._failures: dict[str, tuple[str, Result]] = {}
        self._pending: list[dict[str, str]] = []

    def interrupt(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal: finish the current steps; on the second, or if no step has started, stop at once."""
        if number == signal.SIGHUP:  # the terminal is closed: writing to it would fail
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
        if self._report.content["hosts"] and not interrupted.is_set():
            interrupted.set()
            if not self._report.is_live:  # a live table shows FINISHING itself
                os.write(2, f"{FINISHING}\n".encode())
            return
        try:
            interrupt()
            if self._report.content["hosts"]:
                self._report.close(INTERRUPTED)
                os.write(2, f"Stopped at once: hosts may be partly deployed.\n{self._again()}\n".encode())
        finally:
            os._exit(INTERRUPTED)

    def select(self) -> list[Host]:
        """Return the selected hosts of the inventory. Raises Refused."""
        if Path.cwd() != ROOT:
            raise Refused(f"run it in the root of this repository: cd {shlex.quote(str(ROOT))}")
        options = [f"--{key}={each}" for key in ("limit", "exclude") for each in getattr(self._arguments, key)]
        command = [sys.executable, "-m", "left4me.inventory_export", self._arguments.inventory, *options]
        export = run(Command(command), most=None)
        if export.returncode:
            lines = [line for line in export.stderr.splitlines() if line.startswith("refused: ")]
            raise Refused(*(line.removeprefix("refused: ") for line in lines or last_lines(export.stderr)))
        fleet = json.loads(export.stdout)
        # pyinfra looks a name up as a group first: it would deploy the whole group.
        if both := [each["name"] for each in fleet if each["called_as_a_group"]]:
            raise Refused(f"{', '.join(both)}: a host and a group have the same name: rename one of them")
        return [Host.read(each) for each in fleet]

    def _pyinfra(self, hosts: Sequence[Host], option: str, environment: dict[str, str]) -> Done:
        limits = [word for host in hosts for word in ("--limit", host.name)]
        command = [sys.executable, "-m", "pyinfra", self._arguments.inventory, "deploy.py", "--json", option, *limits]
        return run(Command(command, environment), most=None)

    def plan(self, hosts: list[Host]) -> None:
        """Connect to every host and show what would change. Raises Refused."""
        self._waves = waves.split(hosts, self._arguments.waves)
        found = results.planned(self._pyinfra(hosts, "--dry", {}), [host.name for host in hosts])
        if wrong := [f"{name}: {line}" for name, result in found.items() for line in result.wrong]:
            raise Refused(*wrong, "fix that, or skip the host: --exclude NAME")
        for number, wave in enumerate(self._waves, 1):
            print(f"wave {number} of {len(self._waves)}")
            for host in wave:
                print(f"  {host.name}: {'; '.join(found[host.name].changed) or 'nothing to change'}")
                for line in found[host.name].pending:
                    print(f"    {line}")
        sys.stdout.flush()

    def confirm(self) -> None:
        """Ask for confirmation. Raises Refused."""
        try:
            if not self._arguments.yes and input("Go on? [y/N] ").strip().lower() not in ("y", "yes"):
                raise Refused("not confirmed")
        except EOFError:
            raise Refused("cannot ask for confirmation: standard input is closed; use -y") from None

    def go(self) -> int:
        """Roll out wave by wave and return the exit code."""
        names = [[host.name for host in wave] for wave in self._waves]
        self._report.content.update(revision=checked_out(), waves=names)
        code = STOPPED
        try:
            if all(self._wave(number, wave) for number, wave in enumerate(self._waves, 1)):
                code = 0
            elif not self._failures:
                code = INTERRUPTED
            elif not self._report.started("deploy"):
                code = REFUSED
        finally:
            self._report.close(code)
        self._summarize(code)
        return code

    def _wave(self, number: int, hosts: Sequence[Host]) -> bool:
        """Return whether all hosts of a wave were deployed and verified."""
        with Locks() as self._locks:
            if not self._lock(number, hosts):
                return False
            remaining = list(hosts)
            for step, act in (("deploy", self._deploy), ("restart", self._restart), ("verify", self._verify)):
                if interrupted.is_set() or not remaining:
                    return False
                self._report.begin(number, [host.name for host in remaining], step)
                remaining = act(remaining)
        return len(remaining) == len(hosts)

    def _lock(self, number: int, hosts: Sequence[Host]) -> bool:
        """Take the locks of a wave's hosts and return whether all are held."""
        with ThreadPoolExecutor(32) as pool:
            list(pool.map(self._locks.connect, hosts))
        # One after the other, so that of two rollouts with common hosts only one is refused.
        for host in hosts:
            if interrupted.is_set():
                return False
            self._report.begin(number, [host.name], "lock")
            if not self._succeeded("lock", [host], {host.name: Result(self._locks.take(host))}):
                return False
        return True

    def _succeeded(self, step: str, hosts: Sequence[Host], found: Mapping[str, Result]) -> list[Host]:
        """Record the results of a step and return the hosts on which it succeeded."""
        for name, result in found.items():
            if result.wrong:
                self._failures[name] = (step, result)
            self._report.end(name, "failed" if result.wrong else "done", result.wrong or result.changed)
        return [host for host in hosts if not found[host.name].wrong]

    def _deploy(self, hosts: Sequence[Host]) -> list[Host]:
        done = self._pyinfra(hosts, "-y", self._locks.environment)
        return self._succeeded("deploy", hosts, results.deployed(done, [host.name for host in hosts]))

    def _restart(self, hosts: Sequence[Host]) -> list[Host]:
        def restart(host: Host) -> list[Host]:
            result = Result()
            try:
                note = partial(self._report.note, host.name)
                result.changed = drain.Drain(host, self._arguments, self._locks, note).restart_servers()
            except drain.Failed as failed:
                result.wrong = list(failed.args)
            return self._succeeded("restart", [host], {host.name: result})

        with ThreadPoolExecutor(len(hosts)) as pool:
            return [host for succeeded in pool.map(restart, hosts) for host in succeeded]

    def _verify(self, hosts: Sequence[Host]) -> list[Host]:
        names = [host.name for host in hosts]
        with tempfile.TemporaryDirectory() as folder:
            junit, pending = Path(folder, "junit.xml"), Path(folder, "pending.json")
            command = [sys.executable, "-m", "pytest", "tests/deployed", "--color=no", f"--junitxml={junit}"]
            command += [f"--inventory={self._arguments.inventory}", *(f"--limit={name}" for name in names)]
            command += [f"--grace={self._arguments.grace:.0f}s", f"--pending-json={pending}"]
            done = run(Command(command, {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}), most=None)
            found = results.verified(done, junit, names)
            if pending.is_file():
                self._pending += json.loads(pending.read_text(encoding="utf-8"))
            return self._succeeded("verify", hosts, found)

    def _summarize(self, code: int) -> None:
        """Print the failures, what is pending, and the command to run next."""
        hosts = {host.name: host for wave in self._waves for host in wave}
        untouched = [name for name in hosts if name not in self._report.started("deploy")]
        for name, (step, result) in self._failures.items():
            print(f"\n{name} failed at {step}:", *map(plain, result.wrong), sep="\n    ")
            only = [self._arguments.inventory, "--limit", name]
            tests = [word for test in result.tests[:1] for word in ("-k", test.partition("[")[0])]
            closer = {
                "lock": connection.typed(name, hosts[name].connection, "cat", layout.DEPLOY_LOCK),
                "deploy": shlex.join(["pyinfra", *only, "deploy.py"]),
                "restart": connection.typed(name, hosts[name].connection, "l4d2ctl", "status"),
                "verify": shlex.join(["pytest", "tests/deployed", "--inventory", *only, *tests]),
            }
            print(f"  look closer: {closer[step]}")
        if self._pending:
            columns = ("host", "server", "pending", "since", "by", "do")
            print("\npending:")
            print_table(
                [[*map(str.upper, columns)], *([each[key] or "-" for key in columns] for each in self._pending)]
            )
        if code:
            how = {INTERRUPTED: "Interrupted", REFUSED: "Refused"}.get(code, "Stopped")
            print(f"\n{how}. Untouched: {', '.join(untouched) or 'none'}.\n{self._again()}")
        else:
            pending = f"; {len(self._pending)} pending" if self._pending else ""
            print(f"Done and verified: {len(hosts)} host{'s' * (len(hosts) != 1)}{pending}.")
        print(f"Report: {self._report.path}", flush=True)

    @staticmethod
    def _again() -> str:
        return f"To continue, run the same command: {shlex.join(['python', *sys.argv])}"


def main() -> int:
    arguments = _parser().parse_args()
    rollout = Rollout(arguments)
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, rollout.interrupt)
    # Each host of a wave needs several descriptors; the usual soft limit is 1024.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        rollout.plan(rollout.select())
        if arguments.dry:
            return 0
        rollout.confirm()
    except Refused as refused:
        print(*(f"refused: {line}" for line in refused.args), "Nothing has changed.", sep="\n", file=sys.stderr)
        return REFUSED
    return rollout.go()
