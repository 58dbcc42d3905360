"""A hostile game swaps links, fifos and hard links in its files while root mounts, resets, undoes, mends and removes.

The game is a layer's program in the place of srcds_run, inside the real unit. Whatever it does, nothing outside its own
directory changes, and each of root's commands ends with an answer.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import pytest

from tests.boxes.boxes import Box
from tests.integration.ctl import main_pid, state
from tests.integration.harness import deploy, rounds, wait_for, wait_for_server, write_inventory

ROUNDS = rounds(3, 40)
LIMIT = 30
"""Seconds that each command of root may take at most."""
GAME = rb"""#!/usr/bin/python3 -I
import os, shutil, signal, sys
signal.signal(signal.SIGINT, lambda *_: os._exit(0))
TOP = "left4dead2/saved"
TARGETS = [
    "/root", "/root/canary", "/etc/left4me/servers/4", "/etc/left4me/servers/4/server.env", "/etc/shadow",
    "/var/lib/left4me/runtime/4/upper/left4dead2", "/var/lib/left4me/attic", "/var/lib/left4me/secrets",
    "../../../../4",
]
def link(path, turn):
    os.symlink(TARGETS[turn % len(TARGETS)], path)
def fifo(path, turn):
    os.mkfifo(path)
def file(path, turn):
    with open(path, "w") as out:
        out.write(f"turn {turn}")
def hard(path, turn):
    file(path + ".first", turn)
    os.link(path + ".first", path)
def tree(path, turn):
    os.makedirs(path + "/a/b/c")
    link(path + "/a/link", turn)
    file(path + "/stats.txt", turn)
def deep(path, turn):
    here = os.open(os.path.dirname(path), os.O_RDONLY)
    name = os.path.basename(path)
    for _ in range(300):
        os.mkdir(name, dir_fd=here)
        inner = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here, name = inner, "d" * 200
    os.close(here)
def remove(path):
    try:
        os.unlink(path)
    except IsADirectoryError:
        shutil.rmtree(path, ignore_errors=True)
    except FileNotFoundError:
        pass
PLACES = [f"{TOP}/evening/stats.txt", f"{TOP}/evening", TOP, "left4dead2/cfg/banned_user.cfg", "left4dead2/addons.new"]
turn = 0
os.chdir("/" + os.path.relpath(os.path.dirname(os.path.abspath(sys.argv[0])), "/"))
print("the attack begins", flush=True)
while True:
    for place in PLACES:
        for make in (link, fifo, file, hard, tree, deep):
            turn += 1
            try:
                os.makedirs(os.path.dirname(place), exist_ok=True)
                new = f"{os.path.dirname(place)}/.new{turn}"
                make(new, turn)
                remove(place)
                os.rename(new, place)
            except OSError:
                pass
"""
STATE = (
    "cd /var/lib/left4me; find /root /home /etc /srv /usr/local $PWD/releases $PWD/overlays $PWD/secrets "
    "$PWD/runtime/4 -xdev ! -path '/root/.*' ! -name mtab "
    r"\( -type d -printf '%p d %m %U %G %T@\n' -o -printf '%p %y %m %U %G %s %l %C@\n' \) | sort"
)
"""What the attack aims at, of root and server 4: a change of a file shows in its ctime, of a directory in its mtime."""


@pytest.fixture(scope="module")
def attacked(box: Box, game: Path, tmp_path_factory: pytest.TempPathFactory) -> Box:
    """A box whose server 3 runs a hostile game; a reset is to keep two of the paths that it swaps."""
    folder = tmp_path_factory.mktemp("hostile")
    program = folder / "layer/srcds_run"
    program.parent.mkdir()
    program.write_bytes(GAME)
    program.chmod(0o755)
    servers = {
        "3": {
            **{"port": 27015, "layers": ["hostile"], "state": "stopped"},
            "keep": ["left4dead2/saved/evening/stats.txt", "left4dead2/cfg/banned_user.cfg"],
        },
        "4": {"port": 27016, "hostname": "four"},
    }
    layers = {"hostile": {"source": "control", "path": str(program.parent)}}
    deploy(write_inventory(folder / "inventory", [box], servers=servers, layers=layers))
    wait_for_server(box, 27016)
    box.run("echo secret >/root/canary && chmod 600 /root/canary")
    box.run("echo evening >/var/lib/left4me/runtime/4/merged/left4dead2/evening.txt")
    return box


def root_runs(box: Box, command: str) -> str:
    """Run a command as root while the game swaps its files; it must end in time, with an answer and no traceback."""
    begin = time.monotonic()
    done = box.run(command, check=False, timeout=LIMIT)
    said = done.stdout + done.stderr
    assert "Traceback" not in said, f"{command}: {said}"
    assert time.monotonic() - begin < LIMIT, command
    return said


def has_begun(box: Box, times: int) -> bool:
    """Return whether the hostile game has begun so many times."""
    began = box.run("journalctl -o cat -u left4me-server@3 | grep -c 'the attack begins'", check=False).stdout
    return int(began or 0) >= times


def test_nothing_outside_changes_while_root_works_on_a_swapped_tree(attacked: Box) -> None:
    box, before, neighbour = attacked, attacked.run(STATE).stdout, main_pid(attacked, "4")
    for number in range(ROUNDS):
        box.run("systemctl reset-failed; l4d2ctl start 3", timeout=LIMIT)
        wait_for("the game swaps its files", partial(has_begun, box, number + 1), 20)
        for command in ("l4d2ctl status", "l4d2ctl doctor --fix", "l4d2ctl holders 3", "l4d2ctl attic 3"):
            root_runs(box, command)
        for command in (
            *("l4d2ctl reset 3", "l4d2ctl reset --undo 3", "l4d2ctl stop 3", "l4d2ctl doctor --fix", "l4d2ctl reset 3"),
            *("systemctl start left4me-attic", "l4d2ctl start 3", "l4d2ctl stop 3"),
        ):
            root_runs(box, command)
        assert state(box, "3") == "inactive"
        assert "/runtime/3/" not in box.run("cat /proc/1/mountinfo").stdout
    assert "Traceback" not in box.run("journalctl --quiet --boot -o cat").stdout  # of the programs in units
    after = box.run(STATE).stdout.splitlines()
    assert sorted(set(after) ^ set(before.splitlines())) == []
    assert box.run("cat /root/canary").stdout == "secret\n"
    assert box.run("find /var/lib/left4me -xdev -perm /6000", check=False).stdout == ""
    assert main_pid(box, "4") == neighbour
    # The attic has only the game's own files, and directories of overlayfs.
    foreign = "find /var/lib/left4me/attic -path '*/upper/*' -xdev ! -type d ! -user left4me-3 -printf '%p %u\\n'"
    assert box.run(foreign).stdout == ""
    copied = "find /var/lib/left4me/attic -type f -size -2 -exec grep --files-with-matches --fixed-strings secret {} +"
    assert box.run(copied, check=False).stdout == ""


def test_another_game_in_the_attic_is_removed_without_following_it(attacked: Box) -> None:
    attacked.run("for i in 1 2 3 4; do l4d2ctl reset 3; done; systemctl start left4me-attic", timeout=120)
    assert attacked.run("systemctl show -P Result left4me-attic").stdout == "success\n"
    assert attacked.run("cat /root/canary").stdout == "secret\n"
