"""Update the game from Steam: download builds of app 222860 with SteamCMD.

SteamCMD runs as the user left4me and writes only below layout.GAME; root takes over a complete build.
https://developer.valvesoftware.com/wiki/SteamCMD
"""

from __future__ import annotations

import math
import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from left4me_host import builds, filetree, gc, instance, jobs, layout, steamcmd_words, versions
from left4me_host.source_kinds import archive

APP = "222860"
PROGRAM = f"{layout.GAME}/steamcmd"
HOME = f"{layout.GAME}/home"
STAGE = f"{layout.GAME}/stage"
LOG = f"{layout.GAME}/steamcmd.log"
MANIFEST = f"{STAGE}/steamapps/appmanifest_{APP}.acf"
PAUSES = (2, 10, 30, 60)
"""Seconds before each retry: Steam's content servers often fail for a moment."""
SILENCE = 1800
"""Seconds without output after which SteamCMD is killed: it verifies 9 GB on a slow disk without any output."""
ASKING = 60
"""Like SILENCE, but for a query, which downloads nothing."""
WITHIN = 120
"""Seconds after which a query is no longer retried."""
EVERY = 5
"""Seconds between two lines of progress."""
_PROGRESS = re.compile(r"Update state \(0x[0-9a-f]+\) (.*), progress: ([0-9.]+) \((\d+) / (\d+)\)")
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_LONGEST = 1 << 16
T = TypeVar("T")
_downloaded: list[str] = []
"""Not empty after this process has downloaded SteamCMD: a second download would not help."""


class TransientError(OSError):
    """An error after which a retry may succeed."""


say = partial(print, flush=True)  # `l4d2ctl game update` streams it


def gigabytes(size: float) -> str:
    """Return a size in bytes as GB or MB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _as_left4me() -> dict[str, Any]:
    uid, gid = filetree.owner()
    return {"user": uid, "group": gid, "extra_groups": []}


def _own_directory(path: str) -> None:
    os.makedirs(path, 0o755, exist_ok=True)
    os.chown(path, *filetree.owner())


def _download_program() -> None:
    """Download SteamCMD if it is missing; SteamCMD then updates itself. Raises OSError or ValueError."""
    if os.path.isfile(f"{PROGRAM}/steamcmd.sh"):
        return
    url, sha256 = builds.game_settings()["url"], builds.game_settings()["sha256"]
    say(f"downloading SteamCMD from {archive.shown(url)}")
    with filetree.beside(layout.GAME) as new:
        os.mkdir(new, 0o755)
        archive.unpack_from(url, sha256, 0, new)
        if not os.access(f"{new}/steamcmd.sh", os.X_OK):
            raise ValueError(f"{archive.shown(url)} contains no executable steamcmd.sh: check `steamcmd_url`")
        filetree.confine(new)
        filetree.own(new)
        os.sync()
        if os.path.lexists(PROGRAM):
            filetree.remove(PROGRAM)
        os.rename(new, PROGRAM)
        _downloaded.append(PROGRAM)


def _lines(words: tuple[str, ...], silence: float) -> Iterator[str]:
    """Run SteamCMD and yield its output line by line. Raises TransientError after `silence` seconds without output."""
    # A terminal, because SteamCMD buffers output to a pipe until it ends.
    leader, terminal = os.openpty()
    environment = {"HOME": HOME, "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "TERM": "dumb"}
    process = subprocess.Popen(
        # Not through a symlink: SteamCMD looks for its other files beside the path that starts it.
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
            except OSError:  # EIO: the last process that had the terminal open has closed it
                chunk = b""
            *whole, rest = (rest[-_LONGEST:] + chunk).replace(b"\r", b"\n").split(b"\n")
            for line in [*whole, *([] if chunk else [rest])]:
                yield _COLOUR.sub("", line.decode("utf-8", "replace")).strip()
            if not chunk:
                return
        raise TransientError(f"SteamCMD printed nothing for {silence} s")
    finally:
        os.close(leader)
        # Root reads SteamCMD's files next: no process of left4me may survive, whatever its session.
        subprocess.run(["sh", "-c", "kill -KILL -1"], check=False, stderr=subprocess.DEVNULL, **_as_left4me())
        process.wait()


def _steamcmd(*words: str, silence: float = SILENCE) -> list[str]:
    """Run SteamCMD, write its log, print its progress and return its other output.

    Raises OSError if SteamCMD reports an error, TransientError if a retry may succeed.
    """
    output, last = [], 0.0
    _download_program()
    with open(LOG, "a", encoding="utf-8") as log:
        log.write(f"== {time.strftime('%Y-%m-%d %H:%M:%S %Z')} steamcmd.sh {' '.join(words)}\n")
        for line in filter(None, _lines(words, silence)):
            log.write(f"{line}\n")
            log.flush()
            found = _PROGRESS.search(line)
            if not found:
                output.append(line)
            elif int(found[4]) and time.monotonic() - last >= EVERY:
                last = time.monotonic()
                done, whole = int(found[3]), int(found[4])
                say(f"{found[1]}: {found[2]} % ({gigabytes(done)} of {gigabytes(whole)})")
    if not any("Loading Steam API" in line for line in output):
        why = steamcmd_words.startup_reason(_bootstrap_log()) or " / ".join(output[-3:])
        if not _downloaded:  # a SteamCMD that was killed during its self-update does not repair itself
            filetree.remove(PROGRAM)
        raise TransientError(f"SteamCMD did not start: {why}; see {LOG}")
    errors = steamcmd_words.errors(output)
    if final := next(filter(steamcmd_words.is_final, errors), ""):
        free = f": {gigabytes(shutil.disk_usage(layout.GAME).free)} free in {layout.GAME}"
        more = free if steamcmd_words.is_full(final) else ""
        raise OSError(f"{steamcmd_words.meaning(final, more)}; see {LOG}")
    if errors:
        raise TransientError(f"{steamcmd_words.meaning(errors[0])}; see {LOG}")
    return output


def _bootstrap_log() -> str:
    """Return the end of SteamCMD's bootstrap log, read as left4me: its symlinks may lead anywhere."""
    paths = [f"{HOME}/Steam/logs/bootstrap_log.txt", f"{PROGRAM}/logs/bootstrap_log.txt"]
    command = ["tail", "--quiet", "--lines=40", "--", *paths]
    output: bytes = subprocess.run(command, capture_output=True, check=False, **_as_left4me()).stdout
    return output[-_LONGEST:].decode("utf-8", "replace")


def with_retries(step: Callable[[], T], within: float = math.inf) -> T:
    """Call `step`; retry after a TransientError, with the pauses of PAUSES, for `within` seconds at most."""
    begun = time.monotonic()
    for pause in PAUSES:
        try:
            return step()
        except TransientError as error:
            if time.monotonic() + pause - begun > within:
                raise
            say(f"{error}; retrying in {pause} s")
            time.sleep(pause)  # Steam sends no event to wait for
    return step()


# -- what Steam has


def latest() -> tuple[str, int]:
    """Return Steam's current build and its size on Linux in bytes, 0 if Steam reports none. Raises OSError."""
    words = ("+login", "anonymous", "+app_info_update", "1", "+app_info_print", APP)
    output = "\n".join(_steamcmd(*words, silence=ASKING))
    depots = steamcmd_words.app_info(output, APP).get("depots", {})
    build = depots.get("branches", {}).get("public", {}).get("buildid", "")
    if not re.fullmatch(r"[0-9]{1,20}", build):
        raise TransientError(f"Steam did not report the current build of app {APP}; see {LOG}")
    size = 0
    for depot in depots.values():
        if isinstance(depot, dict) and depot.get("config", {}).get("oslist", "linux") == "linux":
            manifest = depot.get("manifests", {}).get("public", {})
            text = manifest.get("size", "0") if isinstance(manifest, dict) else "0"
            size += int(text) if text.isdigit() else 0
    return build, size


# -- a build


def _size(path: str) -> int:
    return sum(status.st_blocks * 512 for _, _, status in filetree.walk(path)) if os.path.isdir(path) else 0


def _check_space(size: int) -> None:
    """Raise OSError if the rest of a build of `size` bytes does not fit on the disk."""
    needed, free = size - _size(STAGE), shutil.disk_usage(layout.GAME).free
    if free < needed:
        raise OSError(f"the disk is too full: {layout.GAME} needs {gigabytes(needed)} and has {gigabytes(free)} free")


def _supports_reflinks(path: str) -> bool:
    with filetree.beside(layout.GAME) as new:
        command = ["cp", "--reflink=always", path, new]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _prepare_stage(size: int) -> None:
    """Fill STAGE with a copy of the current build, so that SteamCMD downloads only the difference."""
    base = f"{layout.RELEASES}/{builds.current()}"
    known = builds.current() and os.path.isfile(f"{base}/steamapps/appmanifest_{APP}.acf")
    if os.path.isdir(STAGE) or not known:
        _check_space(size)
        _own_directory(STAGE)
        return
    if not _supports_reflinks(f"{base}/srcds_run"):
        _check_space(max(size, _size(base)))
    say(f"copying build {builds.current()} as the base of the update")
    with filetree.beside(layout.GAME) as new:
        filetree.copy([base], new)
        shutil.rmtree(f"{new}/.steam", ignore_errors=True)
        os.rename(new, STAGE)


def _install() -> None:
    # Without the Windows build first, an anonymous login gets "Invalid platform" for Linux (since 2024-11-26).
    for platform in ("windows", "linux"):
        words = ("+force_install_dir", STAGE, "+login", "anonymous", "+@sSteamCmdForcePlatformType", platform)
        say(f"downloading the {platform} files from Steam")
        output = _steamcmd(*words, "+app_update", APP, "validate")
        if not any(f"Success! App '{APP}'" in line for line in output):
            raise TransientError(f"SteamCMD ended without reporting success; see {LOG}")


def fetch(size: int) -> str:
    """Download Steam's current build into releases/ and return its name. Raises OSError or ValueError.

    After an OSError STAGE is kept, and the next update resumes the download.
    """
    try:
        _prepare_stage(size)
        with_retries(_install)
        return _release_stage()
    except TransientError:
        if os.path.lexists(MANIFEST):  # without it SteamCMD verifies every file
            os.unlink(MANIFEST)
        raise
    except ValueError:
        filetree.run("rm", "--recursive", "--force", "--one-file-system", STAGE)
        raise


def _release_stage() -> str:
    """Move STAGE to releases/ and return the build's name. Raises OSError or ValueError if it is not a build."""
    filetree.confine(STAGE)
    with open(MANIFEST, encoding="utf-8", errors="replace") as file:
        manifest: dict[str, str] = steamcmd_words.parsed(file.read()).get("AppState", {})
    build = manifest.get("buildid", "")
    # 4 is StateFullyInstalled.
    if manifest.get("StateFlags") != "4" or not re.fullmatch(r"[0-9]{1,20}", build):
        raise OSError(f"the download is incomplete according to {MANIFEST}: run `l4d2ctl game update` again")
    if os.path.isdir(f"{layout.RELEASES}/{build}"):
        shutil.rmtree(STAGE)
        return build
    # Copy the client into the build, because a server sees only its overlay. Copy as left4me, because SteamCMD's
    # symlinks could lead root anywhere.
    client = f"{PROGRAM}/linux32/steamclient.so"
    if os.path.isfile(client):
        copy = ["install", "-D", "--mode=644", client, f"{STAGE}/{builds.CLIENT}"]
        subprocess.run(copy, check=True, cwd="/", **_as_left4me())
    builds.finish(STAGE)
    filetree.own(STAGE)
    builds.forget_result(build)
    builds.switch(layout.CANDIDATE, f"{layout.RELEASES}/{build}")
    os.sync()
    os.rename(STAGE, f"{layout.RELEASES}/{build}")
    instance.sync_directory(layout.RELEASES)
    return build


def prepare() -> None:
    """Install SteamCMD and its directories, and remove stale temporary directories."""
    for path in gc.stale_in(layout.GAME, layout.VERDICTS):
        filetree.remove(path)
    _own_directory(HOME)
    if os.path.exists(LOG):
        os.replace(LOG, f"{LOG}.1")
    _download_program()
    # Remove the cache, or app_info_print would print an old answer. Once per update, not before each retry: Steam's
    # answer may arrive too late for the command that asked, and then the next command prints it from the cache.
    cache = f"{HOME}/Steam/appcache/appinfo.vdf"
    subprocess.run(["rm", "--force", cache, f"{PROGRAM}/appcache/appinfo.vdf"], check=True, **_as_left4me())


def update() -> str:
    """Download Steam's build, smoke-test it, and make it current unless `game.build` names another one.

    Returns why Steam's build is skipped after an earlier smoke test; empty otherwise. Raises OSError, ValueError or
    Failed.
    """
    failed_before = ""
    builds.require_steam()
    with instance.locked(layout.VERDICTS):
        prepare()
        say("asking Steam for the current build")
        build, size = with_retries(latest, WITHIN)
        if (declared := builds.game_settings()["build"]) and declared not in (build, *builds.names()):
            raise ValueError(f"game.build: {declared} is not available from Steam, which has {build}")
        if build == builds.current():
            say(f"build {build} is current, here and at Steam")
        elif (result := gc.smoke_test_result(build)) not in ("", gc.GOOD):
            say(f"skipping build {build}: {result}; `l4d2ctl game update` tests it again")
            failed_before = "" if result.startswith(gc.LEFT) else result
        else:
            if build not in builds.names():
                say(f"Steam has build {build}, {gigabytes(size)}; current here is {builds.current() or 'none'}")
                build = fetch(size)
            say(f"smoke test of build {build}")
            builds.smoke_test(build)
            declared = builds.game_settings()["build"]  # a deploy may have changed it meanwhile
            if declared in (None, build):
                builds.switch(layout.INSTALLATION, f"{layout.RELEASES}/{build}")
                say(f"build {build} is current; running servers use it after a restart")
            else:
                say(f"build {build} is ready; game.build keeps this host at {declared}")
        builds.follow_restarts()
        versions.remove_unused(lambda: gc.builds(gc.mounted()), in_deploy=False)
    return failed_before


def check() -> tuple[str, str]:
    """Return the current build here and Steam's; downloads only SteamCMD. Raises OSError or ValueError."""
    with instance.locked(layout.VERDICTS, waits=False) as free:
        if not free:
            raise OSError("an update is running; follow it with `l4d2ctl game update`")
        prepare()
        return builds.current(), with_retries(latest, WITHIN)[0]


def _job() -> jobs.Job:
    """Return the job that `l4d2ctl game update` began for this process, or a new one."""
    job = jobs.Job.take_over(builds.noted_job(), builds.UPDATE)
    if not job:
        job = jobs.Job(builds.UPDATE, [], builds.UPDATE, who="timer" if "TRIGGER_UNIT" in os.environ else "")
        job.begin()
        with suppress(OSError):  # then nobody can follow it
            builds.note_job(job.number)
    job.announces = False  # l4d2ctl does; here it would be a line of the journal that l4d2ctl prints too
    return job


def _recorded_update() -> None:
    """Update as a job, and record why it failed. Raises Failed."""
    with jobs.recorded(_job(), "failed"):
        with suppress(OSError):  # a full disk: the update itself reports it
            builds.note_failure("interrupted")
        try:
            skipped = update()
        except (OSError, ValueError, subprocess.CalledProcessError, instance.Failed) as error:
            why = " ".join(str(error).split())
            with suppress(OSError):  # the job and the journal have the reason too
                builds.note_failure(why)
            raise instance.Failed(why) from None
        if skipped:
            builds.note_failure(skipped)
        else:
            builds.forget_failure()


def main(words: list[str]) -> int:
    if words not in (["update"], ["check"]):
        print("usage: left4me-game update|check", file=sys.stderr)
        return 2
    try:
        if words == ["update"]:
            _recorded_update()
        else:
            print(" ".join(each or "none" for each in check()))
    except (OSError, ValueError, subprocess.CalledProcessError, instance.Failed) as error:
        if why := " ".join(str(error).split()):
            print(f"failed: {why}", file=sys.stderr)
        return 1
    return 0
