"""What all tests share: on which Debians stories are told, and which tests stay together on one worker."""

from __future__ import annotations

import signal
from typing import Any

import pytest

LONGEST = ("01_first_evening", "rollout", "update", "faults", "boxes", "reset", "lock")
"""The modules that take longest, each on one worker: they come first, so that no worker is left alone with one."""

# A shell has its background jobs ignore it, and all that they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the stories be told on both Debians."""
    parser.addoption("--both", action="store_true", help="tell each story on Debian 12 and 13, not on one of them")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, and let the rest be as it is."""
    names = [f"test_{name}" for name in LONGEST]
    items.sort(key=lambda item: names.index(item.path.stem) if item.path.stem in names else len(names))


# xdist 3.8's own --dist loadgroup does nothing with pytest 9.2: it writes an attribute that is not read any more.
@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep together what shares a box, in `--dist loadgroup`."""
    from tests.scheduling import OneWorkerForEachBox  # here: verification has no use for xdist

    return OneWorkerForEachBox(config, log) if config.getvalue("dist") == "loadgroup" else None
