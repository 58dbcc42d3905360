"""What all tests share: on which Debians the tests of boxes run."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the stories be told on both Debians."""
    parser.addoption("--both", action="store_true", help="tell each story on Debian 12 and 13, not on one of them")
