"""python -m tests.rerun PYTEST-ARGUMENTS: pytest, in which a box test that fails by chance is told from a broken one.

Up to two failed stories or box tests run once more, each on fresh boxes, and are named `flaky` if they pass then. None
of stop, reset and lock does: there a failure by chance is a fault. More than two failures end the run as failed. Both
outputs are kept in .boxes/flaky, and the exit code is pytest's.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
KEPT = ROOT / ".boxes/flaky"
MOST = 2
NEVER = re.compile(
    r"tests/unit/|test_(postmortem|helper|holders|faults|resets?|lock|removal)\.py"
    r"|test_\d+_(stopped_by_hand|declared_stopped|removed_by_mistake|reset_and_undo|a_bad_night|two_machines)"
)
"""The tests of stop, reset and lock, and those without boxes."""
_FAILED = "LEFT4ME_FAILED_TESTS"
"""In the environment: the file for the names of the failed tests."""
_failed: dict[str, None] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note a failed test, in the one process that all reports come to."""
    if report.failed:
        _failed[report.nodeid] = None


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the names of the failed tests."""
    if not hasattr(session.config, "workerinput"):
        Path(os.environ[_FAILED]).write_text("".join(f"{name}\n" for name in _failed), encoding="utf-8")


def _pytest(arguments: Sequence[str], log: Path) -> tuple[int, list[str]]:
    """Run pytest, show and keep what it prints, and return its exit code and the names of the tests that failed."""
    names = log.with_suffix(".failed")
    names.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-p", "tests.rerun", *arguments]
    environment = {**os.environ, _FAILED: str(names)}
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment) as done,
        log.open("w", encoding="utf-8") as kept,
    ):
        assert done.stdout
        for line in done.stdout:
            print(line, end="", flush=True)
            kept.write(line)
    return done.returncode, names.read_text(encoding="utf-8").splitlines() if names.exists() else []


def main(arguments: list[str]) -> int:
    """Run the tests, and once more what may be flaky; return the exit code."""
    shutil.rmtree(KEPT, ignore_errors=True)
    KEPT.mkdir(parents=True)
    code, failed = _pytest(arguments, KEPT / "first.log")
    if code != pytest.ExitCode.TESTS_FAILED or len(failed) > MOST or any(map(NEVER.search, failed)):
        return code
    # Without the workers and the names of the first run; its other options stay.
    options = [each for each in arguments if each.startswith("--") and not each.startswith("--dist")]
    again, _still = _pytest([*options, *failed], KEPT / "again.log")
    if again == 0:
        for name in failed:
            print(f"flaky: {name}")
        print(f"both outputs are in {KEPT.relative_to(ROOT)}", flush=True)
    return again


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
