"""The game from Steam: SteamCMD, what it says, and builds of app 222860 made with it.

Everything of SteamCMD is the user left4me's and below layout.GAME; a build becomes root's business when it is whole.
https://developer.valvesoftware.com/wiki/SteamCMD
"""

from __future__ import annotations

import math
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from left4me_host import builds, filetree, gc, instance, layout, steamcmd_words
from left4me_host.source_kinds import archive

APP = "222860"
PROGRAM = f"{layout.GAME}/steamcmd"
HOME = f"{layout.GAME}/home"
STAGE = f"{layout.GAME}/stage"
LOG = f"{layout.GAME}/steamcmd.log"
MANIFEST = f"{STAGE}/steamapps/appmanifest_{APP}.acf"
PAUSES = (2, 10, 30, 60)
"""Seconds before each further try: Steam's content servers fail for moments."""
SILENCE = 1800
"""Seconds that SteamCMD may say nothing: it verifies 9 GB on a slow disk without a word."""
ASKING = 60
"""Seconds that it may say nothing where it is only asked."""
WITHIN = 120
"""Seconds after which no further try to ask begins."""
EVERY = 5
"""Seconds between two lines of progress."""
_PROGRESS = re.compile(r"Update state \(0x[0-9a-f]+\) (.*), progress: ([0-9.]+) \((\d+) / (\d+)\)")
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_LONGEST = 1 << 16
T = TypeVar("T")
_brought: list[str] = []
"""SteamCMD, once this process has downloaded it: a second download would bring the same."""


class TransientError(OSError):
    """What may go well at another try."""


say = partial(print, flush=True)  # to whoever follows this update


def gigabytes(size: float) -> str:
    """Return a size as people read it."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _as_left4me() -> dict[str, Any]:
    uid, gid = filetree.owner()
    return {"user": uid, "group": gid, "extra_groups": []}


def _own_directory(path: str) -> None:
    os.makedirs(path, 0o755, exist_ok=True)
    os.chown(path, *filetree.owner())


def _bring_program() -> None:
    """Have SteamCMD on the host; it updates itself from then on. Raises OSError or ValueError."""
    if os.path.isfile(f"{PROGRAM}/steamcmd.sh"):
        return
    url, sha256 = builds.game_settings()["url"], builds.game_settings()["sha256"]
    say(f"downloading SteamCMD from {archive.shown(url)}")
    with filetree.beside(layout.GAME) as new:
        os.mkdir(new, 0o755)
        archive.unpack_from(url, sha256, 0, new)
        if not os.access(f"{new}/steamcmd.sh", os.X_OK):
            raise ValueError(f"{archive.shown(url)} holds no steamcmd.sh that can be executed")
        filetree.confine(new)
        filetree.own(new)
        os.sync()
        if os.path.lexists(PROGRAM):
            filetree.remove(PROGRAM)
        os.rename(new, PROGRAM)
        _brought.append(PROGRAM)


def _lines(words: tuple[str, ...], silence: float) -> Iterator[str]:
    """Run SteamCMD and yield what it says, as it says it. Raises OSError where it falls silent."""
    # On anything but a terminal it keeps its words to itself until it ends.
    leader, terminal = os.openpty()
    environment = {"HOME": HOME, "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "TERM": "dumb"}
    process = subprocess.Popen(
        # By its own path: through a symlink it looks for the rest of itself beside the link.
        [f"{PROGRAM}/steamcmd.sh", *words, "+quit"],
        stdin=subprocess.DEVNULL,
        stdout=terminal,
        stderr=terminal,
        cwd=HOME,
        env=environment,
        start_new_session=True,
        **_as_left4me(),
    )
    os.close(terminal)
    rest = b""
    try:
        while select.select([leader], [], [], silence)[0]:
            try:
                chunk = os.read(leader, 1 << 16)
            except OSError:  # EIO: the last one who had the terminal has closed it
                chunk = b""
            *whole, rest = (rest[-_LONGEST:] + chunk).replace(b"\r", b"\n").split(b"\n")
            for line in [*whole, *([] if chunk else [rest])]:
                yield _COLOUR.sub("", line.decode("utf-8", "replace")).strip()
            if not chunk:
                return
        raise TransientError(f"SteamCMD said nothing for {silence} s")
    finally:
        os.close(leader)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        # Root goes through its files next: nothing of it may live on, in whatever session.
        subprocess.run(["sh", "-c", "kill -KILL -1"], check=False, stderr=subprocess.DEVNULL, **_as_left4me())


def _steamcmd(*words: str, silence: float = SILENCE) -> list[str]:
    """Run SteamCMD, keep its log, and tell of its progress. Returns its lines; raises OSError where it says why not."""
    said, last = [], 0.0
    was_there = os.path.isfile(f"{PROGRAM}/steamcmd.sh") and not _brought
    _bring_program()
    with open(LOG, "a", encoding="utf-8") as log:
        log.write(f"== {time.strftime('%Y-%m-%d %H:%M:%S %Z')} steamcmd.sh {' '.join(words)}\n")
        for line in filter(None, _lines(words, silence)):
            log.write(f"{line}\n")
            log.flush()
            found = _PROGRESS.search(line)
            if not found:
                said.append(line)
            if found and int(found[4]) and time.monotonic() - last >= EVERY:
                last = time.monotonic()
                done, whole = int(found[3]), int(found[4])
                say(f"{found[1]}: {found[2]} % ({gigabytes(done)} of {gigabytes(whole)})")
    if not any("Loading Steam API" in line for line in said):
        why = steamcmd_words.startup_reason(_bootstrap_log()) or " / ".join(said[-3:])
        if was_there:  # killed while it updated itself, it does not mend that
            filetree.remove(PROGRAM)
        raise TransientError(f"SteamCMD did not start: {why}; its log is {LOG}")
    wrong = steamcmd_words.refusals(said)
    if final := next(filter(steamcmd_words.is_final, wrong), ""):
        free = f": {gigabytes(shutil.disk_usage(layout.GAME).free)} are free in {layout.GAME}"
        more = free if steamcmd_words.is_full(final) else ""
        raise OSError(f"{steamcmd_words.meaning(final, more)}; its log is {LOG}")
    if wrong:
        raise TransientError(f"{steamcmd_words.meaning(wrong[0])}; its log is {LOG}")
    return said


def _bootstrap_log() -> str:
    """Return the end of what SteamCMD's bootstrap wrote; read as its user, whose links may lead anywhere."""
    paths = [f"{HOME}/Steam/logs/bootstrap_log.txt", f"{PROGRAM}/logs/bootstrap_log.txt"]
    command = ["tail", "--quiet", "--lines=40", "--", *paths]
    said: bytes = subprocess.run(command, capture_output=True, check=False, **_as_left4me()).stdout
    return said[-_LONGEST:].decode("utf-8", "replace")


def with_retries(step: Callable[[], T], within: float = math.inf) -> T:
    """Do something that Steam may fail at for a moment: a bounded number of times, with growing pauses.

    No try begins when more than `within` seconds have passed.
    """
    begun = time.monotonic()
    for pause in PAUSES:
        try:
            return step()
        except TransientError as error:
            if time.monotonic() + pause - begun > within:
                raise
            say(f"{error}; trying again in {pause} s")
            time.sleep(pause)  # nothing tells when Steam is well again
    return step()


# -- what Steam has


def parsed(text: str) -> dict[str, Any]:
    """Return Valve's key values as nested dictionaries. https://developer.valvesoftware.com/wiki/KeyValues"""
    top: dict[str, Any] = {}
    stack, key = [top], ""
    for quoted, brace in re.findall(r'"((?:[^"\\]|\\.)*)"|([{}])', text):
        if brace == "{":
            stack[-1][key] = {}
            stack.append(stack[-1][key])
            key = ""
        elif brace == "}":
            if len(stack) > 1:
                stack.pop()
        elif key:
            stack[-1][key], key = quoted, ""
        else:
            key = quoted
    return top


def latest() -> tuple[str, int]:
    """Return Steam's current build and the bytes that it takes on Linux, 0 where Steam does not say. Raises OSError."""
    words = ("+login", "anonymous", "+app_info_update", "1", "+app_info_print", APP)
    said = _steamcmd(*words, silence=ASKING)
    depots = parsed(steamcmd_words.app_info("\n".join(said), APP)).get(APP, {}).get("depots", {})
    build = depots.get("branches", {}).get("public", {}).get("buildid", "")
    if not re.fullmatch(r"[0-9]{1,20}", build):
        raise TransientError(f"Steam does not say which build of {APP} is current; SteamCMD's log is {LOG}")
    size = 0
    for depot in depots.values():
        if isinstance(depot, dict) and depot.get("config", {}).get("oslist", "linux") == "linux":
            stated = depot.get("manifests", {}).get("public", {})
            text = stated.get("size", "0") if isinstance(stated, dict) else "0"
            size += int(text) if text.isdigit() else 0
    return build, size


# -- a build


def _size(path: str) -> int:
    return sum(status.st_blocks * 512 for _, _, status in filetree.walk(path)) if os.path.isdir(path) else 0


def _room(size: int) -> None:
    """Raise OSError where what is still missing of a build of that size has no place."""
    needed, free = size - _size(STAGE), shutil.disk_usage(layout.GAME).free
    if free < needed:
        raise OSError(
            f"the disk is too full: {gigabytes(needed)} are needed in {layout.GAME}, {gigabytes(free)} are free"
        )


def _shares_blocks(path: str) -> bool:
    """Tell whether this filesystem copies a file by sharing its blocks."""
    with filetree.beside(layout.GAME) as new:
        command = ["cp", "--reflink=always", path, new]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _lay_stage(size: int) -> None:
    """Have STAGE hold what is there of the build before; SteamCMD brings what differs."""
    base = f"{layout.RELEASES}/{builds.current()}"
    known = builds.current() and os.path.isfile(f"{base}/steamapps/appmanifest_{APP}.acf")
    if os.path.isdir(STAGE) or not known:
        _room(size)
        _own_directory(STAGE)
        return
    if not _shares_blocks(f"{base}/srcds_run"):
        _room(max(size, _size(base)))
    say(f"copying build {builds.current()} to begin with")
    with filetree.beside(layout.GAME) as new:
        filetree.copy([base], new)
        shutil.rmtree(f"{new}/.steam", ignore_errors=True)
        os.rename(new, STAGE)


def _install() -> None:
    # An anonymous login gets no Linux build before it got the Windows one: "Invalid platform" (since 2024-11-26).
    for platform in ("windows", "linux"):
        words = ("+force_install_dir", STAGE, "+login", "anonymous", "+@sSteamCmdForcePlatformType", platform)
        say(f"asking Steam for the files ({platform})")
        said = _steamcmd(*words, "+app_update", APP, "validate")
        if not any(f"Success! App '{APP}'" in line for line in said):
            raise TransientError(f"SteamCMD ended without a word of success; its log is {LOG}")


def fetch(size: int) -> str:
    """Bring Steam's current build into releases/, and return its name. Raises OSError or ValueError.

    What is there after a failure is where the next try goes on.
    """
    try:
        _lay_stage(size)
        with_retries(_install)
        return _take_stage()
    except TransientError:
        if os.path.lexists(MANIFEST):  # the next try looks at every file, whatever Steam's own notes say
            os.unlink(MANIFEST)
        raise
    except ValueError:
        filetree.run("rm", "--recursive", "--force", "--one-file-system", STAGE)  # the next try begins anew
        raise


def _take_stage() -> str:
    """Make a build of what SteamCMD left. Raises OSError or ValueError where it is none."""
    filetree.confine(STAGE)
    with open(MANIFEST, encoding="utf-8", errors="replace") as file:
        manifest: dict[str, str] = parsed(file.read()).get("AppState", {})
    build = manifest.get("buildid", "")
    # 4 is StateFullyInstalled.
    if manifest.get("StateFlags") != "4" or not re.fullmatch(r"[0-9]{1,20}", build):
        raise OSError(f"Steam's manifest says neither a build nor that it is whole: {MANIFEST}")
    if os.path.isdir(f"{layout.RELEASES}/{build}"):
        shutil.rmtree(STAGE)
        return build
    # Beside the game, for of all that is on the host a server sees its overlay alone. Not by root, who could read and
    # write through links of SteamCMD's anything.
    client = f"{PROGRAM}/linux32/steamclient.so"
    if os.path.isfile(client):
        copy = ["install", "-D", "--mode=644", client, f"{STAGE}/{builds.CLIENT}"]
        subprocess.run(copy, check=True, cwd="/", **_as_left4me())
    builds.finish(STAGE)
    filetree.own(STAGE)
    builds.forget(build)
    builds.switch(layout.CANDIDATE, f"{layout.RELEASES}/{build}")
    os.sync()
    os.rename(STAGE, f"{layout.RELEASES}/{build}")
    instance.sync_directory(layout.RELEASES)
    return build


def prepare() -> None:
    """Have SteamCMD and its directories on the host."""
    for path in gc.left_in(layout.GAME, layout.VERDICTS):
        filetree.remove(path)
    _own_directory(HOME)
    if os.path.exists(LOG):
        os.replace(LOG, f"{LOG}.1")
    _bring_program()
    # What it remembers of an earlier day it would print again. Not before each try: what Steam says may come too late
    # for the command that asked, and only the next one prints it.
    cache = f"{HOME}/Steam/appcache/appinfo.vdf"
    subprocess.run(["rm", "--force", cache, f"{PROGRAM}/appcache/appinfo.vdf"], check=True, **_as_left4me())


def update() -> None:
    """Bring Steam's build, try it, and make it current unless data hold another. Raises OSError or ValueError."""
    if (source := builds.game_settings()["source"]) != "steamcmd":
        raise ValueError(f"the data have the game from {source}, not from Steam")
    with instance.locked(layout.VERDICTS):
        prepare()
        say("asking Steam which build is current")
        build, size = with_retries(latest, WITHIN)
        if (held := builds.game_settings()["build"]) and held not in (build, *builds.names()):
            raise ValueError(f"game.build: {held} is not to be had from Steam any more, which has {build}")
        if build == builds.current():
            say(f"build {build} is current, and Steam has no other")
        elif gc.verdict(build) not in ("", gc.GOOD):
            say(f"build {build} is left alone: {gc.verdict(build)}; `l4d2ctl game update` takes it up again")
        else:
            if build not in builds.names():
                say(f"Steam has build {build}, {gigabytes(size)}; current here is {builds.current() or 'none'}")
                build = fetch(size)
            say(f"trying build {build}")
            builds.prove(build)
            if builds.game_settings()["build"] in (None, build):
                builds.switch(layout.INSTALLATION, f"{layout.RELEASES}/{build}")
                say(f"build {build} is current; running servers keep theirs until they are restarted")
            else:
                say(
                    f"build {build} is ready; the data hold this host at {builds.game_settings()['build']} (game.build)"
                )
        builds.follow_restarts()
        builds.prune()


def check() -> tuple[str, str]:
    """Return the current build here and Steam's; brings nothing but SteamCMD. Raises OSError or ValueError."""
    with instance.locked(layout.VERDICTS, waits=False) as free:
        if not free:
            raise OSError("an update is at work: l4d2ctl game update follows it")
        prepare()
        return builds.current(), with_retries(latest, WITHIN)[0]


def main(words: list[str]) -> int:
    """Do what the command line says; return the exit code."""
    if words not in (["update"], ["check"]):
        print("usage: left4me-game update|check", file=sys.stderr)
        return 2
    updates = words == ["update"]
    try:
        if updates:
            with suppress(OSError):  # on a full disk the update goes on to where it can say so
                builds.note_failure("it was interrupted")
            update()
            builds.forget_failure()
        else:
            print(" ".join(each or "none" for each in check()))
    except (OSError, ValueError, subprocess.CalledProcessError, instance.Failed) as error:
        why = " ".join(str(error).split())
        print(f"failed: {why}", file=sys.stderr)
        if updates:
            with suppress(OSError):  # the journal has it
                builds.note_failure(why)
        return 1
    return 0
