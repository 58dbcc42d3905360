"""`l4d2ctl game`: lists the builds on this host, updates from Steam, rolls back."""

from __future__ import annotations

import os
import re
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass

from left4me_host import builds, gc, instance, jobs, layout


@dataclass(frozen=True)
class Build:
    """A row of `game status --json`: `servers` run on the build, `trial` is its smoke test's result or empty."""

    build: str
    current: bool
    since: str
    trial: str
    servers: list[str]
    declared_for: list[str]


def status() -> list[Build]:
    current = builds.current()
    servers, mounted = instance.declared(), instance.overlays()
    running = {each: os.path.basename(mounted[at][0][-1]) for each in servers if (at := layout.merged(each)) in mounted}
    declared = {each: instance.declared_build(each) for each in servers}
    return [
        Build(
            build=name,
            current=name == current,
            since=time.strftime("%Y-%m-%d %H:%M", time.localtime(os.stat(f"{layout.RELEASES}/{name}").st_ctime)),
            trial=gc.smoke_test_result(name),
            servers=[each for each, build in running.items() if build == name],
            declared_for=[each for each, build in declared.items() if build == name],
        )
        for name in builds.names()
    ]


def table(rows: list[Build]) -> list[list[str]]:
    lines = [["BUILD", "CURRENT", "SINCE", "SERVERS", "DECLARED FOR", "SMOKE TEST"]]
    for row in rows:
        servers, declared = ",".join(row.servers) or "-", ",".join(row.declared_for) or "-"
        lines.append([row.build, "current" if row.current else "-", row.since, servers, declared, row.trial or "-"])
    return lines


def is_updating() -> bool:
    return "activating" in instance.Systemctl("is-active", layout.GAME_UNIT).wait()[1].splitlines()


def update_state() -> str:
    """Return a line about a running update or a failed last one; otherwise an empty string."""
    return "an update is running; follow it with `l4d2ctl game update`" if is_updating() else builds.failure()


def check() -> tuple[str, str]:
    """Return the current build and Steam's newest. Raises Failed."""
    builds.require_steam()
    cursor, _lines = _journal(layout.CHECK_UNIT, None)
    failed, _output = instance.Systemctl("start", layout.CHECK_UNIT).wait()
    instance.sync_journal()
    lines = [*map(instance.plain, _journal(layout.CHECK_UNIT, cursor)[1])]
    if failed or not lines:
        instance.Systemctl("reset-failed", layout.CHECK_UNIT).wait()  # the operator sees why
        raise instance.Failed(lines[-1] if lines else f"the check failed; see journalctl -u {layout.CHECK_UNIT}")
    here, _, there = lines[-1].partition(" ")
    return here, there


def _journal(unit: str, after: str | None) -> tuple[str, list[str]]:
    """Return the end of a unit's journal (a cursor) and the lines after the cursor `after`, none for None."""
    command = ["journalctl", "--no-pager", "--quiet", "--output=cat", "--show-cursor"]
    command += [f"_SYSTEMD_UNIT={unit}"]
    command += ["--lines=0"] if after is None else [f"--after-cursor={after}"] if after else []
    output = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False).stdout
    lines = output.splitlines()
    cursor = [line.removeprefix("-- cursor: ") for line in lines if line.startswith("-- cursor: ")]
    return (cursor or [after or ""])[-1], [line for line in lines if not line.startswith("-- cursor: ")]


def update(job: jobs.Job) -> None:
    """Start the unit that updates the game, which takes over `job`, and print its progress. Raises Failed or GoesOn.

    If this call is interrupted, the unit continues; a second call follows it.
    """
    builds.require_steam()
    with jobs.uninterrupted():  # until the unit has the job
        if is_updating():
            jobs.tell("an update is already running; following it")
            number = builds.noted_job()
        else:
            number = _begin(job)
        if number:
            jobs.tell(jobs.first_line(number))
        cursor, _lines = _journal(layout.GAME_UNIT, None)
        start = subprocess.Popen(["systemctl", "start", layout.GAME_UNIT], stderr=subprocess.DEVNULL)
        job.wait_for_takeover(start)
    try:
        failed = _follow(start, cursor)
    except KeyboardInterrupt:
        raise jobs.GoesOn(jobs.goes_on(number) if number else "the update goes on") from None
    if failed:
        instance.Systemctl("reset-failed", layout.GAME_UNIT).wait()  # the operator has just seen why
        logs = f"{layout.GAME}/steamcmd.log and journalctl -u {layout.GAME_UNIT}"
        why = f"the update failed; the current build is still {builds.current() or 'none'}; see {logs}"
        jobs.tell(f"l4d2ctl: {why}", "stderr")
    if job.number and not job.is_taken_over():
        job.end(jobs.FAILED, f"{layout.GAME_UNIT} did not start, or another update was just running")
        failed = 1
    elif found := jobs.read(number):
        jobs.tell(jobs.last_line(found), "stderr" if failed else "stdout")
    if failed:
        raise instance.Failed("")


def _begin(job: jobs.Job) -> int:
    """Begin a job for the update's unit, and return its number."""
    for name in os.listdir(layout.VERDICTS):  # an update by hand repeats failed smoke tests
        if gc.smoke_test_result(name).startswith(gc.LEFT):
            builds.record_result(name, gc.GOOD)
        elif gc.smoke_test_result(name) != gc.GOOD:
            builds.forget_result(name)
    job.begin()
    builds.note_job(job.number)
    return job.number


def _follow(start: subprocess.Popen[bytes], cursor: str) -> int:
    """Print the journal of the update's unit while systemctl starts or awaits it; return systemctl's exit code."""
    with start:
        ended = None
        while ended is None:
            with suppress(subprocess.TimeoutExpired):
                ended = start.wait(1)
                instance.sync_journal()
            cursor, lines = _journal(layout.GAME_UNIT, cursor)
            for line in lines:
                jobs.tell(instance.plain(line))
    return ended


def rollback(build: str | None) -> str:
    """Make another build on this host current, by default the latest good one, and return its name. Raises Failed."""
    if declared := builds.game_settings()["build"]:
        raise instance.Failed(f"game.build keeps this host at build {declared}: change game.build, then deploy")
    with instance.locked(layout.VERDICTS, waits=False) as free:
        if not free:
            raise instance.Failed("an update is running: wait until it ends")
        before, names = builds.current(), builds.names()
        good = [name for name in names if name != before and gc.runs(name)]
        good.sort(key=lambda name: gc.smoke_test_result(name) != gc.GOOD)  # builds left by a rollback come last
        if build and build not in names:
            raise instance.Failed(f"build {build} is not on this host, which has: {', '.join(names)}")
        if not build and not good:
            raise instance.Failed(f"no other build has passed its smoke test; name one of: {', '.join(names)}")
        new = build or good[0]
        if not gc.runs(new):
            try:
                builds.smoke_test(new)
            except ValueError as error:
                raise instance.Failed(str(error)) from None
        if new != before:
            if before:  # recorded, so that the timer's next update does not make it current again
                builds.record_result(before, f"{gc.LEFT} to {new} on {time.strftime('%Y-%m-%d %H:%M')}")
            builds.record_result(new, gc.GOOD)
            builds.switch(layout.INSTALLATION, f"{layout.RELEASES}/{new}")
            builds.follow_restarts()
    return new


def is_name(text: str) -> bool:
    """Return whether `text` can be the name of a build."""
    return bool(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,19}", text))
