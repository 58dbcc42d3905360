"""Build versions of layers and builds of the game, make them current, and remove unused ones."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Callable
from contextlib import nullcontext
from stat import S_ISDIR, S_ISREG
from typing import IO, Any

from left4me_host import builds, filetree, game_paths, gc, instance, layout
from left4me_host.source_kinds import KINDS
from left4me_host.source_kinds.control import ReceivedTar


def fill(wanted: dict[str, Any], new: str, sent: ReceivedTar | None) -> None:
    """Fill the directory `new` from a tree's source. Raises ValueError or OSError."""
    kind = wanted["source"]["source"]
    if kind not in KINDS:
        raise ValueError(f"unknown source {kind!r}: use one of {', '.join(KINDS)}")
    into = wanted["source"].get("into")
    target = f"{new}/{into}" if into else new
    os.makedirs(target, exist_ok=True)
    KINDS[kind](wanted, target, sent)
    # Another tool's installation may have symlinks to files outside of it.
    if kind != "host":
        filetree.confine(new)


_POINTER = b"version https://git-lfs.github.com/spec/v1\n"
"""The start of a Git LFS pointer, which is shorter than 1 KB (git-lfs/docs/spec.md)."""


def check(tree: str) -> None:
    """Raise ValueError if a layer's tree has no effect, or has a Git LFS pointer where the game looks."""
    files = [(name, full, status) for name, full, status in filetree.walk(tree) if not S_ISDIR(status.st_mode)]
    if why := game_paths.no_effect(name for name, _, _ in files):
        raise ValueError(why)
    for name, full, status in files:
        if S_ISREG(status.st_mode) and status.st_size < 1024 and game_paths.is_seen(name):
            with open(full, "rb") as file:
                if file.read(len(_POINTER)) == _POINTER:
                    raise ValueError(f"{name} is a Git LFS pointer, not the file: use an archive of a release")


def make(wanted: dict[str, Any], sent: ReceivedTar | None) -> None:
    """Build a tree's version unless it exists. Raises ValueError or OSError."""
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
                builds.forget_result(wanted["name"])
            else:
                check(new)
            filetree.own(new)
            os.sync()
            os.rename(new, version)
        instance.sync_directory(place)


def build(stdin: IO[bytes]) -> int:
    """Build every tree that standard input lists and make all current; if one fails, make none current and return 1.

    All or none, because the deploy next writes the servers' files, which name the layers.
    """
    trees = json.loads(stdin.readline())
    failed = 0
    for wanted in trees:
        sent = ReceivedTar(stdin) if wanted["source"].get("send") else None
        try:
            make(wanted, sent)
            if wanted["what"] == "game":
                with instance.locked(layout.VERDICTS):
                    builds.smoke_test(wanted["name"])
        except (OSError, ValueError, instance.Failed) as error:
            print(f"{wanted['what']}: {' '.join(str(error).split())}", file=sys.stderr)
            failed = 1
        if sent:
            sent.drain()
    for wanted in () if failed else trees:
        builds.switch(wanted["link"], f"{wanted['place']}/{wanted['name']}")
    return failed


def remove_unused(find: Callable[[], list[str]], in_deploy: bool) -> bool:
    """Remove the versions that `find` returns; return False and remove nothing if a deploy runs that is not the caller.

    `find` runs while no server can mount a version. Neither mounts nor deploys wait for the removal of 9 GB.
    """
    paths = []
    with nullcontext(True) if in_deploy else instance.between_deploys() as free:
        if not free:
            return False
        with instance.locked(layout.RELEASES):
            # A stale directory may be in a layer that has just been renamed.
            for path in filter(os.path.lexists, find()):
                paths.append(f"{os.path.dirname(path)}/.gone-{secrets.token_hex(8)}")
                os.rename(path, paths[-1])
    for path in paths:
        filetree.remove(path)
    return True


def prune(in_deploy: bool) -> bool:
    """Do as remove_unused() with all versions and stale temporary directories; with layers alone during an update."""
    with instance.locked(layout.VERDICTS, waits=False) as free:
        return remove_unused(lambda: [*gc.unused(), *gc.stale()] if free else gc.layers(gc.mounted()), in_deploy)


def main(arguments: list[str]) -> int:
    if arguments not in (["build"], ["prune"]):
        print("usage: left4me-content build|prune", file=sys.stderr)
        return 2
    try:
        if arguments == ["build"]:
            return build(sys.stdin.buffer)
        prune(in_deploy=True)
    except (OSError, ValueError, instance.Failed) as error:
        print(f"left4me-content {arguments[0]}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0
