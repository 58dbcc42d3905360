"""What all tests share: on which Debians stories are told, and which tests stay together on one worker."""

from __future__ import annotations

import signal
from typing import Any

import pytest

# A shell has its background jobs ignore it, and all that they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the stories be told on both Debians."""
    parser.addoption("--both", action="store_true", help="tell each story on Debian 12 and 13, not on one of them")


# xdist 3.8's own --dist loadgroup does nothing with pytest 9.2: it writes an attribute that is not read any more.
@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep together what shares a box, in `--dist loadgroup`."""
    from tests.scheduling import OneWorkerForEachBox  # here: verification has no use for xdist

    return OneWorkerForEachBox(config, log) if config.getvalue("dist") == "loadgroup" else None
