"""What pyinfra is told before it starts: bad input ends a run with exit 2 before anything is connected to."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
LAST = "No host was contacted and nothing has changed."


@pytest.fixture
def port() -> Iterator[int]:
    """A port of this machine to give to hosts; whoever connects to it makes the test fail."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]
        assert not select.select([listener], [], [], 0)[0], "something was connected to"


@pytest.fixture
def game(tmp_path: Path) -> dict[str, str]:
    """A game that would pass."""
    (tmp_path / "game").mkdir()
    (tmp_path / "game/srcds_run").touch(0o755)
    return {"source": "control", "path": str(tmp_path / "game")}


def write(path: Path, port: int, hosts: dict[str, dict[str, Any]]) -> Path:
    """Write an inventory of hosts at the listener."""
    ssh = {"ssh_hostname": "127.0.0.1", "ssh_port": port, "ssh_config_file": "/dev/null"}
    path.write_text(f"hosts = {[(name, {**ssh, **data}) for name, data in hosts.items()]!r}\n", encoding="utf-8")
    return path


def refusal(*arguments: str | Path, cwd: Path = ROOT) -> list[str]:
    """Start pyinfra as an operator does, which must refuse; return why, a line for each reason."""
    command = [str(Path(sys.executable).with_name("pyinfra")), *map(str, arguments)]
    environment = {**os.environ, "PYINFRA_PROGRESS": "off"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stdout == ""
    *lines, last = [line for line in done.stderr.splitlines() if line and not line.startswith(("-->", "    "))]
    assert last == LAST
    assert all(line.startswith("refused: ") for line in lines), lines
    return [line.removeprefix("refused: ") for line in lines]


def test_good_data_gets_as_far_as_a_connection(tmp_path: Path, game: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        inventory = write(tmp_path / "hosts", listener.getsockname()[1], {"one": {"game": game}})
        command = [str(Path(sys.executable).with_name("pyinfra")), str(inventory), "deploy.py", "-y"]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            connected, _, _ = select.select([listener], [], [], 20)
            process.kill()
        assert connected


def test_all_mistakes_of_all_hosts_are_told_at_once(tmp_path: Path, port: int, game: dict[str, str]) -> None:
    (tmp_path / "empty").mkdir()
    inventory = write(
        tmp_path / "hosts",
        port,
        {
            "good": {"game": game, "servers": {"3": {"port": 27015}}},
            "type": {"game": game, "servers": {"3": {"port": "27015"}}},
            "key": {"game": game, "servers": {"3": {"port": 27015, "maxplayers": 4}}, "adress": "10.0.0.1"},
            "port": {"game": game, "servers": {"3": {"port": 27015}, "4": {"port": 27015}}},
            "id": {"game": game, "servers": {"_check": {"port": 27015}}},
            "gone": {"game": {"source": "control", "path": str(tmp_path / "nowhere")}},
            "empty": {"game": {"source": "control", "path": str(tmp_path / "empty")}},
            "none": {"game": {}},
        },
    )
    assert sorted(refusal(inventory, "deploy.py", "-y")) == sorted(
        [
            "type: servers.3.port: '27015': input should be a valid integer",
            "key: adress: (hidden): is not a known key",
            "key: servers.3.maxplayers: (hidden): is not a known key",
            "port: servers.4.port: 27015: is already the port of server 3",
            "id: servers._check: '_check': must match ^[a-z0-9][a-z0-9_-]{0,19}$",
            f"gone: game.path: '{tmp_path}/nowhere': is not a directory on this machine",
            f"empty: game.path: '{tmp_path}/empty': "
            "has no executable srcds_run: it must be the directory of an installed L4D2 server",
            "none: game: {}: has no `source`",
        ]
    )


def test_a_mistake_of_a_host_outside_the_limit_is_told_too(tmp_path: Path, port: int, game: dict[str, str]) -> None:
    inventory = write(tmp_path / "hosts", port, {"good": {"game": game}, "bad": {"game": game, "uid": 0}})
    [line] = refusal(inventory, "deploy.py", "-y", "--limit", "good")
    assert line.startswith("bad: uid: 0: ")


@pytest.mark.parametrize("limit", [("--limit", "nobody"), ("--exclude", "one")])
def test_no_host_left(tmp_path: Path, port: int, game: dict[str, str], limit: tuple[str, str]) -> None:
    inventory = write(tmp_path / "hosts", port, {"one": {"game": game}})
    [line] = refusal(inventory, "deploy.py", "-y", *limit)
    assert line.endswith("the inventory has: one")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no such file"),
        ("", "the inventory has no hosts"),
        ("hosts = [", "was never closed"),
        ("hosts = []\nservers = 1 / 0\n", "2: ZeroDivisionError"),
        ("hosts = [('one', 3)]\n", "is not a list of hosts that pyinfra can read"),
    ],
)
def test_an_inventory_that_cannot_be_used(tmp_path: Path, content: str | None, reason: str) -> None:
    inventory = tmp_path / "hosts"
    if content is not None:
        inventory.write_text(content, encoding="utf-8")
    [line] = refusal(inventory, "deploy.py", "-y")
    assert reason in line


def test_a_folder_is_no_inventory(tmp_path: Path) -> None:
    [line] = refusal(tmp_path, "deploy.py", "-y")
    assert line == f"inventory {tmp_path}: is a directory: give the path of the inventory file in it"


def test_group_data_that_cannot_be_read(tmp_path: Path, port: int, game: dict[str, str]) -> None:
    inventory = write(tmp_path / "hosts", port, {"one": {"game": game}})
    (tmp_path / "group_data").mkdir()
    (tmp_path / "group_data/all.py").write_text("uid = undefined\n", encoding="utf-8")
    [line] = refusal(inventory, "deploy.py", "-y")
    assert line == f"{tmp_path}/group_data/all.py:1: NameError: name 'undefined' is not defined"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("-y",), "remove.py works on one host: add --limit with one of one, two"),
        (("--limit", "hosts", "-y"), "remove.py works on one host: add --limit with one of one, two"),
        (("--exclude", "two"), "remove.py works on one host: add --limit with one of one"),
        (
            ("--limit", "one", "-y"),
            "remove.py -y does not ask, so confirm the host: add --data remove=one",
        ),
        (("--limit", "one", "--data", "remove=two"), "--data remove=two is not the host of --limit, one"),
        (("--limit", "one", "--data", "keep=maybe"), "--data keep= must be yes (the default) or no"),
        (("deploy.py", "--limit", "one"), "remove.py cannot run together with other operations: give it alone"),
    ],
)
def test_which_host_left4me_is_taken_off_has_to_be_plain(
    tmp_path: Path, port: int, game: dict[str, str], arguments: tuple[str, ...], reason: str
) -> None:
    inventory = write(tmp_path / "hosts", port, {"one": {"game": game}, "two": {"game": game}})
    assert refusal(inventory, "remove.py", *arguments) == [reason]


def test_a_run_without_our_hooks_is_not_a_deploy(tmp_path: Path, port: int, game: dict[str, str]) -> None:
    """The tests above fail where pyinfra calls no hook; this shows what they would then see."""
    (tmp_path / "config.py").write_text("", encoding="utf-8")
    inventory = write(tmp_path / "hosts", port, {"one": {"game": game}})
    command = [str(Path(sys.executable).with_name("pyinfra")), str(inventory), "deploy.py", "-y", "--limit", "nobody"]
    command += ["--config", str(tmp_path / "config.py")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    assert LAST not in done.stderr
