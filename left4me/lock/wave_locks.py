"""The locks of a wave's hosts, held over connections of their own for as long as the rollout is alive."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Mapping
from contextlib import suppress
from subprocess import PIPE, STDOUT, Popen

from left4me import connection, fleet_status
from left4me.lock import protocol
from left4me.remote.program_text import program_command
from left4me.rollout.children import last_lines
from left4me.rollout.waves import Host

LIMIT = 60
"""Seconds for a host to say whether its lock is taken; it may wait half of that for what a killed deploy left."""
RELEASE = 20
"""Seconds for all hosts to let go of their locks: ssh gives one up that does not answer at all after 15 to 20."""


class Locks:
    """What a wave holds; used as a context, which releases all of it."""

    def __init__(self) -> None:
        self._token = secrets.token_hex(8)
        self._holders: dict[str, Popen[str]] = {}
        self._held: dict[str, Popen[str]] = {}
        self._released = threading.Event()

    def __enter__(self) -> Locks:
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._released.set()
        for holder in self._holders.values():
            with suppress(OSError):
                holder.stdin.close()  # type: ignore[union-attr]
        timer = threading.Timer(RELEASE, self._give_up)
        timer.start()
        for holder in self._holders.values():
            holder.wait()
        timer.cancel()

    def _give_up(self) -> None:
        """End what hosts do not let go of, whose sshd is well and nothing else there; they free it with that end."""
        for holder in self._holders.values():
            holder.kill()

    @property
    def environment(self) -> Mapping[str, str]:
        """What hands the locks to a pyinfra that is started with it."""
        return {protocol.TOKEN: self._token}

    def fenced(self, *words: str) -> tuple[str, ...]:
        """Return a command for a host that changes it only while its lock is not another's."""
        return "sh", "-c", f'{protocol.fence(self._token)} exec "$@"', "sh", *words

    def connect(self, host: Host) -> None:
        """Begin what is to hold a host's lock, and waits for `take`."""
        words = program_command("holder", protocol.request(self._token, waits=True))
        command = connection.command(host.name, host.connection, *words)
        holder = self._holders[host.name] = Popen(
            command.words,
            env=command.full_environment,
            stdin=PIPE,
            stdout=PIPE,
            stderr=STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        holder.stdin.write(command.stdin)  # type: ignore[union-attr]
        holder.stdin.flush()  # type: ignore[union-attr]

    def take(self, host: Host) -> list[str]:
        """Take the lock of a host that is connected to; return why not, line by line, or nothing."""
        holder = self._holders[host.name]
        timer = threading.Timer(LIMIT, holder.kill)
        timer.start()
        with suppress(OSError):  # what it says tells why
            self._poke(holder)
        said = []
        for line in holder.stdout:  # type: ignore[union-attr]
            if line.strip() == connection.MARK + protocol.LOCKED:
                timer.cancel()
                self._held[host.name] = holder
                return []
            said.append(line.removeprefix(connection.MARK))  # what its sshd or sudo has to say, too
        if holder.wait() < 0:
            said.append(f"no answer in {LIMIT} s")
        timer.cancel()
        if why := connection.sudo_reason("".join(said)):
            return [why]
        return last_lines(*said) or ["its lock cannot be taken, and nothing says why"]

    def keep(self, host: Host) -> list[str]:
        """Take the lock again where the connection that held it has ended; return why the host refuses, or nothing.

        Raises Unreachable where it cannot be asked.
        """
        if self._holders[host.name].poll() is None:
            return []
        self.connect(host)
        why = self.take(host)
        if self._holders[host.name].returncode:  # ssh's, or that of the limit
            raise fleet_status.Unreachable(why[-1])
        return why

    @staticmethod
    def _poke(holder: Popen[str]) -> None:
        holder.stdin.write("\n")  # type: ignore[union-attr]
        holder.stdin.flush()  # type: ignore[union-attr]

    def _beat(self) -> None:
        while not self._released.wait(protocol.HEARTBEAT):
            # Not those that wait for their turn: a sign of life is what they would begin at.
            for holder in list(self._held.values()):
                with suppress(OSError, ValueError):  # what has ended, or is released at this moment
                    self._poke(holder)
