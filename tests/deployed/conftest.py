"""Which hosts are looked at: each is read in one command over SSH, all of them side by side."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from left4me import model
from tests.deployed.hosts import Host, NotRead, Target

_targets = pytest.StashKey[dict[str, Target]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Take the command line of pyinfra where it says which hosts."""
    group = parser.getgroup("left4me")
    group.addoption("--inventory", help="the inventory file, as for pyinfra")
    group.addoption("--limit", action="append", default=[], help="a host, a group or a pattern, as for pyinfra")
    group.addoption("--cycle", metavar="HOST/ID", help="stop and start this server, if nobody plays on it")


def pytest_configure(config: pytest.Config) -> None:
    """Load the inventory; a selection without hosts ends the run here."""
    inventory = config.getoption("inventory", None)
    if not inventory:
        raise pytest.UsageError("which hosts? --inventory FILE, as for pyinfra")
    limits = [f"--limit={limit}" for limit in config.getoption("limit")]
    command = [sys.executable, "-m", "left4me.fleet", inventory, *limits]
    loaded = subprocess.run(command, capture_output=True, text=True, check=False)
    if loaded.returncode != 0:
        refused = [line for line in loaded.stderr.splitlines() if line.startswith("refused: ")]
        raise pytest.UsageError("\n".join(refused) or loaded.stderr)
    config.stash[_targets] = {
        each["name"]: Target(
            each["name"], each["connection"], model.Host.model_validate_json(json.dumps(each["declares"]))
        )
        for each in json.loads(loaded.stdout)
    }
    _check_cycle(config)


def _check_cycle(config: pytest.Config) -> None:
    wanted = config.getoption("cycle")
    if wanted is None:
        return
    servers = [
        f"{name}/{server}" for name, target in config.stash[_targets].items() for server in target.declares.present
    ]
    if wanted not in servers:
        raise pytest.UsageError(
            f"--cycle {wanted}: no such server is selected; there are: {', '.join(servers) or 'none'}"
        )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out the one test that stops something, unless it is asked for."""
    return True if collection_path.name == "test_cycle.py" and not config.getoption("cycle") else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a set of tests for each host, or for each server of each host."""
    targets = metafunc.config.stash[_targets]
    if "cycled" in metafunc.fixturenames:
        name, _, server = metafunc.config.getoption("cycle").rpartition("/")
        metafunc.parametrize("cycled", [(targets[name], server)], ids=[f"{name}/{server}"])
    elif "server" in metafunc.fixturenames:
        pairs = [(name, server) for name, target in targets.items() for server in target.declares.present]
        metafunc.parametrize(("host", "server"), pairs, ids=["/".join(pair) for pair in pairs], indirect=["host"])
    elif "host" in metafunc.fixturenames:
        metafunc.parametrize("host", list(targets), ids=list(targets), indirect=True)


@pytest.fixture(scope="session")
def sockets(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory of our own for SSH's control sockets, closed at the end; short, for a socket's path is."""
    with tempfile.TemporaryDirectory(prefix="left4me-", ignore_cleanup_errors=True) as directory:
        yield Path(directory)
        for socket in Path(directory).iterdir():
            subprocess.run(
                ["ssh", "-O", "exit", "-o", f"ControlPath={socket}", "any"], capture_output=True, check=False
            )


@pytest.fixture(scope="session")
def readings(request: pytest.FixtureRequest, sockets: Path) -> dict[str, Host | NotRead]:
    """Read all hosts side by side."""

    def read(target: Target) -> Host | NotRead:
        try:
            return Host(target.name, target.declares, target.ask(target.question(), sockets))
        except NotRead as reason:
            return reason

    targets = request.config.stash[_targets]
    with ThreadPoolExecutor(min(32, len(targets))) as pool:
        return dict(zip(targets, pool.map(read, targets.values()), strict=True))


@pytest.fixture(scope="session")
def said() -> set[str]:
    """Hosts whose failure to be read has been reported."""
    return set()


@pytest.fixture
def host(request: pytest.FixtureRequest, readings: dict[str, Host | NotRead], said: set[str]) -> Host:
    """Return a host as it was read; one that could not be read fails once and skips the rest."""
    name: str = request.param
    reading = readings[name]
    if isinstance(reading, Host):
        return reading
    if name in said:
        pytest.skip(f"{name} was not read")
    said.add(name)
    pytest.fail(f"{name} cannot be read: {reading}", pytrace=False)
