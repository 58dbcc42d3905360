"""python -m tests.rerun PYTEST-ARGUMENTS: run pytest, and run failed box tests once more to find flaky ones.

If at most two tests failed, they run again on fresh boxes and are reported as `flaky` if they pass. Nothing runs again
if a unit test or a test of stop, reset or lock failed: there a flaky test is a bug. Both outputs are kept in
.boxes/flaky. The exit code is pytest's.
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
"""The tests that never run again: those of stop, reset and lock, and those without boxes."""
_FAILED = "LEFT4ME_FAILED_TESTS"
"""The environment variable with the path of the file for the names of failed tests."""
_failed: dict[str, None] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        _failed[report.nodeid] = None


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the names of the failed tests, in the process that gets the reports of all workers."""
    if not hasattr(session.config, "workerinput"):
        Path(os.environ[_FAILED]).write_text("".join(f"{name}\n" for name in _failed), encoding="utf-8")


def _pytest(arguments: Sequence[str], log: Path) -> tuple[int, list[str]]:
    """Run pytest, print and log its output, and return its exit code and the names of the failed tests."""
    names = log.with_suffix(".failed")
    names.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-p", "tests.rerun", *arguments]
    environment = {**os.environ, _FAILED: str(names)}
    with (
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        ) as process,
        log.open("w", encoding="utf-8") as kept,
    ):
        assert process.stdout
        for line in process.stdout:
            print(line, end="", flush=True)
            kept.write(line)
    return process.returncode, names.read_text(encoding="utf-8").splitlines() if names.exists() else []


def main(arguments: list[str]) -> int:
    shutil.rmtree(KEPT, ignore_errors=True)
    KEPT.mkdir(parents=True)
    code, failed = _pytest(arguments, KEPT / "first.log")
    if code != pytest.ExitCode.TESTS_FAILED or len(failed) > MOST or any(map(NEVER.search, failed)):
        return code
    # Keep the options of the first run, except its workers (-n, --dist) and test names.
    options = [each for each in arguments if each.startswith("--") and not each.startswith("--dist")]
    again, _still = _pytest([*options, *failed], KEPT / "again.log")
    if again == 0:
        for name in failed:
            print(f"flaky: {name}")
        print(f"The outputs of both runs are in {KEPT.relative_to(ROOT)}.", flush=True)
    return again


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
