"""Stop what a deploy runs in a box at a chosen system call: strace from outside, on all that the box's sshd starts."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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


def _parents() -> dict[int, tuple[int, str]]:
    """Return the parent and the name of every process."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            name, _, rest = (process / "stat").read_text(encoding="utf-8").partition("(")[2].rpartition(")")
            found[int(process.name)] = int(rest.split()[1]), name
    return found


def below(top: int) -> list[int]:
    """Return a process and all that it has started, parents first."""
    parents = _parents()
    found = [top]
    for each in found:
        found += [child for child, (parent, _) in parents.items() if parent == each]
    return found


@contextmanager
def frozen(top: int) -> Iterator[None]:
    """Stop a process and all that it has started; no Trap may be set, or they may go on or be stopped again."""
    members = below(top)
    for pid in members:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    wait_for("they stand", lambda: all(is_stopped(pid) or not command_line(pid) for pid in members))
    try:
        yield
    finally:
        for pid in reversed(members):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def family(pid: int) -> list[int]:
    """Return the remote command that a process belongs to, parents first: all below the session of sshd."""
    parents = _parents()
    top = pid
    while not parents[parents[top][0]][1].startswith("sshd"):
        top = parents[top][0]
    return below(top)


def waits_for_a_lock(program: str) -> bool:
    """Tell whether a process with this in its arguments waits for a file lock (proc_locks(5))."""
    locks = Path("/proc/locks").read_text(encoding="ascii")
    waiting = re.findall(r"-> (?:POSIX|FLOCK).* (\d+) [\da-f]+:[\da-f]+:\d+ ", locks)
    return any(program in command_line(int(pid)) for pid in waiting)


def kill_both(pyinfra: subprocess.Popen[str], pid: int) -> None:
    """Kill a deploy and the remote command that a process belongs to; return when all of it is gone."""
    members = family(pid)  # before its sshd is gone too
    pyinfra.kill()
    pyinfra.wait()
    for each in members:
        with suppress(ProcessLookupError):  # one that did not stand, such as what unpacks for dpkg, may have ended
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
        self.strace.kill()  # the kernel detaches it; strace's own way waits for what it traces
        self.strace.wait(timeout=10)
        self.reader.join()
        assert self.strace.stderr
        self.strace.stderr.close()

    def landing(self, call: str, program: str, limit: float = 240) -> int:
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


@contextmanager
def attached(*options: str) -> Iterator[subprocess.Popen[str]]:
    """Run strace on running processes; the block begins when it is attached, and it ends with the block."""
    with subprocess.Popen(["strace", *options], stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr
        assert "attached" in strace.stderr.readline()
        try:
            yield strace
        finally:
            strace.terminate()


@contextmanager
def trace(box: Box, syscalls: str, out: Path) -> Iterator[Path]:
    """Write every such system call of all that the box's sshd starts into a file, a line for each."""
    with attached("-f", "-y", "-p", str(sshd(box)), "-s", "300", "-e", f"trace={syscalls}", "-o", str(out)):
        yield out


def traced(path: Path) -> list[str]:
    """Return the lines of such a file; one that strace broke off, for another process came in between, with its end."""
    found: list[str] = []
    begun: dict[str, str] = {}
    for line in path.read_text(errors="replace").splitlines():
        pid = line.split(maxsplit=1)[0]
        if line.endswith("<unfinished ...>"):
            begun[pid] = line.removesuffix("<unfinished ...>")
        elif resumed := re.match(r"\d+ +<\.\.\. \w+ resumed>", line):
            found.append(begun.pop(pid, "") + line[resumed.end() :])
        else:
            found.append(line)
    return found
