"""The locks of a wave's hosts, held over connections of their own for as long as the rollout is alive."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Mapping
from contextlib import suppress
from subprocess import PIPE, Popen
from types import TracebackType

from left4me import fence, status
from left4me.rollout.children import last_lines
from left4me.rollout.waves import Host

LIMIT = 60
"""Seconds for a host to say whether its lock is taken; it may wait half of that for what a killed deploy left."""


class Locks:
    """What a wave holds; used as a context, which releases all of it."""

    def __init__(self) -> None:
        self._token = secrets.token_hex(8)
        self._held: dict[str, Popen[str]] = {}
        self._released = threading.Event()

    def __enter__(self) -> Locks:
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._released.set()
        for holder in self._held.values():
            with suppress(OSError):
                holder.stdin.close()  # type: ignore[union-attr]
        for holder in self._held.values():
            holder.wait()

    @property
    def environment(self) -> Mapping[str, str]:
        """What hands the locks to a pyinfra that is started with it."""
        return {fence.TOKEN: self._token}

    def fenced(self, *words: str) -> tuple[str, ...]:
        """Return a command for a host that changes it only while its lock is not another's."""
        return "sh", "-c", f'{fence.fence(self._token)} exec "$@"', "sh", *words

    def take(self, host: Host) -> list[str]:
        """Take a host's lock; return why not, line by line, or nothing."""
        words = ["python3", "-I", "-c", fence.PROGRAM.read_text(encoding="utf-8"), fence.wish(self._token)]
        holder = Popen(
            status.command(host.name, host.connection, *words),
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        timer = threading.Timer(LIMIT, holder.kill)
        timer.start()
        answer = holder.stdout.readline().strip()  # type: ignore[union-attr]
        timer.cancel()
        if answer == fence.LOCKED:
            self._held[host.name] = holder
            return []
        _, said = holder.communicate()
        return [answer] if answer else ["its lock cannot be taken", *(last_lines(said) or [f"no answer in {LIMIT} s"])]

    def _beat(self) -> None:
        while not self._released.wait(fence.BEAT):
            for holder in list(self._held.values()):
                with suppress(OSError):  # where the connection is gone the fence is what counts
                    holder.stdin.write("\n")  # type: ignore[union-attr]
                    holder.stdin.flush()  # type: ignore[union-attr]
