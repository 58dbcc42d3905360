"""`make status HTML=PATH` over two hosts that answer and one that does not."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.boxes import boxes as machines
from tests.boxes.boxes import Box
from tests.boxes.deployed import up
from tests.integration.ctl import ctl, fleet, rcon, state
from tests.integration.harness import ROOT, wait_for, wait_for_server
from tests.unit.test_fleet_page import Node, parsed

URL = "https://cockpit.example.org/games"
RUDE = "<img src=x onerror=alert(1)>\x1b[31m"
MAPS = "/var/lib/left4me/runtime/3/merged/left4dead2/maps"


@pytest.fixture(scope="module")
def boxes(debian: int) -> Iterator[list[Box]]:
    names = [f"test-page-{debian}-{letter}" for letter in "ab"]
    yield up(names, debian, "layered")
    machines.down(names)


@pytest.fixture(scope="module")
def inventory(boxes: list[Box], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An inventory of both boxes and of a host where nobody answers; the first box has a page in Cockpit."""
    path = tmp_path_factory.mktemp("fleet") / "inventory"
    listed = fleet(path, boxes).read_text(encoding="utf-8")
    web = {"operators": "gamers", "web": {"listen": "127.0.0.1:9090", "url": URL}}
    path.write_text(
        f"{listed}"
        f"gone = [('gone', {{**boxes[0][1], 'ssh_hostname': '127.0.0.1', 'ssh_port': 9}})]\n"
        f"boxes[0][1].update({web!r})\n",
        encoding="utf-8",
    )
    return path


def make_status(*words: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "-s", "-o", ".venv/installed", "status", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def rows(article: Node) -> dict[str, list[str]]:
    """Return the cells of each server's row, by its id, without the declared hostname."""
    return {row.texts("th")[0]: row.texts("td")[1:] for row in article.all("tr")[1:]}


def test_the_page_has_the_servers_of_all_hosts(boxes: list[Box], inventory: Path, tmp_path: Path) -> None:
    first, second = boxes
    ctl(second, "stop 4")
    second.run(f"cp {MAPS}/c1m1_hotel.bsp $'{MAPS}/{RUDE}.bsp'; chmod a+r {MAPS}/*")
    rcon(second, 27015, f'map "{RUDE}"')
    wait_for("the map runs", lambda: RUDE[:10] in ctl(second, "status 3").stdout)
    path = tmp_path / "fleet.html"
    done = make_status(f"INVENTORY={inventory}", f"HTML={path}")
    assert done.returncode == 2  # of make: a host did not answer
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == ["HOST", *[first.name] * 2, *[second.name] * 2]
    assert re.search("^gone: .*refused", done.stderr, re.MULTILINE)

    root = parsed(path.read_text(encoding="utf-8"))
    gone, pending, fine = root.all("article")
    assert [each.texts("h3") for each in (gone, pending, fine)] == [["gone"], [second.name], [first.name]]
    assert "refused" in gone.texts("li")[0]
    assert gone.all("tr") == []
    assert pending.texts("li") == ["stopped by hand: 4: l4d2ctl start 4"]
    assert fine.texts("li") == []
    for box, article in ((first, fine), (second, pending)):
        shown = [line.split("\t") for line in ctl(box, "status").stdout.splitlines()[1:]]
        # The memory may have changed in between.
        assert {server: cells[:8] for server, cells in rows(article).items()} == {row[0]: row[1:9] for row in shown}
        assert rows(article)["3"][0] == state(box, "3") == "active"
    assert state(second, "4") == "inactive"
    assert "<img src=x onerror=alert(1)>?[31m" in rows(pending)["3"]
    assert root.all("img") == []
    assert "\x1b" not in path.read_text(encoding="utf-8")
    links = [each.attributes["href"] for each in root.all("a")]
    assert links == [f"{URL}/left4me#/servers", f"{URL}/left4me#/servers/3", f"{URL}/left4me#/servers/4"]

    # Without the host that is away; the file is replaced.
    ctl(second, "start 4")
    for box in boxes:
        for port in (27015, 27016):
            wait_for_server(box, port)
    done = make_status(f"INVENTORY={inventory}", "LIMIT=boxes", f"HTML={path}")
    assert (done.returncode, done.stderr) == (0, "")
    root = parsed(path.read_text(encoding="utf-8"))
    assert root.texts("h3") == [first.name, second.name]
    assert root.texts("li") == []
    assert [each.name for each in tmp_path.iterdir()] == ["fleet.html"]
