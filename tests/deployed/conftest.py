"""Select the hosts and read each with one command over SSH, in parallel."""

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
from left4me_host.instance import plain
from tests.deployed.hosts import Host, NotRead, Target
from tests.deployed.pending_states import Pending, pending

SILENT_SECONDS = 5
"""Seconds after which the hosts that are still being read are named."""
_targets = pytest.StashKey[dict[str, Target]]()
_pending = pytest.StashKey[list[Pending]]()
_links = pytest.StashKey[dict[str, dict[str, str]]]()
"""Links that point outside the current build, by host."""
_failed = pytest.StashKey[set[str]]()
"""HOST/ID of the servers with failed tests: what is pending of them is not listed."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("left4me")
    group.addoption("--inventory", help="the inventory file, as for pyinfra")
    group.addoption("--limit", action="append", default=[], help="only this host, group or pattern; can be repeated")
    group.addoption("--grace", type=duration, default="2m", help="how long a server may take to answer (default: 2m)")
    group.addoption("--no-pending", action="store_true", help="fail if something is pending")
    group.addoption("--pending-json", metavar="FILE", type=Path, help="write what is pending to FILE as JSON")
    group.addoption(
        "--cycle", metavar="HOST/ID", help="stop and start this server and check the stop, if it has no players"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Load the inventory. Raises UsageError if it is invalid or no host is selected."""
    inventory = config.getoption("inventory", None)
    if not inventory:
        raise pytest.UsageError("no hosts selected: use --inventory FILE, as for pyinfra")
    limits = [f"--limit={limit}" for limit in config.getoption("limit")]
    command = [sys.executable, "-m", "left4me.inventory_export", inventory, *limits]
    loaded = subprocess.run(command, capture_output=True, text=True, check=False)
    if loaded.returncode != 0:
        refused = [line for line in loaded.stderr.splitlines() if line.startswith("refused: ")]
        raise pytest.UsageError("\n".join(refused) or loaded.stderr)
    config.stash[_pending], config.stash[_failed], config.stash[_links] = [], set(), {}
    config.stash[_targets] = {
        each["name"]: Target(
            each["name"], each["connection"], model.Host.model_validate_json(json.dumps(each["declares"]))
        )
        for each in json.loads(loaded.stdout)
    }
    _check_cycle(config)


def _check_cycle(config: pytest.Config) -> None:
    cycled = config.getoption("cycle")
    if cycled is None:
        return
    servers = [
        f"{name}/{server}" for name, target in config.stash[_targets].items() for server in target.declares.present
    ]
    if cycled not in servers:
        raise pytest.UsageError(
            f"--cycle {cycled}: no such server is selected; selected are: {', '.join(servers) or 'none'}"
        )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Skip the test that stops a server, unless --cycle is given."""
    return True if collection_path.name == "test_cycle.py" and not config.getoption("cycle") else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize the tests over the hosts, or over the servers of all hosts."""
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
    """Read all hosts in parallel."""

    grace: float = request.config.getoption("grace")

    def read(target: Target) -> Host | NotRead:
        try:
            found = target.read(grace)
        except NotRead as reason:
            return reason
        return Host(target.name, target.declares, found, pending(target.name, found, target.declares, grace))

    targets = request.config.stash[_targets]
    with ThreadPoolExecutor(min(32, len(targets))) as pool:
        reading = {name: pool.submit(read, target) for name, target in targets.items()}
        slow = wait(reading.values(), SILENT_SECONDS).not_done
        if names := [name for name, each in reading.items() if each in slow]:
            capture = request.config.pluginmanager.get_plugin("capturemanager")
            assert capture
            with capture.global_and_fixture_disabled():
                print(f"\nreading {', '.join(names)}: a server that does not answer takes up to {grace:.0f} s")
        result = {name: each.result() for name, each in reading.items()}
    for host in result.values():
        if isinstance(host, Host):
            if links := host.found["links_out"]:
                request.config.stash[_links][host.name] = links
            for kinds in host.pending.values():
                request.config.stash[_pending].extend(kinds.values())
    return result


@pytest.fixture(scope="session")
def unreadable() -> set[str]:
    """Return the hosts that could not be read and for which a test has failed."""
    return set()


@pytest.fixture
def host(request: pytest.FixtureRequest, readings: dict[str, Host | NotRead], unreadable: set[str]) -> Host:
    """Return a host as it was read. For a host that cannot be read, one test fails and the others are skipped."""
    name: str = request.param
    reading = readings[name]
    if isinstance(reading, Host):
        return reading
    if name in unreadable:
        pytest.skip(f"{name} could not be read")
    unreadable.add(name)
    pytest.fail(f"{name} cannot be read: {reading}", pytrace=False)


@pytest.fixture(autouse=True)
def _pending_in_junit(request: pytest.FixtureRequest) -> None:
    """Add what is pending of a server to the junit properties of its tests."""
    if "server" not in request.fixturenames or "host" not in request.fixturenames:
        return
    reading = request.getfixturevalue("host")
    for each in reading.pending.get(request.node.callspec.params["server"], {}).values():
        request.node.user_properties.append(("pending", json.dumps(asdict(each))))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Record the servers with failed tests."""
    report = yield
    callspec = getattr(item, "callspec", None)
    if report.failed and callspec and "server" in callspec.params:
        item.config.stash[_failed].add(f"{callspec.params['host']}/{callspec.params['server']}")
    return report


def _listed(config: pytest.Config) -> list[Pending]:
    """Return what is pending of servers without failed tests."""
    return [each for each in config.stash[_pending] if f"{each.host}/{each.server}" not in config.stash[_failed]]


def pytest_sessionfinish(session: pytest.Session) -> None:
    if path := session.config.getoption("pending_json"):
        path.write_text(json.dumps([asdict(each) for each in _listed(session.config)], indent=1), encoding="utf-8")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print links that have no effect, and one table of what is pending, with the commands that end it."""
    for name, links in config.stash[_links].items():
        terminalreporter.write_line(
            f"{name}: links that point outside the game's build and are broken inside a server:"
        )
        for path, target in sorted(links.items())[:200]:
            terminalreporter.write_line(plain(f"  {path} -> {target}"[:1000]))
    if not (listed := _listed(config)):
        return
    lines = [("HOST", "SERVER", "PENDING", "SINCE", "BY", "DO")]
    lines += [(each.host, each.server, each.pending, each.since or "-", each.by or "-", each.do) for each in listed]
    shown = [[plain(cell[:1000]) for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    terminalreporter.write_line("pending:")
    for line in shown:
        terminalreporter.write_line("  ".join(map(str.ljust, line, widths)).rstrip())
