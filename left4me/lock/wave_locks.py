"""Holds the locks of a wave's hosts, each over its own connection."""

from __future__ import annotations

import secrets
import threading
from contextlib import suppress
from subprocess import STDOUT, Popen

from left4me import connection, fleet_status
from left4me.lock import protocol
from left4me.remote.program_text import program_command
from left4me.rollout.children import last_lines, start
from left4me.rollout.waves import Host

LIMIT = 60
"""Seconds for a host to answer a lock request. The host may wait half of them for orphaned commands."""
RELEASE = 20
"""Seconds for all hosts to release their locks; ssh itself closes a dead connection after 15 to 20 seconds."""


class Locks:
    """Holds the locks of one wave; the end of its context releases all locks."""

    def __init__(self) -> None:
        self._token = secrets.token_hex(8)
        self._holders: dict[str, Popen[str]] = {}
        self._held: dict[str, Popen[str]] = {}
        self._released = threading.Event()

    def __enter__(self) -> Locks:
        threading.Thread(target=self._send_heartbeats, daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._released.set()
        for holder in self._holders.values():
            with suppress(OSError):
                holder.stdin.close()  # type: ignore[union-attr]
        timer = threading.Timer(RELEASE, self._kill_holders)
        timer.start()
        for holder in self._holders.values():
            holder.wait()
        timer.cancel()

    def _kill_holders(self) -> None:
        """Free the locks by killing connections that do not end, as when only a host's sshd responds."""
        for holder in self._holders.values():
            holder.kill()

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that make pyinfra use these locks."""
        return {protocol.TOKEN: self._token}

    def fenced(self, *words: str) -> tuple[str, ...]:
        """Return a command that runs on a host only while this wave has its lock."""
        return "sh", "-c", f'{protocol.fence(self._token)} exec "$@"', "sh", *words

    def connect(self, host: Host) -> None:
        """Connect to a host and start holder.py, which waits for take()."""
        words = program_command("holder", protocol.request(self._token, waits=True))
        command = connection.command(host.name, host.connection, *words)
        holder = self._holders[host.name] = start(command, STDOUT)
        with suppress(OSError):  # it has ended already; take() reads the reason
            holder.stdin.write(command.stdin)  # type: ignore[union-attr]
            holder.stdin.flush()  # type: ignore[union-attr]

    def take(self, host: Host) -> list[str]:
        """Take the lock of a connected host; return [], or the reason of a refusal as lines."""
        holder = self._holders[host.name]
        timer = threading.Timer(LIMIT, holder.kill)
        timer.start()
        with suppress(OSError):  # the output has the reason
            self._send_heartbeat(holder)
        lines, size = [], 0
        while line := holder.stdout.readline(protocol.MOST):  # type: ignore[union-attr]
            if (size := size + len(line)) > protocol.MOST:
                holder.kill()
                holder.wait()
                timer.cancel()
                return [f"it printed more than {protocol.MOST >> 10} KB before its answer"]
            _before, mark, answer = line.partition(connection.MARK)
            if mark and answer.strip() == protocol.LOCKED:
                timer.cancel()
                self._held[host.name] = holder
                return []
            lines.append(answer or line)  # including messages of ssh and sudo
        if holder.wait() < 0:
            lines.append(f"no answer in {LIMIT} s")
        timer.cancel()
        if why := connection.sudo_reason("".join(lines)):
            return [why]
        return last_lines(*lines) or ["its lock cannot be taken; the host gave no reason"]

    def keep(self, host: Host) -> list[str]:
        """Take the lock again if its connection has ended; return [], or the reason of a refusal as lines.

        Raises Unreachable if the host does not answer.
        """
        if self._holders[host.name].poll() is None:
            return []
        self.connect(host)
        why = self.take(host)
        if self._holders[host.name].returncode:  # ssh failed, or LIMIT killed it
            raise fleet_status.Unreachable(why[-1])
        return why

    @staticmethod
    def _send_heartbeat(holder: Popen[str]) -> None:
        holder.stdin.write("\n")  # type: ignore[union-attr]
        holder.stdin.flush()  # type: ignore[union-attr]

    def _send_heartbeats(self) -> None:
        while not self._released.wait(protocol.HEARTBEAT):
            # Only to holders with the lock: the others would take theirs at a heartbeat.
            for holder in list(self._held.values()):
                with suppress(OSError, ValueError):  # the holder has ended or is ending
                    self._send_heartbeat(holder)
