"""The versions of the layers and the releases of the game: build, make current, prune."""

from __future__ import annotations

import base64
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import IO, Any

from content import archive, builds, git, tree, unused, workshop
from content.builds import switch
from l4d2ctl import server as one


class Sent:
    """One tar on standard input, in lines of base64, the last of them a dot."""

    def __init__(self, lines: IO[bytes]) -> None:
        self.lines, self.whole = lines, False

    def __iter__(self) -> Iterator[bytes]:
        """Yield the lines before the dot."""
        while not self.whole and (line := self.lines.readline()):
            self.whole = line.strip() == b"."
            if not self.whole:
                yield line

    def unpack(self, target: str) -> None:
        """Unpack it over what is there; tar itself would take an end between two files for the end."""
        command = ["tar", "--extract", "--no-same-owner", "--directory", target]
        # Not a pipe, which tar could fill while it is still being written to; nor a file, for the disk may be full.
        with open(os.memfd_create("tar"), "w+b") as said:
            # Where it breaks off, its exit code and what it said count.
            with suppress(BrokenPipeError), subprocess.Popen(command, stdin=subprocess.PIPE, stderr=said) as tar:
                assert tar.stdin
                for line in self:
                    tar.stdin.write(base64.b64decode(line))
            self.drain()
            said.seek(0)
            if not self.whole:
                raise OSError("what was sent ended before its end: deploy again")
            if tar.returncode:  # and where it could write a part, tar does not say why
                full = "the disk is full: " * (not os.statvfs(target).f_bfree)
                raise OSError(full + (tree.first_line(said.read()) or f"tar failed with exit code {tar.returncode}"))

    def drain(self) -> None:
        """Read what is left of it, so that what follows begins where it should."""
        for _ in self:
            pass


def fill(wanted: dict[str, Any], new: str, sent: Sent | None) -> None:
    """Fill the directory `new` from a tree's source."""
    source, place = wanted["source"], wanted["place"]
    if source["source"] == "host":
        return tree.copy([f"{source['path']}/."], new)
    if source["source"] == "archive":
        archive.build(source["url"], source["sha256"], source["strip"], new)
    elif source["source"] == "git":
        git.build(source["url"], source["ref"], new)
    elif source["source"] == "workshop":
        workshop.build(source["items"], wanted["link"], new)
    else:
        if source["base"]:
            tree.copy([f"{place}/{source['base']}/."], new)
            for name, full, _ in reversed(list(tree.walk(new))):  # what is in a directory before the directory
                if name not in source["files"]:
                    tree.remove(full)
        if sent:
            sent.unpack(new)
        there = tree.listing(new)
        if other := sorted(name for name, _ in there.items() ^ source["files"].items()):
            raise ValueError(f"{other[0]} is not what was declared: did it change meanwhile? Deploy again")
    # An installation of another tool, on the other hand, may have links to what that tool keeps elsewhere.
    return tree.confine(new)


def make(wanted: dict[str, Any], sent: Sent | None) -> None:
    """Build the version that a tree names unless it is there."""
    place = wanted["place"]
    version = f"{place}/{wanted['name']}"
    if not os.path.isdir(place):
        os.mkdir(place, 0o700)
        one.sync_directory(os.path.dirname(place))
    if not os.path.isdir(version):
        with tree.beside(place) as new:
            os.mkdir(new, 0o700)
            fill(wanted, new, sent)
            if wanted["what"] == "game":
                builds.finish(new)
                builds.forget(wanted["name"])
            tree.own(new)
            os.sync()
            os.rename(new, version)
        one.sync_directory(place)


def build(stdin: IO[bytes]) -> int:
    """Build every tree that standard input lists and make all of them current, or none and return 1 where one failed.

    What is current and what the servers' files say belong together, and those are written next.
    """
    listed = json.loads(stdin.readline())
    failed = 0
    for wanted in listed:
        sent = Sent(stdin) if wanted["source"].get("send") else None
        try:
            make(wanted, sent)
            if wanted["what"] == "game":
                with one.locked(builds.VERDICTS):
                    builds.prove(wanted["name"])
        except (OSError, ValueError, one.Failed) as error:
            print(f"{wanted['what']}: {' '.join(str(error).split())}", file=sys.stderr)
            failed = 1
        if sent:
            sent.drain()
    for wanted in () if failed else listed:
        switch(wanted["link"], f"{wanted['place']}/{wanted['name']}")
    return failed


def prune() -> int:
    """Remove what no server uses any more, and what killed runs left; of the game nothing while it is updated."""
    with one.locked(builds.VERDICTS, waits=False) as free:
        # None is mounted between the look and the renaming.
        with one.locked(builds.RELEASES):
            for path in unused.unused() if free else unused.layers(unused.mounted()):
                os.rename(path, f"{os.path.dirname(path)}/.gone-{secrets.token_hex(8)}")
        for path in unused.leftovers() if free else ():
            tree.remove(path)
    return 0


def main(arguments: list[str]) -> int:
    """Do what the command line says; return the exit code."""
    if arguments not in (["build"], ["prune"]):
        print("usage: left4me-content build|prune", file=sys.stderr)
        return 2
    try:
        return build(sys.stdin.buffer) if arguments == ["build"] else prune()
    except (OSError, ValueError, one.Failed) as error:
        print(f"left4me-content {arguments[0]}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
