"""The versions of the layers and the releases of the game: build, make current, prune."""

from __future__ import annotations

import json
import os
import secrets
import sys
from stat import S_ISDIR, S_ISREG
from typing import IO, Any

from left4me_host import builds, filetree, game_paths, gc, instance, layout
from left4me_host.builds import switch
from left4me_host.source_kinds import KINDS
from left4me_host.source_kinds.control import ReceivedTar


def fill(wanted: dict[str, Any], new: str, sent: ReceivedTar | None) -> None:
    """Fill the directory `new` from a tree's source. Raises ValueError, or OSError."""
    kind = wanted["source"]["source"]
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is no kind of source: {', '.join(KINDS)}")
    # What comes from the machine that deploys has its place in its names.
    into = wanted["source"].get("into") if kind != "control" else None
    target = f"{new}/{into}" if into else new
    os.makedirs(target, exist_ok=True)
    KINDS[kind](wanted, target, sent)
    # An installation of another tool, on the other hand, may have links to what that tool keeps elsewhere.
    if kind != "host":
        filetree.confine(new)


_POINTER = b"version https://git-lfs.github.com/spec/v1\n"
"""What a file of Git LFS holds where its content was not brought (git-lfs/docs/spec.md); it is shorter than 1 KB."""


def check(tree: str) -> None:
    """Raise ValueError where a layer's tree has no effect, or a file that the game sees is not what was meant."""
    files = [(name, full, about) for name, full, about in filetree.walk(tree) if not S_ISDIR(about.st_mode)]
    if why := game_paths.no_effect(name for name, _, _ in files):
        raise ValueError(why)
    for name, full, about in files:
        if S_ISREG(about.st_mode) and about.st_size < 1024 and game_paths.is_seen(name):
            with open(full, "rb") as file:
                if file.read(len(_POINTER)) == _POINTER:
                    raise ValueError(f"{name} is a pointer of Git LFS, not the file: take what the project releases")


def make(wanted: dict[str, Any], sent: ReceivedTar | None) -> None:
    """Build the version that a tree names unless it is there."""
    place = wanted["place"]
    version = f"{place}/{wanted['name']}"
    if not os.path.isdir(place):
        os.mkdir(place, 0o700)
        instance.sync_directory(os.path.dirname(place))
    if not os.path.isdir(version):
        with filetree.beside(place) as new:
            os.mkdir(new, 0o700)
            fill(wanted, new, sent)
            if wanted["what"] == "game":
                builds.finish(new)
                builds.forget(wanted["name"])
            else:
                check(new)
            filetree.own(new)
            os.sync()
            os.rename(new, version)
        instance.sync_directory(place)


def build(stdin: IO[bytes]) -> int:
    """Build every tree that standard input lists and make all of them current, or none and return 1 where one failed.

    What is current and what the servers' files say belong together, and those are written next.
    """
    listed = json.loads(stdin.readline())
    failed = 0
    for wanted in listed:
        sent = ReceivedTar(stdin) if wanted["source"].get("send") else None
        try:
            make(wanted, sent)
            if wanted["what"] == "game":
                with instance.locked(layout.VERDICTS):
                    builds.prove(wanted["name"])
        except (OSError, ValueError, instance.Failed) as error:
            print(f"{wanted['what']}: {' '.join(str(error).split())}", file=sys.stderr)
            failed = 1
        if sent:
            sent.drain()
    for wanted in () if failed else listed:
        switch(wanted["link"], f"{wanted['place']}/{wanted['name']}")
    return failed


def set_aside() -> None:
    """Rename what no server uses any more, so that none can be mounted; of the game nothing while it is updated."""
    with (
        instance.locked(layout.VERDICTS, waits=False) as free,
        instance.locked(layout.RELEASES),  # none is mounted between the look and the renaming
    ):
        for path in gc.unused() if free else gc.layers(gc.mounted()):
            os.rename(path, f"{os.path.dirname(path)}/.gone-{secrets.token_hex(8)}")


def remove_leftovers() -> None:
    """Remove what was set aside, and what interrupted runs left; nothing while the game is updated."""
    with instance.locked(layout.VERDICTS, waits=False) as free:
        for path in gc.leftovers() if free else ():
            filetree.remove(path)


def prune() -> int:
    """Remove what no server uses any more."""
    set_aside()
    remove_leftovers()
    return 0


def main(arguments: list[str]) -> int:
    """Do what the command line says; return the exit code."""
    if arguments not in (["build"], ["prune"]):
        print("usage: left4me-content build|prune", file=sys.stderr)
        return 2
    try:
        return build(sys.stdin.buffer) if arguments == ["build"] else prune()
    except (OSError, ValueError, instance.Failed) as error:
        print(f"left4me-content {arguments[0]}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
