"""The README as a stranger follows it, in a fresh clone: every command in it, and the words of its demo."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.harness import ROOT
from tests.integration.test_web import BROWSER, WORKS

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMAND = re.compile(r"^(git|cd|make|pyinfra|pytest|python|l4d2ctl|\.|\./box)\b")

pytestmark = pytest.mark.xdist_group("debian13")


def blocks() -> list[str]:
    """Return the README's indented blocks, without their indent."""
    found = re.findall(r"(?:^    .*\n|^\n(?=    ))+", README, flags=re.MULTILINE)
    return [re.sub(r"^    ", "", block, flags=re.MULTILINE).strip() for block in found]


def uncommented(block: str) -> list[str]:
    """Return the lines of a block without the comments behind its commands."""
    return [line.partition("  #")[0].rstrip() for line in block.splitlines()]


def commands() -> set[str]:
    """Return every line of a block, and everything in backquotes, that is a command."""
    lines = {line for block in blocks() for line in uncommented(block) if COMMAND.match(line)}
    quoted = {
        text
        for text in re.findall(r"`([^`]+)`", README)
        if re.match(r"(make|\./box|pytest|pyinfra|python|l4d2ctl) \S", text)
    }
    return lines | quoted


class Reader:
    """Somebody who types what the README says, and remembers what he has typed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.typed: set[str] = set()

    def types(self, command: str, instead: str | None = None) -> str:
        """Type a command of the README (`instead` where it has to differ), which must succeed."""
        self.typed.add(command)
        # Debian's /bin/sh, with the environment that the README says to activate.
        words = ["sh", "-c", f"if [ -f .venv/bin/activate ]; then . .venv/bin/activate; fi; {instead or command}"]
        done = subprocess.run(words, cwd=self.folder, capture_output=True, text=True, timeout=900, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """Clone the repository, as committed."""
    folder = tmp_path_factory.mktemp("stranger") / "left4me"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    someone = Reader(folder)
    someone.typed.add("git clone … && cd left4me")
    yield someone
    subprocess.run(["./box", "down"], cwd=folder, check=True, capture_output=True)


def test_the_demo_ends_with_the_figures_that_the_readme_shows(reader: Reader) -> None:
    said = reader.types("make demo")
    [shown] = [block for block in blocks() if "Stop duration" in block]
    assert labels(shown) == labels(said)
    for line in shown.splitlines()[-4:]:
        assert line in said


def labels(text: str) -> list[str]:
    """Return the left column of what the demo prints at its end."""
    return re.findall(r"^(name|map|players|Stop duration|Holders.*?|Unit.*?|Exit.*?|Mounts.*?)  ", text, re.MULTILINE)


def test_hosts_of_ones_own_beside_the_clone_are_deployed_and_proved(reader: Reader) -> None:
    [box] = [line.split() for line in reader.types("./box list", "./box list").splitlines() if "box1" in line]
    reader.typed.discard("./box list")
    address = next(word for word in box if word.count(".") == 3)
    inside = "mkdir -p /home/steam && useradd steam && cp -r /var/lib/left4me/installation/ /home/steam/serverfiles"
    reader.types("./box ssh", f"./box ssh box1 '{inside} && chown -R steam:steam /home/steam'")
    reader.typed.discard("./box ssh")
    [inventory] = [block for block in blocks() if "hosts = [" in block]
    layer = reader.folder.parent / "layers/evening/left4dead2/cfg"
    layer.mkdir(parents=True)
    (layer / "evening.cfg").write_text("sv_alltalk 1\n", encoding="utf-8")
    # The password store of whoever reads it.
    store = reader.folder / ".venv/bin/pass"
    store.write_text('#!/bin/sh\ntest "$*" = left4me/4 && echo out-of-a-store\n', encoding="utf-8")
    store.chmod(0o755)
    how = {
        "ssh_hostname": address,
        "ssh_key": str(reader.folder / ".boxes/key"),
        "ssh_known_hosts_file": str(reader.folder / ".boxes/box1/known_hosts"),
        "ssh_config_file": "/dev/null",
    }
    fleet = reader.folder.parent / "fleet"
    fleet.mkdir()
    text = inventory.replace('"ssh_user": "root",', f'"ssh_user": "root", **{how!r},')
    (fleet / "inventory").write_text(text, encoding="utf-8")
    # The demo's server goes on with the demo's game until it is started again.
    reader.types(". .venv/bin/activate")
    reader.types("pyinfra ../fleet/inventory deploy.py", "pyinfra ../fleet/inventory deploy.py -y")
    reader.types("./box ssh", "./box ssh box1 systemctl restart left4me-server@3")
    reader.typed.discard("./box ssh")
    shown = reader.types("make show HOST=game1.example.org INVENTORY=../fleet/inventory")
    assert '"Our evening"' in shown
    assert "out-of-a-store" not in shown
    reader.types("make verify INVENTORY=../fleet/inventory")
    reader.types("make verify", "make verify INVENTORY=../fleet/inventory LIMIT=game1.example.org")
    # What the layer and the cfg files changed is in force since that restart: nothing is pending.
    reader.types("pytest tests/deployed --inventory ../fleet/inventory --no-pending")
    reader.types("pytest tests/deployed --inventory ../fleet/inventory --cycle game1.example.org/3")


def test_the_fleet_is_rolled_out(reader: Reader) -> None:
    assert "nothing to change" in reader.types("python rollout.py ../fleet/inventory --dry")
    command = "python rollout.py ../fleet/inventory --waves 1,10%,100% --drain 20m"
    assert "Done and verified: 1 host." in reader.types(command, f"{command} -y")
    assert "--exclude" in reader.types("python rollout.py ../fleet/inventory --help")


def test_the_servers_are_run_from_day_to_day(reader: Reader) -> None:
    assert "game1.example.org" in reader.types("make status INVENTORY=../fleet/inventory")
    [block] = [block for block in blocks() if block.startswith("l4d2ctl")]
    tested_in_test_update = {f"l4d2ctl game {act}" for act in ("update --check", "update", "rollback")}
    reader.typed |= tested_in_test_update  # with a stand-in for Steam
    for command in uncommented(block):
        if command not in tested_in_test_update:
            # The first job of the box is the demo's reset.
            reader.types(command, f"./box ssh box1 {command.replace('164', '1')}")
    assert "revision" in reader.types("l4d2ctl --version", "./box ssh box1 l4d2ctl --version")
    assert "reset --undo" in reader.types("l4d2ctl --help", "./box ssh box1 l4d2ctl --help")


def test_the_demo_with_the_page_says_where_it_is_and_who_may_log_in(reader: Reader) -> None:
    said = reader.types("make demo WEB=1")
    [(address, port, user, password)] = re.findall(
        r"^The page: https://([\d.]+):(\d+)/left4me, as user (\S+) with password (\S+)$", said, re.MULTILINE
    )
    words = [sys.executable, "-c", BROWSER, address, port, user, password, "/cockpit/login"]
    page = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert json.loads(page) == WORKS
    assert said.count(password) == 1


def test_every_command_of_the_readme_was_typed(reader: Reader) -> None:
    assert "Test box" not in reader.types("./box --help")
    reader.types("./box down")
    reader.typed |= {"make lint", "make test", "make test-all", "make soak"}  # this is them
    reader.types("make bench", "make --dry-run bench")  # minutes: that it is there is enough
    assert commands() - reader.typed == set()
