"""A tree from a directory on the control machine, which uploads the files that the host does not have."""

from __future__ import annotations

import base64
import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from typing import IO, Any

from left4me_host import filetree


class ReceivedTar:
    """A tar on standard input: lines of base64, then a line with a dot."""

    def __init__(self, lines: IO[bytes]) -> None:
        self.lines, self.whole = lines, False

    def __iter__(self) -> Iterator[bytes]:
        while not self.whole and (line := self.lines.readline()):
            self.whole = line.strip() == b"."
            if not self.whole:
                yield line

    def unpack(self, target: str) -> None:
        """Unpack the tar over the files in `target`. Raises OSError."""
        command = ["tar", "--extract", "--no-same-owner", "--directory", target]
        # A memfd, because a pipe could fill while tar still reads its input, and a file needs disk space.
        with open(os.memfd_create("tar"), "w+b") as stderr:
            # If tar exits early, its exit code and stderr give the reason.
            with suppress(BrokenPipeError), subprocess.Popen(command, stdin=subprocess.PIPE, stderr=stderr) as tar:
                assert tar.stdin
                for line in self:
                    tar.stdin.write(base64.b64decode(line))
            self.drain()
            stderr.seek(0)
            if not self.whole:  # tar does not notice if its input ends between two files
                raise OSError("the upload ended too early: deploy again")
            if tar.returncode:
                why = filetree.first_line(stderr.read()) or f"tar failed with exit code {tar.returncode}"
                # After a partial write tar does not report a full disk.
                raise OSError("the disk is full: " * (not os.statvfs(target).f_bfree) + why)

    def drain(self) -> None:
        """Skip the rest of the tar, up to the next tar on standard input."""
        for _ in self:
            pass


def fill(wanted: dict[str, Any], new: str, sent: ReceivedTar | None) -> None:
    """Fill the directory `new` with the unchanged files of an earlier version (`base`) and the uploaded ones."""
    source = wanted["source"]
    if source["base"]:
        filetree.copy([f"{source['base']}/."], new)
        for name, full, _ in reversed(list(filetree.walk(new))):  # contents before their directory
            if name not in source["files"]:
                filetree.remove(full)
    if sent:
        sent.unpack(new)
    if other := sorted(name for name, _ in filetree.listing(new).items() ^ source["files"].items()):
        raise ValueError(f"{other[0]} changed during the deploy: deploy again")
