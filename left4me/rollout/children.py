"""Run child programs, each in its own session, so that a Ctrl-C on the terminal does not reach them."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from subprocess import PIPE, CompletedProcess, Popen, TimeoutExpired

from left4me.connection import Command

Done = CompletedProcess[str]
interrupted = threading.Event()
"""Set by the first Ctrl-C: current steps finish, no new step starts."""
_running: set[Popen[str]] = set()


def start(command: Command, stderr: int = PIPE) -> Popen[str]:
    return Popen(
        command.words,
        env=command.full_environment,
        stdin=PIPE,
        stdout=PIPE,
        stderr=stderr,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def run(command: Command, limit: float | None = None) -> Done:
    """Run a program and wait for it. Kills it and raises TimeoutExpired after `limit` seconds."""
    with start(command) as process:
        _running.add(process)
        try:
            out, err = process.communicate(command.stdin, timeout=limit)
        except TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        finally:
            _running.discard(process)
    return Done(command.words, process.returncode, out, err)


def interrupt() -> None:
    """Send SIGINT to all running children."""
    for process in list(_running):
        with contextlib.suppress(ProcessLookupError, PermissionError):  # it has ended, or runs under sudo
            os.killpg(process.pid, signal.SIGINT)


def last_lines(*texts: str | None) -> list[str]:
    """Return the last ten lines that are not blank."""
    return [line.rstrip() for text in texts for line in (text or "").splitlines() if line.strip()][-10:]
