"""A browser for each module."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from tests.page.browser import chromium


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests without root; on CI that is an error."""
    if os.geteuid() == 0:
        return
    if os.environ.get("CI"):
        raise pytest.UsageError("the tests of the page need root and must not be skipped on CI")
    for item in items:
        item.add_marker(pytest.mark.skip(reason="the tests of the page need root"))


# A machine that runs boxes may be busy.
expect.set_options(timeout=30_000)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start Chromium without a network."""
    with chromium() as started:
        yield started
