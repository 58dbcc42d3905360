"""The attacks run on the same boxes as the integration tests; an attacked box serves one module."""

import os

import pytest

from tests.integration import conftest

# pytest finds fixtures and hooks by their names here.
box, debian, deployed, drop_in = conftest.box, conftest.debian, conftest.deployed, conftest.drop_in
game, inventory, packages, probed = conftest.game, conftest.inventory, conftest.packages, conftest.probed
snapshot = conftest.snapshot


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Attack both Debians in test-all (--both) and in soak, else one."""
    if "debian" in metafunc.fixturenames:
        one = (13,) if "swapped" in metafunc.definition.path.stem else (12,)
        debians = (12, 13) if metafunc.config.getoption("both") or os.environ.get("SOAK") else one
        ids = [f"debian{each}" for each in debians]
        metafunc.parametrize("debian", debians, ids=ids, indirect=True, scope="module")
