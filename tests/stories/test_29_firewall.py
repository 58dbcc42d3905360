"""He reads what the firewall closes before he deploys it, opens RCON for his desk, survives a flood and a bad rule."""

from __future__ import annotations

import shlex
import subprocess
import sys

import pytest

from tests.boxes import network
from tests.boxes.boxes import Box, BoxError
from tests.integration.ctl import main_pid, rcon
from tests.integration.harness import name_over_a2s, wait_for
from tests.stories.operator import COMMIT, Operator

TEMPLATE = "templates/firewall.nft.j2"
FLOOD = """
import socket, sys, time
client, end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), time.monotonic() + 20
while time.monotonic() < end:
    client.sendto(b"", (sys.argv[1], 27015))
    time.sleep(0.001)
"""

LOCK = "import fcntl; fcntl.lockf(open('/run/left4me/deploy.lock', 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"


def is_reachable(host: Box) -> bool:
    try:
        return host.run("true", timeout=5).returncode == 0
    except BoxError:
        return False


def test_a_firewall_closes_what_he_read_and_never_his_own_way_in(operator: Operator) -> None:
    host = operator.host()
    operator.declare(firewall=False, rcon_from=[])
    deploy = f"pyinfra {operator.inventory} deploy.py -y"
    operator.types(deploy)
    rcon(host, 27015, "echo before")
    playing = {server: main_pid(host, server) for server in ("3", "4")}

    # He reads first. What is closed is open until he deploys.
    operator.declare(rcon_from=[])
    closes = "closes RCON (TCP 27015, 27016) to other machines; to allow addresses: rcon_from"
    operator.types(f"pyinfra {operator.inventory} deploy.py --dry", closes, "game_may_reach")
    rcon(host, 27015, "echo before")
    operator.types(deploy, closes)
    with pytest.raises(TimeoutError):
        rcon(host, 27015, "echo closed")
    operator.on(host, "l4d2ctl rcon 3 status", "map")
    operator.declare(rcon_from=[network.gateway()])
    operator.types(deploy, never=["closes RCON"])
    rcon(host, 27015, "echo open")

    # During a flood of server 3, doctor names it, and server 4 answers a query.
    with subprocess.Popen([sys.executable, "-c", FLOOD, str(host.address)]) as flooding:
        says = "under attack: port 27015"
        wait_for("doctor names it", lambda: says in host.run("l4d2ctl doctor", check=False).stdout, 15)
        assert name_over_a2s(host, 27016)
        flooding.kill()
    operator.on(host, "l4d2ctl doctor", never=["under attack"])
    operator.on(host, "l4d2ctl status --json 3", '"too_short": ')

    # A change of his own locks him out. The host lets him in again without anybody's help.
    clone = operator.clones("left4me")
    rules = (clone / TEMPLATE).read_text(encoding="utf-8")
    bad = rules.replace("policy accept;\n", "policy accept;\n        tcp dport 22 drop\n", 1)
    (clone / TEMPLATE).write_text(bad, encoding="utf-8")
    operator.types(f"{COMMIT} --all --message 'Drop what nobody uses'", at=clone)
    operator.types(deploy, "a new login fails", "former firewall", code=1, at=clone)
    wait_for("he can log in again", lambda: is_reachable(host), 60)
    free = f"python3 -c {shlex.quote(LOCK)}"
    wait_for("the lock is free", lambda: host.run(free, check=False).returncode == 0, 90)
    operator.on(host, "nft list table inet left4me", "chain from_game", never=["dport 22 drop"])
    operator.types(deploy)
    operator.types(f"make verify INVENTORY={operator.inventory}", "passed", never=["failed"])
    assert {server: main_pid(host, server) for server in playing} == playing
