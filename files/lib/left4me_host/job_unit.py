"""Run a long job in a unit of its own, which no closed connection or terminal ends, and follow it."""

from __future__ import annotations

import os
import selectors
import subprocess
import sys

from left4me_host import instance, jobs, layout

STOP = 20
"""Seconds that a shutdown waits for a job."""


def run(job: jobs.Job, words: list[str], json: bool) -> None:
    """Begin a job, run its command in a unit, and print what it prints. Raises Failed or GoesOn.

    The unit writes to pipes of this process, not to its terminal: after Ctrl-C the job goes on and prints nothing.
    """
    with jobs.uninterrupted():
        job.begin()
        if job.number:
            jobs.tell(jobs.first_line(job.number), "stderr" if json else "stdout")
        name = f"left4me-job-{job.number or f'without-record-{os.getpid()}'}"
        unit = _start(job, name, words)
        job.wait_for_takeover(unit)
    with unit:
        try:
            _copy(unit)
            failed = unit.wait()
        except KeyboardInterrupt:
            unit.kill()
            raise jobs.GoesOn(jobs.goes_on(job.number) if job.number else f"{name}.service goes on") from None
    if failed and job.number and not job.is_taken_over():
        job.end(jobs.FAILED, f"{name}.service did not start")
    if failed:
        raise instance.Failed("")


def _start(job: jobs.Job, name: str, words: list[str]) -> subprocess.Popen[bytes]:
    command = [
        "systemd-run",
        "--quiet",
        "--collect",
        "--wait",
        "--pipe",
        f"--unit={name}",
        f"--description=l4d2ctl {' '.join(words)}",
    ]
    command += [f"--property=TimeoutStopSec={STOP}", f"--setenv={layout.JOB}={job.number}"]
    command += [f"--setenv=SUDO_USER={instance.who()}", "--", layout.CTL, *words]
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for this process alone
    )


def _copy(unit: subprocess.Popen[bytes]) -> None:
    """Print a process's output as it comes, until its end."""
    with selectors.DefaultSelector() as both:
        for pipe, name in ((unit.stdout, "stdout"), (unit.stderr, "stderr")):
            both.register(pipe, selectors.EVENT_READ, name)  # type: ignore[arg-type]
        while both.get_map():
            for key, _events in both.select():
                data = os.read(key.fd, 1 << 16)
                if not data:
                    both.unregister(key.fileobj)
                    continue
                if (stream := getattr(sys, key.data)) is not None:
                    with jobs.dropping(key.data):
                        stream.buffer.write(data)
                        stream.flush()
