"""Show jobs: a table, one job with its lines, and the lines as they come."""

from __future__ import annotations

import sys
import time
from typing import Any

from left4me_host import instance, jobs

POLL = 0.1
"""Seconds between two looks at a record: Python has no inotify."""
SHOWN = 30
"""Rows of the table; --json lists all."""


def _by(job: dict[str, Any]) -> str:
    return f"{job['who']} ({job['origin']})" if job["origin"] else str(job["who"])


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    lines = [["JOB", "BEGUN", "BY", "COMMAND", "RESULT", "SECONDS"]]
    for job in rows:
        what = [str(job["job"]), _time(job["begun"]), _by(job) or "-", job["words"] or "-"]
        lines.append([*what, job["result"], f"{job['seconds']:.2f}"])
    return lines


def show(job: dict[str, Any]) -> None:
    """Print a job and its output."""
    print(f"job {job['job']}: {job['words']}")
    print(f"by {_by(job)}, {_time(job['begun'])}")
    print(_state(job))
    if job["steps"]:
        print(", ".join(f"{step} {seconds:.2f} s" for step, seconds in job["steps"].items()))
    if job["lines"]:
        print()
        _print_lines(job, 0)


def _state(job: dict[str, Any]) -> str:
    if job["result"] in (jobs.RUNNING, jobs.WAITING):
        return f"{job['result']} for {job['seconds']:.0f} s; follow it with: l4d2ctl jobs -f {job['job']}"
    why = f": {job['error']}" if job["error"] and not job["lines"] else ""
    return f"{jobs.last_line(job)}{why}"


def _print_lines(job: dict[str, Any], shown: int) -> int:
    """Print the lines after the first `shown`; return how many there are."""
    kept = job["lines"][-(job["line_count"] - shown) :] if job["line_count"] > shown else []
    if missing := job["line_count"] - shown - len(kept):
        print(f"({missing} lines are not kept)")
    for line in kept:
        print(instance.plain(line))
    sys.stdout.flush()
    return int(job["line_count"])


def _ended(number: int) -> dict[str, Any]:
    """Print a job's lines as they come; return the job when it has ended. Raises Failed."""
    shown, closed = 0, instance.closed_stdout()
    while True:
        if (job := jobs.read(number)) is None:
            raise instance.Failed(f"the record of job {number} is gone")
        shown = _print_lines(job, shown)
        if job["result"] not in (jobs.RUNNING, jobs.WAITING):
            return job
        if closed.poll(POLL * 1000):
            raise instance.Failed("")  # nobody learns how the job ends


def follow(number: int) -> None:
    """Print a job's lines until it ends or standard output is closed.

    Raises Failed if the job does not succeed, if its record is removed, or if the output is closed before its end.
    """
    try:
        job = _ended(number)
    except KeyboardInterrupt:
        raise jobs.GoesOn(jobs.goes_on(number)) from None
    if job["result"] != jobs.SUCCEEDED:
        print(jobs.last_line(job), file=sys.stderr)
        raise instance.Failed("")
    print(jobs.last_line(job))
