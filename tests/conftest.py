"""What all tests share: the option --both, the order of tests, and their scheduling."""

from __future__ import annotations

import signal
from typing import Any

import pytest

LONGEST = ("full_machine", "01_first_evening", "cockpit", "rollout", "update", "faults", "boxes", "reset", "lock")
"""The slowest modules. They run first, so that none of them starts when the other workers are nearly done."""

# Shells start background jobs with SIGINT ignored, and child processes inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--both", action="store_true", help="run each story on Debian 12 and 13 instead of one of them")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the slowest modules first and keep the order of the others."""
    names = [f"test_{name}" for name in LONGEST]
    items.sort(key=lambda item: names.index(item.path.stem) if item.path.stem in names else len(names))


# xdist 3.8's --dist loadgroup has no effect with pytest 9.2: it sets an attribute that pytest no longer reads.
@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from tests.scheduling import OneWorkerForEachBox  # imported here because verification runs without xdist

    return OneWorkerForEachBox(config, log) if config.getvalue("dist") == "loadgroup" else None
