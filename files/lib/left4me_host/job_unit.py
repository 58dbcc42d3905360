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
    job.begin()
    if job.number:
        print(jobs.first_line(job.number), file=sys.stderr if json else sys.stdout, flush=True)
    name = f"left4me-job-{job.number or f'without-record-{os.getpid()}'}"
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
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for this process alone
    ) as unit:
        try:
            _copy(unit)
            failed = unit.wait()
        except KeyboardInterrupt:
            unit.kill()
            raise jobs.GoesOn(jobs.goes_on(job.number) if job.number else f"{name}.service goes on") from None
    if job.number and not job.is_taken_over():
        job.end(jobs.FAILED, f"{name}.service did not start")
        failed = 1
    if failed:
        raise instance.Failed("")


def _copy(unit: subprocess.Popen[bytes]) -> None:
    """Print a process's output as it comes, until its end."""
    with selectors.DefaultSelector() as both:
        for pipe, stream in ((unit.stdout, sys.stdout), (unit.stderr, sys.stderr)):
            both.register(pipe, selectors.EVENT_READ, stream)  # type: ignore[arg-type]
        while both.get_map():
            for key, _events in both.select():
                data = os.read(key.fd, 1 << 16)
                if not data:
                    both.unregister(key.fileobj)
                    continue
                if key.data is not None:  # None: l4d2ctl was started without this stream
                    key.data.buffer.write(data)
                    key.data.flush()
