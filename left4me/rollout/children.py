"""Run child programs, each in its own session, so that a Ctrl-C on the terminal does not reach them."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from subprocess import PIPE, CompletedProcess, Popen, TimeoutExpired

from left4me import answers
from left4me.connection import Command
from left4me_host.instance import plain

LONGEST = 1000
"""Characters of a line that are shown."""
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


def run(command: Command, limit: float | None = None, most: int | None = answers.STATUS) -> Done:
    """Run a program and wait for it; see answers.communicate(). Kills it before TimeoutExpired or Wrong."""
    with start(command) as process:
        _running.add(process)
        try:
            out, err = answers.communicate(process, command.stdin, limit, most)
        except (TimeoutExpired, answers.Wrong):
            with contextlib.suppress(PermissionError):  # it runs under sudo, and ends when its output is closed
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
    """Return the last ten lines that are not blank, cut and safe to print."""
    lines = [line.rstrip() for text in texts for line in (text or "").splitlines() if line.strip()][-10:]
    return [plain(line[:LONGEST]) for line in lines]
