"""Check a build of the game, smoke-test it, and only then make it current.

A build is a directory in releases/. The smoke test starts instances of the servers' own unit, so that it uses the same
sandbox, overlay helper and stop as the servers.
"""

from __future__ import annotations

import glob
import json
import os
import socket
import time
from typing import Any

from left4me_host import a2s, filetree, gc, instance, jobs, layout

ANSWER = 180  # seconds for a test instance to answer; the real game takes half a minute on a slow disk
CLIENT = ".steam/sdk32/steamclient.so"


def game_settings() -> dict[str, Any]:
    """Return the game's settings, as written by the deploy (test_instances() in left4me/manifest.py)."""
    with open(layout.GAME_SETTINGS, encoding="utf-8") as file:
        found: dict[str, Any] = json.load(file)
    return found


def require_steam() -> None:
    """Raise Failed if the game does not come from Steam."""
    if (source := game_settings()["source"]) != "steamcmd":
        raise instance.Failed(f"`game.source` of this host is {source}, not steamcmd: deploy to update the game")


def current() -> str:
    """Return the name of the current build; empty if no build is current or its directory is missing."""
    return os.path.basename(os.readlink(layout.INSTALLATION)) if os.path.isdir(layout.INSTALLATION) else ""


def names() -> list[str]:
    """Return the names of the builds on this host, latest first."""
    builds = [each for each in os.scandir(layout.RELEASES) if each.name[0] != "."]
    return [each.name for each in sorted(builds, key=lambda each: each.stat().st_ctime_ns, reverse=True)]


def switch(link: str, version: str) -> None:
    """Point a symlink at a version, atomically."""
    with filetree.beside(os.path.dirname(link)) as new:
        os.symlink(os.path.relpath(version, os.path.dirname(link)), new)
        with instance.locked(layout.RELEASES):  # left4me-overlay shares this lock until it has mounted
            os.rename(new, link)
    instance.sync_directory(os.path.dirname(link))


def _write(path: str, text: str) -> None:
    with filetree.beside(os.path.dirname(path)) as new:
        # For root alone: a result may quote a server's log. A file name in it need not be UTF-8.
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", errors="backslashreplace") as file:
            file.write(f"{text}\n")
            file.flush()
            os.fsync(file.fileno())
        os.rename(new, path)
    instance.sync_directory(os.path.dirname(path))


def _remove(path: str) -> None:
    if os.path.lexists(path):
        os.unlink(path)
        instance.sync_directory(os.path.dirname(path))


def record_result(build: str, text: str) -> None:
    """Record the result of a build's smoke test: gc.GOOD, gc.LEFT…, or why it failed."""
    _write(f"{layout.VERDICTS}/{build}", text)


def forget_result(build: str) -> None:
    """Remove the result of a build's smoke test, so that the test runs again."""
    _remove(f"{layout.VERDICTS}/{build}")


def note_failure(why: str) -> None:
    """Record why an update from Steam failed, and for which `game.build`. Raises OSError."""
    _write(layout.FAILED_UPDATE, json.dumps({"build": game_settings()["build"], "why": why}))


def forget_failure() -> None:
    _remove(layout.FAILED_UPDATE)


def failure() -> str:
    """Return when and why the last update from Steam failed, in one line.

    Empty if it succeeded, or if `game.build` has changed since.
    """
    try:
        with open(layout.FAILED_UPDATE, encoding="utf-8") as file:
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(os.fstat(file.fileno()).st_mtime))
            record = json.load(file)
    except FileNotFoundError:
        return ""
    if record["build"] != game_settings()["build"]:
        return ""
    return instance.plain(f"the last update failed on {when}: {record['why']}")


UPDATE = "game update"
"""The verb of an update's job."""
_UPDATE_JOB = f"{layout.RUN}/update"


def note_job(number: int) -> None:
    """Note the job of the update that runs or that starts next. Raises OSError."""
    os.makedirs(layout.RUN, exist_ok=True)
    with open(_UPDATE_JOB, "w", encoding="ascii") as file:
        file.write(str(number))


def noted_job() -> int:
    """Return the job of the running update; 0 if it has none. The note may be of an earlier update."""
    try:
        with open(_UPDATE_JOB, encoding="ascii", errors="replace") as file:
            text = file.read(10)
    except FileNotFoundError:
        return 0
    job = jobs.read(int(text)) if text.isdecimal() else None
    return job["job"] if job and job["verb"] == UPDATE and job["result"] == jobs.RUNNING else 0


def finish(path: str) -> None:
    """Check that a directory has an L4D2 server for Linux, and link Steam's client into it.

    Raises ValueError, or OSError if nothing there can be executed.

    A server sees only its overlay, so the client must be inside the game's directory.
    """
    for name in ("srcds_run", "srcds_linux"):
        if not os.access(f"{path}/{name}", os.X_OK):
            if os.path.isfile(f"{path}/{name}") and os.statvfs(path).f_flag & os.ST_NOEXEC:
                raise OSError(f"{layout.VAR} is on a filesystem that is mounted noexec: remount it with exec")
            raise ValueError(f"no executable {name}: is this an L4D2 server?")
    for folder in ("bin", "left4dead2/bin"):
        libraries = glob.glob(f"{path}/{folder}/*.so")
        if not libraries:
            raise ValueError(f"no libraries in {folder}: is this an L4D2 server for Linux?")
        for library in libraries:
            if not _is_elf(library):
                raise ValueError(f"{library.removeprefix(path + '/')} is not a library: the download is incomplete")
    # Keep an existing .steam: in another tool's installation it may be a symlink to anywhere.
    if not os.path.lexists(f"{path}/.steam") and os.path.isfile(f"{path}/bin/steamclient.so"):
        os.makedirs(os.path.dirname(f"{path}/{CLIENT}"))
        os.symlink("../../bin/steamclient.so", f"{path}/{CLIENT}")


def _is_elf(path: str) -> bool:
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return file.read(4) == b"\x7fELF"


def smoke_test(build: str) -> None:
    """Smoke-test a build unless it has passed before: without layers, then with the layers of `trial_server`.

    Raises ValueError if the build fails, OSError if something else prevents the test.
    """
    if not os.path.isdir(f"{layout.RELEASES}/{build}"):
        raise ValueError(f"build {build} is not on this host; l4d2ctl game status lists the builds")
    if gc.smoke_test_result(build) != gc.GOOD:
        switch(layout.CANDIDATE, f"{layout.RELEASES}/{build}")
        modded = game_settings()["trial_server"]
        tests = [(layout.BARE, "without layers"), (layout.MODDED, f"with the layers of server {modded}")]
        for test, how in tests if modded else tests[:1]:
            try:
                _run(test)
            except ValueError as error:
                reason = f"build {build} failed its smoke test {how}: {error}"
                record_result(build, reason)
                raise ValueError(reason) from None
        record_result(build, gc.GOOD)
    if os.path.islink(layout.CANDIDATE):
        os.unlink(layout.CANDIDATE)


def _run(test: str) -> None:
    """Start a test instance, wait for its answer and stop it.

    Raises ValueError if the build is the reason for a failure, OSError otherwise.
    """
    unit = layout.unit(test)
    instance.Systemctl("stop", unit).wait()  # an interrupted run may have left it running
    try:
        # Remove the files of the previous smoke test. rm, because a game may nest them too deep for shutil.rmtree.
        with instance.unmounted(test):
            for entry in os.scandir(f"{layout.runtime(test)}/upper"):
                filetree.run("rm", "--recursive", "--force", "--one-file-system", "--", entry.path)
    except instance.Failed as failed:
        raise OSError(str(failed)) from None
    environment = instance.environment(test)
    address = instance.address_of(environment)
    assert address
    _require_free(environment["LEFT4ME_ADDRESS"], address[1])
    instance.Systemctl("reset-failed", unit).wait()
    try:
        code, _output = instance.Systemctl("start", unit).wait()
        if code or not _answers(test, address):
            result = instance.properties([test], "Result")[test]["Result"]
            how = f"no answer within {ANSWER} s" if result == "success" else f"it ended with {result}"
            why = f"{how}; its log ends with: {' / '.join(instance.journal(unit, 4))}"
            instance.Systemctl("stop", unit).wait()
            if instance.noted(test):
                raise OSError(f"{why}; the overlay of the smoke test is busy: l4d2ctl holders {test}")
            raise ValueError(why)
    finally:
        instance.Systemctl("stop", unit).wait()
        instance.Systemctl("reset-failed", unit).wait()


def _require_free(address: str, port: int) -> None:
    """Raise OSError if another program holds the trial port: the game would end, and the build would be blamed."""
    for kind, name in ((socket.SOCK_DGRAM, "UDP"), (socket.SOCK_STREAM, "TCP")):
        with socket.socket(socket.AF_INET, kind) as attempt:
            if kind == socket.SOCK_STREAM:  # connections of an earlier test may still wait for their end
                attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                attempt.bind((address, port))
            except OSError as error:
                why = f"trial_port {port} cannot be used ({name}: {error.strerror})"
                raise OSError(f"{why}: end what holds it, or set another `trial_port`") from None


def _answers(test: str, address: tuple[str, int]) -> bool:
    end = time.monotonic() + ANSWER
    while time.monotonic() < end:
        answered = a2s.ask({test: address})
        if instance.properties([test], "ActiveState")[test]["ActiveState"] != "active":
            return False
        if answered:
            return True
        time.sleep(0.1)  # the game sends no event to wait for
    return False


def follow_restarts() -> None:
    """Start the unit that restarts servers as their `restart` says; do not wait for it."""
    instance.Systemctl("start", "--no-block", "left4me-restart.service").wait()
