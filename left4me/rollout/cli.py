"""The command line of rollout.py: the plan, the waves, and what is said at the end."""

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
from left4me.lock.wave_locks import Locks
from left4me.manifest import ROOT
from left4me.revision import checked_out
from left4me.rollout import drain, results, waves
from left4me.rollout.children import Done, interrupt, interrupted, last_lines, run
from left4me.rollout.report import ANSWER, Report
from left4me.rollout.results import Result
from left4me.rollout.waves import Host
from left4me_host import layout
from left4me_host.commands import print_table

STOPPED, REFUSED, INTERRUPTED = 1, 2, 130
HELP = """\
Deploy to a fleet in waves. In each wave, hosts side by side: lock, deploy, restart the servers that require it once
they have no players, wait until every server answers, and run tests/deployed. The first wave in which a host fails is
the last. A server that was stopped by hand stays down; what is pending is listed at the end.

examples:
  python rollout.py ../fleet/inventory                      the group canary or the first host, 25 %, then the rest
  python rollout.py ../fleet/inventory --dry                what would change, and in which waves
  python rollout.py ../fleet/inventory --waves 1,10%        one host, then a tenth of all at a time
  python rollout.py ../fleet/inventory --limit eu --exclude game7.example.org
  python rollout.py ../fleet/inventory --drain 20m          after 20 minutes restart although somebody plays
  python rollout.py ../fleet/inventory -y --drain 0         ask nobody, wait for nobody

Stopped, interrupted or killed: the same command again goes on. Hosts that are done change and restart nothing.
The way back is an older state of this repository: git checkout OLD, and the same command.

Ctrl-C finishes the step that each host is in, and waits for no more players; a second one stops at once.
exit codes: 0 all done and proved, 1 stopped, 2 refused and nothing changed, 130 interrupted
"""


class Refused(Exception):
    """Why the rollout does not begin, line by line."""


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="rollout.py", description=HELP, formatter_class=raw)
    parser.add_argument("inventory", help="the inventory file, as for pyinfra")
    for option, what in (("--limit", "only this"), ("--exclude", "not this")):
        text = f"{what} host, group or pattern; may be repeated"
        parser.add_argument(option, action="append", default=[], metavar="NAME", help=text)
    for option, kind, default, what in (
        ("--waves", waves.sizes, "canary,25%,100%", "how many hosts in each, the last again: 5, 10%, canary"),
        ("--drain", waves.duration, "30m", "how long players are waited for; 0: not at all"),
        ("--quiet", waves.duration, "1m", "how long a server has to be empty before its restart"),
        ("--grace", waves.duration, "2m", "how long a server may take until it answers"),
    ):
        text = f"{what} (default: {default})".replace("%", "%%")
        parser.add_argument(option, type=kind, default=default, metavar=option[2:].upper(), help=text)
    parser.add_argument("--no-restart", action="store_true", help="restart nothing; what requires a restart is listed")
    parser.add_argument("--dry", action="store_true", help="show the plan and end")
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")
    return parser


class Rollout:
    """One run over a fleet."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._report = Report()
        self._locks = Locks()
        self._waves: list[list[Host]] = []
        self._failures: dict[str, tuple[str, Result]] = {}
        self._pending: list[dict[str, str]] = []

    def interrupt(self, number: int, _frame: FrameType | None) -> None:
        """Take a Ctrl-C: the second, and one before anything was begun, ends all at once."""
        if number == signal.SIGHUP:  # the terminal is gone, and writing to it would fail
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
        if self._report.content["hosts"] and not interrupted.is_set():
            interrupted.set()
            if not self._report.is_live:  # else it is the table's last row
                os.write(2, f"{ANSWER}\n".encode())
            return
        try:
            interrupt()
            if self._report.content["hosts"]:
                self._report.close(INTERRUPTED)
                os.write(2, f"Stopped at once: hosts may be half done.\n{self._again()}\n".encode())
        finally:
            os._exit(INTERRUPTED)

    def select(self) -> list[Host]:
        """Read the inventory. Raises Refused."""
        if Path.cwd() != ROOT:
            raise Refused(f"it works in the directory of this repository: cd {shlex.quote(str(ROOT))}")
        options = [f"--{key}={each}" for key in ("limit", "exclude") for each in getattr(self._arguments, key)]
        told = run([sys.executable, "-m", "left4me.inventory_export", self._arguments.inventory, *options])
        if told.returncode:
            lines = [line for line in told.stderr.splitlines() if line.startswith("refused: ")]
            raise Refused(*(line.removeprefix("refused: ") for line in lines or last_lines(told.stderr)))
        fleet = json.loads(told.stdout)
        # pyinfra takes a name for a group's before it takes it for a host's, and would deploy the whole group.
        if both := [each["name"] for each in fleet if each["called_as_a_group"]]:
            raise Refused(f"{', '.join(both)}: a host and a group of one name cannot be told apart: rename one")
        return [Host.read(each) for each in fleet]

    def _pyinfra(self, hosts: Sequence[Host], word: str, environment: Mapping[str, str] | None = None) -> Done:
        limits = [word for host in hosts for word in ("--limit", host.name)]
        command = [sys.executable, "-m", "pyinfra", self._arguments.inventory, "deploy.py", "--json", word, *limits]
        return run(command, environment=environment)

    def plan(self, hosts: list[Host]) -> None:
        """Connect to every host and show what would change. Raises Refused."""
        self._waves = waves.split(hosts, self._arguments.waves)
        verdicts = results.planned(self._pyinfra(hosts, "--dry"), [host.name for host in hosts])
        if wrong := [f"{name}: {line}" for name, verdict in verdicts.items() for line in verdict.wrong]:
            raise Refused(*wrong, "mend that, or leave the host out: --exclude NAME")
        for number, wave in enumerate(self._waves, 1):
            print(f"wave {number} of {len(self._waves)}")
            for host in wave:
                print(f"  {host.name}: {'; '.join(verdicts[host.name].changed) or 'nothing to change'}")
                for line in verdicts[host.name].pending:
                    print(f"    {line}")
        sys.stdout.flush()

    def confirm(self) -> None:
        """Ask whether to go on. Raises Refused."""
        try:
            if not self._arguments.yes and input("Go on? [y/N] ").strip().lower() not in ("y", "yes"):
                raise Refused("not confirmed")
        except EOFError:
            raise Refused("nobody is there to ask; -y does not ask") from None

    def go(self) -> int:
        """Go through the waves and return the exit code."""
        names = [[host.name for host in wave] for wave in self._waves]
        self._report.content.update(revision=checked_out(), waves=names)
        code = STOPPED
        try:
            if all(self._wave(number, wave) for number, wave in enumerate(self._waves, 1)):
                code = 0
            elif not self._failures:
                code = INTERRUPTED
            elif not self._report.begun("deploy"):
                code = REFUSED
        finally:
            self._report.close(code)
        self._tell(code)
        return code

    def _wave(self, number: int, hosts: Sequence[Host]) -> bool:
        """Bring a wave to its end and tell whether all of it is done and proved."""
        with Locks() as self._locks:
            if not self._lock(number, hosts):
                return False
            left = list(hosts)
            for step, act in (("deploy", self._deploy), ("restart", self._settle), ("verify", self._verify)):
                if interrupted.is_set() or not left:
                    return False
                self._report.begin(number, [host.name for host in left], step)
                left = act(left)
        return len(left) == len(hosts)

    def _lock(self, number: int, hosts: Sequence[Host]) -> bool:
        """Take the locks of a wave's hosts and tell whether all are held."""
        with ThreadPoolExecutor(32) as pool:
            list(pool.map(self._locks.connect, hosts))
        # One after the other: of two rollouts that want some of the same hosts, only one is refused.
        for host in hosts:
            if interrupted.is_set():
                return False
            self._report.begin(number, [host.name], "lock")
            if not self._judged("lock", [host], {host.name: Result(self._locks.take(host))}):
                return False
        return True

    def _judged(self, step: str, hosts: Sequence[Host], verdicts: Mapping[str, Result]) -> list[Host]:
        """Note how a step went on each host and return those on which it went well."""
        for name, verdict in verdicts.items():
            if verdict.wrong:
                self._failures[name] = (step, verdict)
            self._report.end(name, "failed" if verdict.wrong else "done", verdict.wrong or verdict.changed)
        return [host for host in hosts if not verdicts[host.name].wrong]

    def _deploy(self, hosts: Sequence[Host]) -> list[Host]:
        done = self._pyinfra(hosts, "-y", self._locks.environment)
        return self._judged("deploy", hosts, results.deployed(done, [host.name for host in hosts]))

    def _settle(self, hosts: Sequence[Host]) -> list[Host]:
        def settle(host: Host) -> list[Host]:
            verdict = Result()
            try:
                settling = drain.Drain(host, self._arguments, self._locks, partial(self._report.note, host.name))
                verdict.changed, due, down = settling.settle()
                verdict.changed += [f"not restarted: server {server}" for server in due]
                verdict.changed += [f"not started: server {server}" for server in down]
            except drain.Failed as failed:
                verdict.wrong = list(failed.args)
            return self._judged("restart", [host], {host.name: verdict})

        with ThreadPoolExecutor(len(hosts)) as pool:
            return [host for well in pool.map(settle, hosts) for host in well]

    def _verify(self, hosts: Sequence[Host]) -> list[Host]:
        names = [host.name for host in hosts]
        with tempfile.TemporaryDirectory() as folder:
            junit, pending = Path(folder, "junit.xml"), Path(folder, "pending.json")
            command = [sys.executable, "-m", "pytest", "tests/deployed", "--color=no", f"--junitxml={junit}"]
            command += [f"--inventory={self._arguments.inventory}", *(f"--limit={name}" for name in names)]
            command += [f"--grace={self._arguments.grace:.0f}s", f"--pending-json={pending}"]
            done = run(command, environment={"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"})
            verdicts = results.verified(done, junit, names)
            if pending.is_file():
                self._pending += json.loads(pending.read_text(encoding="utf-8"))
            return self._judged("verify", hosts, verdicts)

    def _tell(self, code: int) -> None:
        """Say how it ended, and what to type next."""
        hosts = {host.name: host for wave in self._waves for host in wave}
        untouched = [name for name in hosts if name not in self._report.begun("deploy")]
        for name, (step, verdict) in self._failures.items():
            print(f"\n{name} failed at {step}:", *verdict.wrong, sep="\n    ")
            only = [self._arguments.inventory, "--limit", name]
            tests = [word for test in verdict.tests[:1] for word in ("-k", test.partition("[")[0])]
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
            print(f"\n{how}. Untouched: {', '.join(untouched) or 'no host'}.\n{self._again()}")
        else:
            but = f"; {len(self._pending)} pending" if self._pending else ""
            print(f"Done and proved: {len(hosts)} host{'s' * (len(hosts) != 1)}{but}.")
        print(f"Report: {self._report.path}", flush=True)

    @staticmethod
    def _again() -> str:
        return f"Go on with the same command: {shlex.join(['python', *sys.argv])}"


def main() -> int:
    """Do what the command line says and return the exit code."""
    arguments = _parser().parse_args()
    rollout = Rollout(arguments)
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, rollout.interrupt)
    # Each host takes some while its wave lasts, and systems come with a thousand.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        rollout.plan(rollout.select())
        if arguments.dry:
            return 0
        rollout.confirm()
    except Refused as refused:
        print(*(f"refused: {line}" for line in refused.args), "Nothing has changed.", sep="\n", file=sys.stderr)
        return REFUSED
    return rollout.go()
