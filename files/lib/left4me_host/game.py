"""The builds of the game on this host: which there are, a new one from Steam, and the way back."""

from __future__ import annotations

import os
import re
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass

from left4me_host import builds, gc, instance, layout

_GAME = f"{layout.LIBEXEC}/left4me-game"


@dataclass(frozen=True)
class Build:
    """A build as `game status --json` has it; `servers` run on it, `trial` is GOOD, why not, or empty."""

    build: str
    current: bool
    since: str
    trial: str
    servers: list[str]
    declared_for: list[str]


def status() -> list[Build]:
    """Return the builds on this host, the latest first."""
    current = builds.current()
    servers, mounted = instance.declared(), instance.overlays()
    runs = {each: os.path.basename(mounted[at][0][-1]) for each in servers if (at := layout.merged(each)) in mounted}
    declared = {server: instance.declared_build(server) for server in servers}
    return [
        Build(
            build=name,
            current=name == current,
            since=time.strftime("%Y-%m-%d %H:%M", time.localtime(os.stat(f"{layout.RELEASES}/{name}").st_ctime)),
            trial=gc.verdict(name),
            servers=[each for each, build in runs.items() if build == name],
            declared_for=[server for server, build in declared.items() if build == name],
        )
        for name in builds.names()
    ]


def table(rows: list[Build]) -> list[list[str]]:
    """Return rows of text with their headings first."""
    lines = [["BUILD", "CURRENT", "SINCE", "RUNS", "HELD FOR", "TRIAL"]]
    for row in rows:
        servers, held = ",".join(row.servers) or "-", ",".join(row.declared_for) or "-"
        lines.append([row.build, "current" if row.current else "-", row.since, servers, held, row.trial or "-"])
    return lines


def is_updating() -> bool:
    """Tell whether an update is at work."""
    return "activating" in instance.Systemctl("is-active", layout.GAME_UNIT).wait()[1].splitlines()


def update_state() -> str:
    """Return a line on the update that is running, or on the last one where it failed; empty where neither is."""
    return "an update is at work: l4d2ctl game update follows it" if is_updating() else builds.failure()


def _from_steam() -> None:
    if (source := builds.game_settings()["source"]) != "steamcmd":
        raise instance.Failed(
            f"the data of this host have the game from {source}, not from Steam: deploy it to update it"
        )


def check() -> tuple[str, str]:
    """Return the current build and Steam's. Raises Failed."""
    _from_steam()
    done = subprocess.run([_GAME, "check"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise instance.Failed(instance.plain(done.stderr.strip()))
    here, there = done.stdout.split()[-2:]
    return here, there


def _journal(after: str | None) -> tuple[str, list[str]]:
    """Return where the journal of updates ends, and what was written since `after`; nothing for None."""
    command = [
        "journalctl",
        "--no-pager",
        "--quiet",
        "--output=cat",
        "--show-cursor",
        f"_SYSTEMD_UNIT={layout.GAME_UNIT}",
    ]
    command += ["--lines=0"] if after is None else [f"--after-cursor={after}"] if after else []
    said = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False).stdout.splitlines()
    cursor = [line.removeprefix("-- cursor: ") for line in said if line.startswith("-- cursor: ")]
    return (cursor or [after or ""])[-1], [line for line in said if not line.startswith("-- cursor: ")]


def update() -> None:
    """Bring Steam's current build and try it, in a unit of its own; print its progress. Raises Failed.

    It goes on where this is interrupted, and a second call follows it.
    """
    _from_steam()
    if is_updating():
        print("an update is at work already; following it", flush=True)
    else:
        for name in os.listdir(layout.VERDICTS):  # what is asked for by hand gets another trial
            if gc.verdict(name).startswith(gc.LEFT):
                builds.note(name, gc.GOOD)
            elif gc.verdict(name) != gc.GOOD:
                builds.forget(name)
    seen, _lines = _journal(None)
    with subprocess.Popen(["systemctl", "start", layout.GAME_UNIT], stderr=subprocess.DEVNULL) as start:
        ended = None
        while ended is None:
            with suppress(subprocess.TimeoutExpired):
                ended = start.wait(1)
                instance.sync_journal()
            seen, lines = _journal(seen)
            for line in lines:
                print(instance.plain(line), flush=True)
    if ended:
        instance.Systemctl("reset-failed", layout.GAME_UNIT).wait()  # whoever asked for it has seen why
        stays = f"build {builds.current() or 'none'} stays current"
        where = f"journalctl -u {layout.GAME_UNIT}, and {layout.GAME}/steamcmd.log, have all of it"
        raise instance.Failed(f"the update failed; {stays}; {where}")


def rollback(build: str | None) -> str:
    """Make another build on this host current and return its name: the latest good one unless said. Raises Failed."""
    if held := builds.game_settings()["build"]:
        raise instance.Failed(f"the data hold this host at build {held}: change game.build there, then deploy")
    with instance.locked(layout.VERDICTS, waits=False) as free:
        if not free:
            raise instance.Failed("an update is at work; wait for it")
        before, there = builds.current(), builds.names()
        good = [name for name in there if name != before and gc.runs(name)]
        good.sort(key=lambda name: gc.verdict(name) != gc.GOOD)  # what was left before comes last
        if build and build not in there:
            raise instance.Failed(f"build {build} is not on this host, which has: {', '.join(there)}")
        if not build and not good:
            raise instance.Failed(f"there is no other build on this host that its trial found good: {', '.join(there)}")
        wanted = build or good[0]
        if not gc.runs(wanted):
            try:
                builds.prove(wanted)
            except ValueError as error:
                raise instance.Failed(str(error)) from None
        if wanted != before:
            # Else the next night would bring it back.
            when = time.strftime("%Y-%m-%d %H:%M")
            if before:
                builds.note(before, f"{gc.LEFT} to {wanted} on {when}")
            builds.note(wanted, gc.GOOD)
            builds.switch(layout.INSTALLATION, f"{layout.RELEASES}/{wanted}")
            builds.follow_restarts()
    return wanted


def is_name(text: str) -> bool:
    """Tell whether this can be the name of a build."""
    return bool(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,19}", text))
