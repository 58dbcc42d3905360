"""Boxes for the tests: one per module and Debian, deployed once and removed afterwards."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from tests.boxes import boxes as machines
from tests.boxes.boxes import Box
from tests.boxes.deployed import DATA, PACKAGES, Kind, up
from tests.boxes.game import build
from tests.integration.harness import ROOT, deploy, wait_for_server, write_inventory
from tests.integration.probe import ATTEMPT, DROP_IN, PROBE, UNIT, VAR
from tests.integration.rolling import FOLDER

DEBIANS = {
    # One Debian is enough if the result does not depend on systemd, Python or util-linux of the host.
    **dict.fromkeys(
        ("doctor", "killed", "l4d2ctl", "layers", "rcon", "refused", "rollout", "server_settings", "sources"), (12,)
    ),
    **dict.fromkeys(("fleet", "fleet_page", "holders", "lock", "removal", "remove", "reset", "resets"), (13,)),
    # Story 10 covers the webhook on both Debians; every story runs verification on both.
    **dict.fromkeys(("update", "verification", "webhook"), (13,)),
}
SNAPSHOTS: dict[str, Kind] = {
    # The boxes of these modules start deployed. Other modules declare the data of their boxes.
    **dict.fromkeys(("faults", "helper", "holders", "lock", "sandbox", "start", "verification", "web"), "plain"),
    **dict.fromkeys(("doctor", "firewall", "from_a_server", "jobs", "rcon"), "layered"),
}


def alternated(items: list[pytest.Item]) -> list[pytest.Item]:
    """Drop every second test marked as alternating, so that its parameters alternate between the Debians."""
    kept: list[pytest.Item] = []
    seen: Counter[tuple[str, object]] = Counter()
    for item in items:
        if item.get_closest_marker("alternating") and isinstance(item, pytest.Function):
            debian = int(item.callspec.params["debian"])  # type: ignore[call-overload]
            name = (item.nodeid.partition("[")[0], debian)
            seen[name] += 1
            if seen[name] % 2 != debian % 2:
                continue
        kept.append(item)
    return kept


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the box tests without root; on CI that is an error."""
    items[:] = alternated(items)
    if os.geteuid() == 0:
        return
    if os.environ.get("CI"):
        raise pytest.UsageError("the box tests need root and must not be skipped on CI")
    for item in items:
        item.add_marker(pytest.mark.skip(reason="test boxes need root"))


@pytest.fixture(scope="session")
def game() -> Path:
    """Build the stand-in game and return its directory."""
    return build()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the tests of a module on both Debians, or on the one in DEBIANS."""
    # A module with its own `debian` fixture chooses by itself.
    if "debian" in metafunc.fixturenames and not hasattr(metafunc.module, "debian"):
        debians = DEBIANS.get(metafunc.definition.path.stem.removeprefix("test_"), (12, 13))
        ids = [f"debian{each}" for each in debians]
        metafunc.parametrize("debian", debians, ids=ids, indirect=True, scope="module")


@pytest.fixture(scope="module")
def debian(request: pytest.FixtureRequest) -> int:
    """Return the Debian version that a test runs on."""
    number: int = request.param
    return number


@pytest.fixture(scope="module")
def packages() -> Sequence[str]:
    """Return the packages in the image of a module's box; only some modules test their installation."""
    return PACKAGES


@pytest.fixture(scope="module")
def snapshot(request: pytest.FixtureRequest) -> Kind | None:
    """Return the snapshot that a module's box starts from, or None for a new box."""
    return SNAPSHOTS.get(request.path.stem.removeprefix("test_"))


@pytest.fixture(scope="module")
def box(debian: int, snapshot: Kind | None, packages: Sequence[str], request: pytest.FixtureRequest) -> Iterator[Box]:
    """Start a box for the tests of a module."""
    stem = request.path.stem.removeprefix("test_").replace("_", "-")
    name = f"test-{stem[:8]}-{debian}"
    machines.down([each.name for each in machines.boxes() if each.name == name])
    [box] = up([name], debian, snapshot) if snapshot else machines.up([name], debian, packages)
    yield box
    machines.down([name])


@pytest.fixture(scope="module")
def inventory(box: Box, snapshot: Kind | None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the inventory of the module's box, with servers 3 and 4."""
    return write_inventory(tmp_path_factory.mktemp("fleet") / "inventory", [box], **DATA[snapshot or "plain"])


@pytest.fixture(scope="module")
def deployed(box: Box, inventory: Path, snapshot: Kind | None, game: Path) -> Box:
    """Deploy to the module's box and return it."""
    if not snapshot:
        deploy(inventory)
    return box


@pytest.fixture(scope="module")
def probed(deployed: Box) -> Box:
    """The module's box with servers 3 and 4 running, and the probe on it."""
    for port in (27015, 27016):
        wait_for_server(deployed, port)
    deployed.run(f"cat >{PROBE}", input=ATTEMPT.encode())
    return deployed


@pytest.fixture
def drop_in(probed: Box) -> Iterator[Box]:
    """The box with server 3 stopped; afterwards drop-in and what it wrote are gone, and it runs again."""
    probed.run(f"systemctl stop {UNIT}; mkdir -p {DROP_IN}")
    yield probed
    probed.run(f"""
        systemctl stop {UNIT}; rm -r {DROP_IN}; find {VAR}/runtime/3/upper -mindepth 1 -delete
        systemctl daemon-reload; systemctl reset-failed; systemctl start {UNIT}
    """)
    wait_for_server(probed, 27015)


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Remove the reports of this process's rollouts, found by the path of their inventory: others run in parallel."""
    yield
    own = json.dumps(str(tmp_path_factory.getbasetemp()))[1:-1]
    for report in FOLDER.glob("*"):
        with suppress(FileNotFoundError):
            if own in report.read_text(encoding="utf-8"):
                report.unlink()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Save the journal of a failed test's box and add its path to the report."""
    report = yield
    box = getattr(item, "funcargs", {}).get("box")
    if report.failed and isinstance(box, Box) and box.directory.exists():
        folder = ROOT / ".boxes" / "journals"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{item.name.replace('/', '_')}-{report.when}.log"
        path.write_text(box.journal(), encoding="utf-8")
        report.sections.append(("journal of the box", str(path)))
    return report
