"""Which hosts are looked at: each is read in one command over SSH, all of them side by side."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path

import pytest

from left4me import model
from left4me.rollout.waves import duration
from tests.deployed.hosts import READ_SECONDS, Host, NotRead, Target
from tests.deployed.pending_states import Pending, pending

SILENT_SECONDS = 5
"""After which it is said what is waited for."""
_targets = pytest.StashKey[dict[str, Target]]()
_pending = pytest.StashKey[list[Pending]]()
_links = pytest.StashKey[dict[str, dict[str, str]]]()
"""Links that lead out of the current build, by host."""
_wrong = pytest.StashKey[set[str]]()
"""The HOST/ID of servers of which something is wrong, which beats pending."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Take the command line of pyinfra where it says which hosts."""
    group = parser.getgroup("left4me")
    group.addoption("--inventory", help="the inventory file, as for pyinfra")
    group.addoption("--limit", action="append", default=[], help="a host, a group or a pattern, as for pyinfra")
    group.addoption("--grace", type=duration, default="2m", help="how long a server may take to answer (default: 2m)")
    group.addoption("--no-pending", action="store_true", help="fail where something is pending")
    group.addoption("--pending-json", metavar="FILE", type=Path, help="write what is pending there, for programs")
    group.addoption("--cycle", metavar="HOST/ID", help="stop and start this server, if nobody plays on it")


def pytest_configure(config: pytest.Config) -> None:
    """Load the inventory; a selection without hosts ends the run here."""
    inventory = config.getoption("inventory", None)
    if not inventory:
        raise pytest.UsageError("which hosts? --inventory FILE, as for pyinfra")
    limits = [f"--limit={limit}" for limit in config.getoption("limit")]
    command = [sys.executable, "-m", "left4me.inventory_export", inventory, *limits]
    loaded = subprocess.run(command, capture_output=True, text=True, check=False)
    if loaded.returncode != 0:
        refused = [line for line in loaded.stderr.splitlines() if line.startswith("refused: ")]
        raise pytest.UsageError("\n".join(refused) or loaded.stderr)
    config.stash[_pending], config.stash[_wrong], config.stash[_links] = [], set(), {}
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
def readings(request: pytest.FixtureRequest) -> dict[str, Host | NotRead]:
    """Read all hosts side by side."""

    grace: float = request.config.getoption("grace")

    def read(target: Target) -> Host | NotRead:
        try:
            found = target.ask(target.question(grace), READ_SECONDS + grace)
        except NotRead as reason:
            return reason
        return Host(target.name, target.declares, found, pending(target.name, found, target.declares, grace))

    targets = request.config.stash[_targets]
    with ThreadPoolExecutor(min(32, len(targets))) as pool:
        reading_of = {name: pool.submit(read, target) for name, target in targets.items()}
        slow = wait(reading_of.values(), SILENT_SECONDS).not_done
        if names := [name for name, each in reading_of.items() if each in slow]:
            capture = request.config.pluginmanager.get_plugin("capturemanager")
            assert capture
            with capture.global_and_fixture_disabled():
                print(f"\nreading {', '.join(names)}: a server that does not answer is asked for {grace:.0f} s")
        result = {name: each.result() for name, each in reading_of.items()}
    for reading in result.values():
        if isinstance(reading, Host):
            if links := reading.found["links_out"]:
                request.config.stash[_links][reading.name] = links
            for kinds in reading.pending.values():
                request.config.stash[_pending].extend(kinds.values())
    return result


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


@pytest.fixture(autouse=True)
def _pending_in_junit(request: pytest.FixtureRequest) -> None:
    """Note in junit, as properties of each test of a server, what is pending of that server."""
    if "server" not in request.fixturenames or "host" not in request.fixturenames:
        return
    reading = request.getfixturevalue("host")
    for each in reading.pending.get(request.node.callspec.params["server"], {}).values():
        request.node.user_properties.append(("pending", json.dumps(asdict(each))))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note of which servers something is wrong."""
    report = yield
    callspec = getattr(item, "callspec", None)
    if report.failed and callspec and "server" in callspec.params:
        item.config.stash[_wrong].add(f"{callspec.params['host']}/{callspec.params['server']}")
    return report


def _listed(config: pytest.Config) -> list[Pending]:
    """Return what is pending of servers of which nothing is wrong."""
    return [each for each in config.stash[_pending] if f"{each.host}/{each.server}" not in config.stash[_wrong]]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write what is pending for programs."""
    if path := session.config.getoption("pending_json"):
        path.write_text(json.dumps([asdict(each) for each in _listed(session.config)], indent=1), encoding="utf-8")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """End with one list of what is pending: not wrong, and each with the command that ends it.

    Before it stands what may have no effect.
    """
    for name, links in config.stash[_links].items():
        terminalreporter.write_line(f"{name}: links that lead out of the game's build, where a server sees nothing:")
        for path, target in sorted(links.items()):
            terminalreporter.write_line(f"  {path} -> {target}")
    if not (listed := _listed(config)):
        return
    lines = [("HOST", "SERVER", "PENDING", "SINCE", "BY", "DO")]
    lines += [(each.host, each.server, each.pending, each.since or "-", each.by or "-", each.do) for each in listed]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    terminalreporter.write_line("pending:")
    for line in lines:
        terminalreporter.write_line("  ".join(map(str.ljust, line, widths)).rstrip())
