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

from content import tree, unused
from l4d2ctl import a2s
from l4d2ctl import server as one

VAR = "/var/lib/left4me"
GAME = f"{VAR}/game"
RELEASES = f"{VAR}/releases"
INSTALLATION = f"{VAR}/installation"
CANDIDATE = f"{VAR}/candidate"
BARE, MODDED = "_bare", "_modded"
ANSWER = 180  # seconds for a build to answer; the real game takes half a minute on a slow disk
VERDICTS = f"{GAME}/verdicts"  # whoever has its lock is the only one who brings, tries or removes builds
CLIENT = ".steam/sdk32/steamclient.so"


def told() -> dict[str, Any]:
    """Return what the data say of the game."""
    with open("/etc/left4me/game", encoding="utf-8") as file:
        found: dict[str, Any] = json.load(file)
    return found


def current() -> str:
    """Return the name of the current build; empty where there is none yet."""
    return os.path.basename(os.readlink(INSTALLATION)) if os.path.islink(INSTALLATION) else ""


def names() -> list[str]:
    """Return the builds on this host, the latest first."""
    there = [each for each in os.scandir(RELEASES) if each.name[0] != "."]
    return [each.name for each in sorted(there, key=lambda each: each.stat().st_ctime_ns, reverse=True)]


def switch(link: str, version: str) -> None:
    """Make a version current: have a symlink name it, by one rename."""
    with tree.beside(os.path.dirname(link)) as new:
        os.symlink(os.path.relpath(version, os.path.dirname(link)), new)
        with one.locked(RELEASES):  # left4me-overlay shares it from reading the symlink to the mount
            os.rename(new, link)
    one.sync_directory(os.path.dirname(link))


def note(build: str, text: str) -> None:
    """Write down what became of a build."""
    with tree.beside(VERDICTS) as new:
        with open(new, "w", encoding="utf-8") as file:
            file.write(f"{text}\n")
            file.flush()
            os.fsync(file.fileno())
        os.rename(new, f"{VERDICTS}/{build}")
    one.sync_directory(VERDICTS)


def forget(build: str) -> None:
    """Let a build that is brought anew be tried anew."""
    if os.path.lexists(path := f"{VERDICTS}/{build}"):
        os.unlink(path)
        one.sync_directory(os.path.dirname(path))


def finish(path: str) -> None:
    """Look whether a tree is an installation, and lead the game to Steam's client. Raises ValueError.

    A server sees its overlay alone, so that the client has to be in there: the installation brings one of its own.
    """
    for name in ("srcds_run", "srcds_linux"):
        if not os.access(f"{path}/{name}", os.X_OK):
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
    if not os.path.isdir(f"{RELEASES}/{build}"):
        raise ValueError(f"build {build} is not on this host")
    if unused.verdict(build) != unused.GOOD:
        switch(CANDIDATE, f"{RELEASES}/{build}")
        _try_both(build)
        note(build, unused.GOOD)
    if os.path.islink(CANDIDATE):
        os.unlink(CANDIDATE)


def _try_both(build: str) -> None:
    modded = told()["trial_server"]
    for trial, how in ((BARE, "bare"), (MODDED, f"with the layers of server {modded}")):
        if trial == BARE or modded:
            try:
                _try(trial)
            except ValueError as error:
                reason = f"build {build} does not run {how}: {error}"
                note(build, reason)
                raise ValueError(reason) from None


def _try(trial: str) -> None:
    """Start an trial, wait for its answer and stop it.

    Raises ValueError where it does not answer, OSError where that would not tell of the build.
    """
    unit = one.unit(trial)
    one.Systemctl("stop", unit).wait()  # what a killed run left
    try:
        with one.unmounted(trial):  # of the trial before, as deep as it made it
            for entry in os.scandir(f"{one.runtime(trial)}/upper"):
                tree.run("rm", "--recursive", "--force", "--one-file-system", "--", entry.path)
    except one.Failed as failed:
        raise OSError(str(failed)) from None
    address = one.address_of(one.environment(trial))
    assert address
    if a2s.ask({trial: address}):
        raise OSError(f"somebody else answers on trial_port, {address[1]}: set another one in the data")
    one.Systemctl("reset-failed", unit).wait()
    try:
        code, _words = one.Systemctl("start", unit).wait()
        if code or not _answers(trial, address):
            result = one.properties([trial], "Result")[trial]["Result"]
            how = f"it gave no answer within {ANSWER} s" if result == "success" else f"it ended with {result}"
            why = f"{how}; its log ends with: {' / '.join(one.journal(unit, 4))}"
            one.Systemctl("stop", unit).wait()
            if one.noted(trial):
                raise OSError(f"the trial before is in use still, l4d2ctl holders {trial} tells by whom: {why}")
            raise ValueError(why)
    finally:
        one.Systemctl("stop", unit).wait()
        one.Systemctl("reset-failed", unit).wait()


def _answers(trial: str, address: tuple[str, int]) -> bool:
    end = time.monotonic() + ANSWER
    while time.monotonic() < end:
        answered = a2s.ask({trial: address})
        if one.properties([trial], "ActiveState")[trial]["ActiveState"] != "active":
            return False
        if answered:
            return True
        time.sleep(0.1)  # nothing tells when a port begins to answer
    return False


def prune() -> None:
    """Remove the builds that nothing uses; whoever calls this is alone. A deploy that is at work does it itself."""
    with one.between_deploys() as free:
        if not free:
            return
        with one.locked(RELEASES):  # none is mounted between the look and the renaming
            gone = {path: f"{GAME}/.gone-{secrets.token_hex(8)}" for path in unused.builds(unused.mounted())}
            for path, aside in gone.items():
                os.rename(path, aside)
        for aside in gone.values():
            tree.remove(aside)


def follow_restarts() -> None:
    """Have the servers restarted that an update waits for, each as its data say; nobody waits for it."""
    one.Systemctl("start", "--no-block", "left4me-restart.service").wait()
