"""An operator for each story, with Debian 12 or 13 in turn, or both with --both."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.boxes.game import build
from tests.stories.operator import Operator


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "debian" in metafunc.fixturenames:
        number = int((re.match(r"test_(\d+)", metafunc.definition.path.name) or ["", "0"])[1])
        debians = (12, 13) if metafunc.config.getoption("both") else (12 + number % 2,)
        metafunc.parametrize("debian", debians, ids=[f"debian{each}" for each in debians], scope="session")


@pytest.fixture(scope="session")
def game() -> Path:
    """Build the stand-in game and return its directory."""
    return build()


@pytest.fixture
def operator(request: pytest.FixtureRequest, debian: int, game: Path, tmp_path: Path) -> Iterator[Operator]:
    """Yield an operator, and remove the hosts after the story."""
    stem = request.path.stem.removeprefix("test_").replace("_", "-")
    someone = Operator(f"test-s{stem[:2]}-{debian}", tmp_path, debian)
    someone.leaves()
    yield someone
    someone.leaves()
