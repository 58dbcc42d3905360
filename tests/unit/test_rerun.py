"""What may fail once in CI: up to two tests of boxes that pass on fresh ones, and none of stop, reset and lock."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import rerun

ROOT = rerun.ROOT

ONCE = """
from pathlib import Path
def test_{name}():
    seen = Path(__file__).with_name("{name}.seen")
    first = not seen.exists()
    seen.touch()
    assert not first
"""
ALWAYS = "def test_always():\n    assert False\n"
NEVER = "def test_never():\n    pass\n"


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, **files: str) -> int:
    """Run the files of a directory, and return the exit code."""
    monkeypatch.setattr(rerun, "ROOT", folder)
    monkeypatch.setattr(rerun, "KEPT", folder / "flaky")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.chdir(folder)
    for name, text in files.items():
        (folder / f"test_{name}.py").write_text(text, encoding="utf-8")
    return rerun.main(["-q", "."])


def test_a_test_that_passes_the_second_time_is_named_flaky(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, monkeypatch, rollout=ONCE.format(name="once"), update=NEVER) == 0
    assert "flaky: test_rollout.py::test_once\n" in capfd.readouterr().out


def test_one_that_fails_again_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(tmp_path, monkeypatch, rollout=ALWAYS, update=ONCE.format(name="once")) == 1


def test_three_are_a_failure_whatever_they_would_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    names = ("one", "two", "three")
    assert run(tmp_path, monkeypatch, **{name: ONCE.format(name=name) for name in names}) == 1
    assert "flaky" not in capfd.readouterr().out


@pytest.mark.parametrize("name", ["lock", "reset", "postmortem", "02_stopped_by_hand"])
def test_none_of_stop_reset_and_lock_runs_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert run(tmp_path, monkeypatch, **{name: ONCE.format(name="once")}) == 1


def test_all_well_is_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(tmp_path, monkeypatch, rollout=NEVER) == 0
