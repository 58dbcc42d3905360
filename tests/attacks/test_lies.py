"""A game lies about itself: in its environment, in its answers and in its log. Root believes what root has recorded.

The game is a layer's program in the place of srcds_run, inside the real unit.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.boxes.boxes import Box
from tests.integration.ctl import main_pid, rcon
from tests.integration.harness import assert_idle, deploy, wait_for, wait_for_server, write_inventory

GAME = rb"""#!/usr/bin/python3 -I
import os, select, socket, sys, time
if "LIAR" not in os.environ:
    lies = {"LIAR": "1", "LEFT4ME_PORT": "27016", "LEFT4ME_ADDRESS": "no such host", "LEFT4ME_GENERATION": "liar"}
    # Together less than what execve(2) takes by default, 2 MB.
    lies |= {"FILL%d" % number: "x" * 100_000 for number in range(15)}
    os.execve(sys.argv[0], sys.argv, {**os.environ, **lies})
print("\033]0;a new title\007\033[2J the lies begin", flush=True)
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("0.0.0.0", 27015))
tcp = socket.create_server(("0.0.0.0", 27015))
clients = []
while True:
    for each in select.select([udp, tcp], [], [], 0.5)[0]:
        if each is udp:
            udp.sendto(b"\xff\xff\xff\xffI", udp.recvfrom(2048)[1])
        else:
            clients.append(tcp.accept()[0])
    for each in clients:
        try:
            each.send(b"\x0a")  # a byte now and then: no packet is ever whole
        except OSError:
            clients.remove(each)
"""
ENOUGH = 1 << 20
"""KiB of address space for a command of root's: what a game sends or shows must not need more."""


@pytest.fixture(scope="module")
def lied_to(box: Box, game: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Box, Path]:
    """A box whose server 3 lies, and its inventory."""
    folder = tmp_path_factory.mktemp("lies")
    program = folder / "layer/srcds_run"
    program.parent.mkdir()
    program.write_bytes(GAME)
    program.chmod(0o755)
    servers = {"3": {"port": 27015, "layers": ["liar"]}, "4": {"port": 27016, "hostname": "four"}}
    layers = {"liar": {"source": "control", "path": str(program.parent)}}
    inventory = write_inventory(folder / "inventory", [box], servers=servers, layers=layers)
    deploy(inventory)
    wait_for_server(box, 27016)
    wait_for("the game lies", lambda: "the lies begin" in box.run("journalctl -o cat -u left4me-server@3").stdout)
    return box, inventory


def test_its_environment_is_not_believed_and_costs_nothing(lied_to: tuple[Box, Path]) -> None:
    box, inventory = lied_to
    environ = box.run(f"tr '\\0' '\\n' </proc/{main_pid(box, '3')}/environ | cut -c1-40").stdout
    assert "LEFT4ME_PORT=27016" in environ  # the lie is there to be read
    said = box.run(f"ulimit -v {ENOUGH}; l4d2ctl status --json", timeout=10).stdout
    rows = {row["id"]: row for row in json.loads(said)}
    assert (rows["3"]["port"], rows["4"]["port"]) == (27015, 27016)
    assert rows["3"]["restart_for"] == []
    assert rows["3"]["players"] is None
    assert rows["4"]["players"] == 0
    before = [main_pid(box, server) for server in ("3", "4")]
    assert_idle(deploy(inventory), [box])
    assert [main_pid(box, server) for server in ("3", "4")] == before


def test_its_log_does_no_harm_to_a_terminal(lied_to: tuple[Box, Path]) -> None:
    box, _inventory = lied_to
    for command in ("l4d2ctl logs -n 20 3", "l4d2ctl status", "l4d2ctl show 3", "l4d2ctl doctor"):
        said = box.run(command, check=False).stdout
        assert "\033" not in said
        assert "Traceback" not in said


def test_rcon_that_drips_is_not_waited_for(lied_to: tuple[Box, Path]) -> None:
    box, _inventory = lied_to
    done = box.run(f"ulimit -v {ENOUGH}; l4d2ctl rcon 3 status", check=False, timeout=60)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("l4d2ctl: server 3")
    with pytest.raises(OSError, match="timed out"):
        rcon(box, 27015, "status", seconds=1)  # the lie is there: another client gets no answer either
