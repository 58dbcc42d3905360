"""The attacks run on the same boxes as the integration tests; an attacked box serves one module."""

from tests.integration import conftest

# pytest finds fixtures and hooks by their names here.
box, debian, deployed, drop_in = conftest.box, conftest.debian, conftest.deployed, conftest.drop_in
game, inventory, packages, probed = conftest.game, conftest.inventory, conftest.packages, conftest.probed
pytest_generate_tests, snapshot = conftest.pytest_generate_tests, conftest.snapshot
