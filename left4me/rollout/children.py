"""The programs that a rollout starts: each in a session of its own, where a terminal's Ctrl-C does not reach it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from subprocess import PIPE, CompletedProcess, Popen, TimeoutExpired
from typing import Any

Done = CompletedProcess[str]
interrupted = threading.Event()
"""Set by the first Ctrl-C: what is under way is finished, and nothing new is begun."""
_running: set[Popen[str]] = set()
_APART: Mapping[str, Any] = {"stdin": PIPE, "stdout": PIPE, "stderr": PIPE, "start_new_session": True}


def run(
    command: Sequence[str], limit: float | None = None, environment: Mapping[str, str] | None = None, stdin: str = ""
) -> Done:
    """Run a program to its end; raises TimeoutExpired after `limit` seconds, and has then killed it."""
    env = {**os.environ, **(environment or {})}
    with Popen(command, text=True, errors="replace", env=env, **_APART) as process:
        _running.add(process)
        try:
            out, err = process.communicate(stdin, timeout=limit)
        except TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        finally:
            _running.discard(process)
    return Done(command, process.returncode, out, err)


def interrupt() -> None:
    """Interrupt all that run, as Ctrl-C would."""
    for process in list(_running):
        with contextlib.suppress(ProcessLookupError, PermissionError):  # it has ended, or is sudo's
            os.killpg(process.pid, signal.SIGINT)


def last_lines(*texts: str | None) -> list[str]:
    """Return the last ten lines that are not blank."""
    return [line.rstrip() for text in texts for line in (text or "").splitlines() if line.strip()][-10:]
