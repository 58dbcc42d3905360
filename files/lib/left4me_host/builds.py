"""What becomes of a build of the game: it is looked at, tried, and only then made current.

A build is a directory in releases/. Its trials are instances of the servers' own unit, so that the sandbox, the helper
and the stop that try it are those that servers will have.
"""

from __future__ import annotations

import glob
import json
import os
import secrets
import time
from typing import Any

from left4me_host import a2s, filetree, gc, instance, layout

ANSWER = 180  # seconds for a build to answer; the real game takes half a minute on a slow disk
CLIENT = ".steam/sdk32/steamclient.so"


def game_settings() -> dict[str, Any]:
    """Return what the data say of the game."""
    with open(layout.GAME_SETTINGS, encoding="utf-8") as file:
        found: dict[str, Any] = json.load(file)
    return found


def current() -> str:
    """Return the name of the current build; empty where there is none yet, or where it is not there any more."""
    return os.path.basename(os.readlink(layout.INSTALLATION)) if os.path.isdir(layout.INSTALLATION) else ""


def names() -> list[str]:
    """Return the builds on this host, the latest first."""
    there = [each for each in os.scandir(layout.RELEASES) if each.name[0] != "."]
    return [each.name for each in sorted(there, key=lambda each: each.stat().st_ctime_ns, reverse=True)]


def switch(link: str, version: str) -> None:
    """Make a version current: have a symlink name it, by one rename."""
    with filetree.beside(os.path.dirname(link)) as new:
        os.symlink(os.path.relpath(version, os.path.dirname(link)), new)
        with instance.locked(layout.RELEASES):  # left4me-overlay shares it from reading the symlink to the mount
            os.rename(new, link)
    instance.sync_directory(os.path.dirname(link))


def _write(path: str, text: str) -> None:
    with filetree.beside(os.path.dirname(path)) as new:
        with open(new, "w", encoding="utf-8") as file:
            file.write(f"{text}\n")
            file.flush()
            os.fsync(file.fileno())
        os.rename(new, path)
    instance.sync_directory(os.path.dirname(path))


def _remove(path: str) -> None:
    if os.path.lexists(path):
        os.unlink(path)
        instance.sync_directory(os.path.dirname(path))


def note(build: str, text: str) -> None:
    """Write down what became of a build."""
    _write(f"{layout.VERDICTS}/{build}", text)


def forget(build: str) -> None:
    """Let a build that is brought anew be tried anew."""
    _remove(f"{layout.VERDICTS}/{build}")


def note_failure(why: str) -> None:
    """Record why an update from Steam has failed. Raises OSError."""
    _write(layout.FAILED_UPDATE, why)


def forget_failure() -> None:
    """Remove that record: an update went well."""
    _remove(layout.FAILED_UPDATE)


def failure() -> str:
    """Return when and why the last update from Steam has failed, in one line; empty where it has not."""
    try:
        with open(layout.FAILED_UPDATE, encoding="utf-8") as file:
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(os.fstat(file.fileno()).st_mtime))
            return f"the last update failed on {when}: {file.read().strip()}"
    except FileNotFoundError:
        return ""


def finish(path: str) -> None:
    """Look whether a tree is an installation, and lead the game to Steam's client. Raises ValueError.

    A server sees its overlay alone, so that the client has to be in there: the installation brings one of its own.
    """
    for name in ("srcds_run", "srcds_linux"):
        if not os.access(f"{path}/{name}", os.X_OK):
            if os.path.isfile(f"{path}/{name}") and os.statvfs(path).f_flag & os.ST_NOEXEC:
                raise ValueError(f"{layout.VAR} is on a filesystem that is mounted noexec: remount it with exec")
            raise ValueError(f"it holds no {name} that can be executed: is it an L4D2 server?")
    for folder in ("bin", "left4dead2/bin"):
        libraries = glob.glob(f"{path}/{folder}/*.so")
        if not libraries:
            raise ValueError(f"it holds no libraries in {folder}: is it an L4D2 server for Linux?")
        for library in libraries:
            if not _is_elf(library):
                raise ValueError(f"{library.removeprefix(path + '/')} is no library: the download is not whole")
    # An installation of another tool may have links in it that lead anywhere.
    if not os.path.lexists(f"{path}/.steam") and os.path.isfile(f"{path}/bin/steamclient.so"):
        os.makedirs(os.path.dirname(f"{path}/{CLIENT}"))
        os.symlink("../../bin/steamclient.so", f"{path}/{CLIENT}")


def _is_elf(path: str) -> bool:
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return file.read(4) == b"\x7fELF"


def prove(build: str) -> None:
    """Try a build, bare and with the layers of the server that data names. Raises ValueError with the reason."""
    if not os.path.isdir(f"{layout.RELEASES}/{build}"):
        raise ValueError(f"build {build} is not on this host")
    if gc.verdict(build) != gc.GOOD:
        switch(layout.CANDIDATE, f"{layout.RELEASES}/{build}")
        _try_both(build)
        note(build, gc.GOOD)
    if os.path.islink(layout.CANDIDATE):
        os.unlink(layout.CANDIDATE)


def _try_both(build: str) -> None:
    modded = game_settings()["trial_server"]
    for trial, how in ((layout.BARE, "bare"), (layout.MODDED, f"with the layers of server {modded}")):
        if trial == layout.BARE or modded:
            try:
                _try(trial)
            except ValueError as error:
                reason = f"build {build} does not run {how}: {error}"
                note(build, reason)
                raise ValueError(reason) from None


def _try(trial: str) -> None:
    """Start a test instance, wait for its answer and stop it.

    Raises ValueError where it does not answer, OSError where that would not tell of the build.
    """
    unit = layout.unit(trial)
    instance.Systemctl("stop", unit).wait()  # what a killed run left
    try:
        with instance.unmounted(trial):  # of the trial before, as deep as it made it
            for entry in os.scandir(f"{layout.runtime(trial)}/upper"):
                filetree.run("rm", "--recursive", "--force", "--one-file-system", "--", entry.path)
    except instance.Failed as failed:
        raise OSError(str(failed)) from None
    address = instance.address_of(instance.environment(trial))
    assert address
    if a2s.ask({trial: address}):
        raise OSError(f"somebody else answers on trial_port, {address[1]}: set another one in the data")
    instance.Systemctl("reset-failed", unit).wait()
    try:
        code, _words = instance.Systemctl("start", unit).wait()
        if code or not _answers(trial, address):
            result = instance.properties([trial], "Result")[trial]["Result"]
            how = f"it gave no answer within {ANSWER} s" if result == "success" else f"it ended with {result}"
            why = f"{how}; its log ends with: {' / '.join(instance.journal(unit, 4))}"
            instance.Systemctl("stop", unit).wait()
            if instance.noted(trial):
                raise OSError(f"the trial before is in use still, l4d2ctl holders {trial} tells by whom: {why}")
            raise ValueError(why)
    finally:
        instance.Systemctl("stop", unit).wait()
        instance.Systemctl("reset-failed", unit).wait()


def _answers(trial: str, address: tuple[str, int]) -> bool:
    end = time.monotonic() + ANSWER
    while time.monotonic() < end:
        answered = a2s.ask({trial: address})
        if instance.properties([trial], "ActiveState")[trial]["ActiveState"] != "active":
            return False
        if answered:
            return True
        time.sleep(0.1)  # nothing tells when a port begins to answer
    return False


def prune() -> None:
    """Remove the builds that nothing uses; whoever calls this is alone. A deploy that is at work does it itself."""
    with instance.between_deploys() as free:
        if not free:
            return
        with instance.locked(layout.RELEASES):  # none is mounted between the look and the renaming
            gone = {path: f"{layout.GAME}/.gone-{secrets.token_hex(8)}" for path in gc.builds(gc.mounted())}
            for path, aside in gone.items():
                os.rename(path, aside)
    for aside in gone.values():  # no deploy waits for that: 9 GB on a slow disk take a while
        filetree.remove(aside)


def follow_restarts() -> None:
    """Have the servers restarted that an update waits for, each as its data say; nobody waits for it."""
    instance.Systemctl("start", "--no-block", "left4me-restart.service").wait()
