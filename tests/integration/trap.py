"""Stop what a deploy runs in a box at a chosen system call: strace from outside, on all that the box's sshd starts."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from tests.boxes.boxes import Box
from tests.integration.harness import properties, wait_for


def outer_pid(box: Box, inner: int) -> int:
    """Return the PID, seen from outside, of a process of the box."""
    namespace = os.readlink(f"/proc/{box.leader}/ns/pid")
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            mine = os.readlink(process / "ns/pid") == namespace
            if mine and re.search(rf"^NSpid:\s+\d+\s+{inner}$", (process / "status").read_text(), re.MULTILINE):
                return int(process.name)
    raise AssertionError(f"{box.name} has no process {inner}")


def sshd(box: Box) -> int:
    """Return the outer PID of the box's listening sshd."""
    return outer_pid(box, int(properties(box, "ssh.service", "MainPID")["MainPID"]))


def command_line(pid: int) -> str:
    """Return a process's arguments with blanks between, or nothing where it is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def is_stopped(pid: int) -> bool:
    """Tell whether a process is there and stopped."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] in "tT"
    return False


def family(pid: int) -> list[int]:
    """Return the remote command that a process belongs to, parents first: all below the session of sshd."""
    parents = {}
    names = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            name, _, rest = (process / "stat").read_text(encoding="utf-8").partition("(")[2].rpartition(")")
            names[int(process.name)], parents[int(process.name)] = name, int(rest.split()[1])
    top = pid
    while not names[parents[top]].startswith("sshd"):
        top = parents[top]
    found = [top]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found


def kill_both(pyinfra: subprocess.Popen[str], pid: int) -> None:
    """Kill a deploy and the remote command that a process belongs to; return when all of it is gone."""
    members = family(pid)  # before its sshd is gone too
    pyinfra.kill()
    pyinfra.wait()
    for each in members:
        os.kill(each, signal.SIGKILL)
    wait_for("the remote command is gone", lambda: not any(command_line(each) for each in members))


class Trap:
    """Stops (SIGSTOP) every process of a remote command after each call of one system call, until told which it was."""

    def __init__(self, box: Box, syscall: str) -> None:
        self.command = ["strace", "-f", "-y", "-p", str(sshd(box)), "-s", "300"]
        self.command += ["-e", f"trace={syscall}", "-e", f"inject={syscall}:signal=SIGSTOP"]
        self.lines: queue.Queue[str] = queue.Queue()

    def __enter__(self) -> Trap:
        self.strace = subprocess.Popen(self.command, stderr=subprocess.PIPE, text=True)
        self.reader = threading.Thread(target=self._read)
        self.reader.start()
        while "attached" not in self.lines.get(timeout=10):
            pass
        return self

    def _read(self) -> None:
        assert self.strace.stderr
        for line in self.strace.stderr:
            self.lines.put(line)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.strace.terminate()
        self.strace.wait(timeout=10)
        self.reader.join()
        assert self.strace.stderr
        self.strace.stderr.close()

    def landing(self, call: str, program: str, limit: float = 60) -> int:
        """Wait for a process stopped at a call that matches, let all others go on, and return its outer PID.

        `call` is a pattern of strace's line, `program` has to be in the process's arguments.
        """
        end = time.monotonic() + limit
        wanted = 0
        seen: list[str] = []
        while True:
            try:
                line = self.lines.get(timeout=max(0.01, end - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"{call} by {program} was not seen in {limit} s; last: {seen[-5:]}") from None
            seen.append(line)
            pid = int(found.group(1)) if (found := re.match(r"\[pid +(\d+)\]", line)) else 0
            if not wanted and re.search(call, line) and program in command_line(pid):
                wanted = pid
            if "--- stopped by SIGSTOP ---" in line:
                if pid == wanted:
                    assert is_stopped(pid)
                    return pid
                os.kill(pid, signal.SIGCONT)
