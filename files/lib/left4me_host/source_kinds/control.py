"""A tree from a directory on the machine that deploys: what the host has not yet comes over its connection."""

from __future__ import annotations

import base64
import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from typing import IO, Any

from left4me_host import filetree


class ReceivedTar:
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
                raise OSError(
                    full + (filetree.first_line(said.read()) or f"tar failed with exit code {tar.returncode}")
                )

    def drain(self) -> None:
        """Read what is left of it, so that what follows begins where it should."""
        for _ in self:
            pass


def fill(wanted: dict[str, Any], new: str, sent: ReceivedTar | None) -> None:
    """Fill the directory `new` with what the version before has of it already, and with what was sent."""
    source = wanted["source"]
    if source["base"]:
        filetree.copy([f"{wanted['place']}/{source['base']}/."], new)
        for name, full, _ in reversed(list(filetree.walk(new))):  # what is in a directory before the directory
            if name not in source["files"]:
                filetree.remove(full)
    if sent:
        sent.unpack(new)
    there = filetree.listing(new)
    if other := sorted(name for name, _ in there.items() ^ source["files"].items()):
        raise ValueError(f"{other[0]} is not what was declared: did it change meanwhile? Deploy again")
