"""Jobs: each command that changes a host has a number and a record of who ran it, its output, and how it ended.

A record is JOBS/N.json, and the latest KEPT stay. link(2) takes a number, so that two jobs never have the same one;
later writes replace the file by rename(2), without fsync(2): after a power cut a record may be empty. A record that
cannot be written does not stop a command.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from left4me_host import instance, layout, procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess
    from typing import Any, TextIO

KEPT = 500
LINES, LONGEST = 200, 500
"""The lines that a record has at most, and the characters of a line."""
RUNNING, WAITING, SUCCEEDED, FAILED = "running", "waiting", "succeeded", "failed"
CANCELLED, INTERRUPTED = "cancelled", "interrupted"

_LOST = (errno.EPIPE, errno.EIO, errno.ENOSPC)
"""What a write reports of a closed pipe, a closed terminal, and a file on a full disk."""

# The keys of a job as `l4d2ctl jobs --json` prints it, with the values of a record that cannot be read.
_EMPTY: dict[str, Any] = {
    **{"verb": "", "servers": [], "words": "", "who": "", "origin": "", "begun": 0.0, "ended": None, "steps": {}},
    **{"result": INTERRUPTED, "seconds": 0.0, "error": "", "lines": [], "line_count": 0},
}


class Cancelled(instance.Failed):
    """Another command cancelled the job."""


class GoesOn(Exception):
    """Ctrl-C has ended the following of a job, not the job. Exit code 130."""


class Job:
    """A job of this process. `number` is 0 if it has no record."""

    def __init__(self, verb: str, servers: list[str], words: str, who: str = "", origin: str = "") -> None:
        self.number = 0
        self.announces = True
        """Whether the last line of output says how the job ended."""
        self.json = False
        """Whether stdout is for JSON alone."""
        self.warns = True
        """Whether nothing has said yet that the record cannot be written."""
        self._record = {**_EMPTY, "verb": verb, "servers": servers, "words": _line(words), "origin": origin}
        self._record |= {"who": who or instance.who(), "begun": time.time(), "monotonic": time.monotonic()}
        self._record |= {"result": RUNNING, "steps": {}, "lines": []}

    @property
    def about(self) -> str:
        return f"{self._record['verb']} by {self._record['who']}"

    @property
    def result(self) -> str:
        return str(self._record["result"])

    def begin(self) -> None:
        """Take the next number and write the record; without one, a line on stderr says why."""
        self._record |= _process()
        new = _new()
        try:
            taken = _numbers()
            number = max(taken, default=0) + 1
            with open(new, "w", encoding="utf-8") as file:
                file.write(json.dumps(self._record))
            while True:
                with suppress(FileExistsError):
                    os.link(new, path(number))
                    break
                number += 1
            self.number = number
            outdated = [each for each in taken if each <= number - KEPT and not _runs(each)]
            for old in [*map(path, outdated), *_stale()]:
                with suppress(FileNotFoundError):
                    os.unlink(old)
        except OSError as error:
            self._warn(error)
        with suppress(OSError):
            os.unlink(new)

    @classmethod
    def take_over(cls, number: int, verb: str) -> Job | None:
        """Return the running job that another process began for this one; None if there is none."""
        record = _read(number)
        if not record or record["verb"] != verb or record["result"] != RUNNING or not _is_alive(record):
            return None
        job = cls(verb, record["servers"], record["words"])
        job.number = number
        job._record = {key: value for key, value in record.items() if key not in ("job", "written")} | _process()
        job._write()
        return job

    def is_taken_over(self) -> bool:
        """Return whether another process has taken over this job."""
        record = _read(self.number) if self.number else None
        return record is not None and (record.get("pid"), record.get("start")) != (os.getpid(), _start(os.getpid()))

    def wait_for_takeover(self, by: subprocess.Popen[bytes]) -> None:
        """Wait until another process has taken over this job, or `by`, which starts that, has ended."""
        while self.number and not self.is_taken_over() and by.poll() is None:
            time.sleep(0.02)

    def becomes(self, result: str) -> None:
        """Record that the job is waiting, or running again."""
        self._record["result"] = result
        self._write()

    def says(self, lines: list[str]) -> None:
        """Record lines of output."""
        if self.result in (RUNNING, WAITING):
            self._record["lines"] = [*self._record["lines"], *map(_line, lines)][-LINES:]
            self._record["line_count"] += len(lines)
            self._write()

    def took(self, step: str, seconds: float) -> None:
        """Add to the seconds of a step."""
        steps = self._record["steps"]
        steps[step] = round(steps.get(step, 0.0) + seconds, 3)

    def end(self, result: str, error: str = "") -> None:
        """Record the end of the job, and print it as the last line of output."""
        seconds = time.monotonic() - self._record["monotonic"]
        self._record |= {"result": result, "seconds": round(seconds, 3), "ended": time.time()}
        self._record["error"] = _line(" / ".join(error.splitlines()))
        self._write()
        if self.number and self.announces and result != INTERRUPTED:
            line = last_line({**self._record, "job": self.number})
            tell(line, "stdout" if result == SUCCEEDED and not self.json else "stderr")

    def _write(self) -> None:
        if not self.number:
            return
        try:
            with open(_new(), "w", encoding="utf-8") as file:
                file.write(json.dumps(self._record))
            os.rename(_new(), path(self.number))
        except OSError as error:
            self._warn(error)
            with suppress(OSError):
                os.unlink(_new())

    def _warn(self, error: OSError) -> None:
        if self.warns:
            self.warns = False
            what = f"the record of job {self.number} is incomplete" if self.number else "this command is not recorded"
            tell(f"l4d2ctl: {what}: {error}", "stderr")


_current: Job | None = None


@contextmanager
def timed(step: str, times: dict[str, float] | None = None) -> Iterator[None]:
    """Add the seconds that the block takes to a step of the job that runs, and to `times`."""
    begin = time.monotonic()
    try:
        yield
    finally:
        seconds = time.monotonic() - begin
        if times is not None:
            times[step] = seconds
        if _current:
            _current.took(step, seconds)


@contextmanager
def recorded(job: Job, prefix: str = "l4d2ctl") -> Iterator[Job]:
    """Record what the block prints, and how it ends; print the error of Failed and OSError, and raise Failed("").

    A stream that turns out to be closed is None afterwards, as for a command that was started without it.
    """
    global _current  # noqa: PLW0603 - a process has one job at a time
    copies = _Copy(sys.stdout, job), _Copy(sys.stderr, job)
    _current = job
    sys.stdout, sys.stderr = copies
    try:
        if not job.number:
            job.begin()
        yield job
        if job.result in (RUNNING, WAITING):
            job.end(SUCCEEDED)
    except KeyboardInterrupt:
        job.end(INTERRUPTED)
        raise
    except (instance.Failed, OSError) as error:
        if str(error):
            print(f"{prefix}: {error}", file=sys.stderr)
        if job.result in (RUNNING, WAITING):
            job.end(CANCELLED if isinstance(error, Cancelled) else FAILED, str(error))
        raise instance.Failed("") from None
    except BaseException as error:
        job.end(FAILED, repr(error))
        raise
    finally:
        _current = None
        try:
            copies[0].flush()
        finally:
            sys.stdout, sys.stderr = (copy.stream for copy in copies)


class _Copy:
    """A stream that also records what is written, and drops what it cannot take: see dropping()."""

    def __init__(self, stream: TextIO | None, job: Job) -> None:
        self.stream, self._job, self._rest = stream, job, ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        if lines:
            self._job.says(lines)
        self._try("write", text)
        return len(text)

    def flush(self) -> None:
        self._try("flush")

    def isatty(self) -> bool:
        return self.stream is not None and self.stream.isatty()

    def _try(self, call: str, *text: str) -> None:
        try:
            if self.stream is not None:
                getattr(self.stream, call)(*text)
        except OSError as error:
            if error.errno not in _LOST:
                raise
            self.stream = None


@contextmanager
def dropping(name: str) -> Iterator[None]:
    """Drop what `stdout` or `stderr` cannot take; it is None then. A command does not end for that."""
    try:
        yield
    except OSError as error:
        if error.errno not in _LOST:
            raise
        setattr(sys, name, None)


def tell(line: str, name: str = "stdout") -> None:
    """Print a line on `stdout` or `stderr`, if that can take it."""
    if (stream := getattr(sys, name)) is not None:
        with dropping(name):
            print(line, file=stream, flush=True)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let neither Ctrl-C nor a connection that goes end the block; raise KeyboardInterrupt after it instead."""
    pressed: list[int] = []
    outlive()
    before = signal.signal(signal.SIGINT, lambda number, _frame: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        outlive(False)
    if pressed:
        raise KeyboardInterrupt


def path(number: int) -> str:
    return f"{layout.JOBS}/{number}.json"


def _new() -> str:
    return f"{layout.JOBS}/.{os.getpid()}"


def _numbers() -> list[int]:
    return [int(name[:-5]) for name in os.listdir(layout.JOBS) if name.endswith(".json") and name[:-5].isdecimal()]


def _stale() -> list[str]:
    """Return what killed commands left half written."""
    pids = [name[1:] for name in os.listdir(layout.JOBS) if name[0] == "."]
    return [f"{layout.JOBS}/.{pid}" for pid in pids if not os.path.exists(f"/proc/{pid}")]


def _line(text: str) -> str:
    return instance.plain(text[:LONGEST])


def _process() -> dict[str, Any]:
    """Return what identifies this process, also after its pid is used again."""
    return {"pid": os.getpid(), "start": _start(os.getpid()), "boot": _boot()}


def _start(pid: int) -> str:
    """Return when a process was started (field 22 of proc_pid_stat(5)); empty if it has ended."""
    return "".join(procfs.read(f"/proc/{pid}/stat").rpartition(")")[2].split()[19:20])


def _boot() -> str:
    return procfs.read("/proc/sys/kernel/random/boot_id").strip()


def outlive(does: bool = True) -> None:
    """Go on when the terminal, the SSH connection or the browser goes, and at Ctrl-Z; or no longer.

    What this process starts, such as systemctl, inherits that. Python ignores SIGPIPE by itself. A stopped command
    would keep its servers locked.
    """
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN if does else signal.SIG_DFL)


def first_line(number: int) -> str:
    return f"job {number} is running; to follow it from elsewhere: l4d2ctl jobs -f {number}"


def goes_on(number: int) -> str:
    return f"job {number} goes on; to follow it again: l4d2ctl jobs -f {number}"


def last_line(job: dict[str, Any]) -> str:
    """Return the line that says how a job ended."""
    how = {SUCCEEDED: f"succeeded in {job['seconds']:.2f} s", FAILED: f"failed after {job['seconds']:.2f} s"}
    return f"job {job['job']} {how.get(job['result'], 'was ' + job['result'])}"


def _read(number: int) -> dict[str, Any] | None:
    """Return a record with all keys, and its file's time as `written`; None if the file is missing."""
    try:
        with open(path(number), encoding="utf-8", errors="replace") as file:
            written = os.fstat(file.fileno()).st_mtime
            text = file.read()
    except FileNotFoundError:
        return None
    found: Any = None
    with suppress(ValueError, RecursionError):
        found = json.loads(text)
    record = {"begun": written, "error": "its record is damaged", "written": written}
    if isinstance(found, dict) and all(_fits(found, key) for key in _EMPTY):
        record |= found
    return {**_EMPTY, **record, "job": number}


def _fits(found: dict[str, Any], key: str) -> bool:
    """Return whether a key has a value of its type; a damaged file may have any."""
    value, example = found.get(key), _EMPTY[key]
    if isinstance(example, float) or example is None:
        return isinstance(value, int | float) or (example is None and value is None)
    return isinstance(value, type(example))


def read(number: int) -> dict[str, Any] | None:
    """Return a job as `l4d2ctl jobs N --json` prints it; None if there is no record."""
    record = _read(number)
    if record is None:
        return None
    if record["result"] in (RUNNING, WAITING):
        record["seconds"] = round(time.time() - record["begun"], 3)
        if not _is_alive(record):
            record |= {"result": INTERRUPTED, "seconds": round(record["written"] - record["begun"], 3)}
    return {"job": number, **{key: record[key] for key in _EMPTY}}


def _runs(number: int) -> bool:
    record = _read(number)
    return record is not None and record["result"] in (RUNNING, WAITING) and _is_alive(record)


def _is_alive(record: dict[str, Any]) -> bool:
    pid = record.get("pid")
    return isinstance(pid, int) and record.get("boot") == _boot() and record.get("start") == (_start(pid) or None)


def latest(most: int = KEPT) -> list[int]:
    """Return the numbers of the latest jobs, latest first."""
    return sorted(_numbers(), reverse=True)[:most]


def listed(wanted: list[int]) -> list[dict[str, Any]]:
    """Return jobs as `l4d2ctl jobs --json` prints them, latest first; without those that have no record."""
    found = filter(None, map(read, sorted(wanted, reverse=True)))
    return [{key: value for key, value in job.items() if key != "lines"} for job in found]
