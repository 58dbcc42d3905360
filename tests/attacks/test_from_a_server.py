"""Code in a server's unit connects to nothing on the host, and cannot answer on its neighbour's port."""

from __future__ import annotations

import shlex
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.boxes import network
from tests.boxes.boxes import Box
from tests.integration.harness import wait_for, wait_for_server
from tests.integration.probe import inside, main_pid
from tests.integration.test_firewall import INFO, deploy, dropped, send


@pytest.fixture
def listener(probed: Box) -> Iterator[Box]:
    """The box with programs that accept connections: on 127.0.0.1:3306 and :11211, and with UDP on 8125."""
    program = (
        "import socket, signal\n"
        "held = [socket.create_server(('127.0.0.1', port)) for port in (3306, 11211)]\n"
        "udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\nudp.bind(('127.0.0.1', 8125))\nsignal.pause()\n"
    )
    probed.run(f"systemd-run --quiet --unit=listener python3 -c {shlex.quote(program)}")
    listens = "ss -Hlnt 'sport = 11211'"
    wait_for("the programs listen", lambda: probed.run(listens).stdout != "", 10)
    yield probed
    probed.run("systemctl stop listener")


def test_a_server_connects_to_nothing_on_its_host(listener: Box, drop_in: Box) -> None:
    box = drop_in
    own = str(box.address)
    refused = {
        "TCP to SSH": "reach('127.0.0.1', 22)",
        "TCP to SSH on the host's address": f"reach('{own}', 22)",
        "TCP to SSH over IPv6": "reach('::1', 22)",
        "TCP to a local program": "reach('127.0.0.1', 11211)",
        "UDP to a local program": "reach('127.0.0.1', 8125, socket.SOCK_DGRAM)",
        "RCON of its neighbour": "reach('127.0.0.1', 27016)",
        "RCON of its neighbour on the host's address": f"reach('{own}', 27016)",
        "a query of its neighbour": "reach('127.0.0.1', 27016, socket.SOCK_DGRAM)",
        "a cloud's metadata": "reach('169.254.169.254', 80)",
        "all hosts of the network": f"reach('{own.rpartition('.')[0]}.255', 8125, socket.SOCK_DGRAM)",
        "everybody": "reach('255.255.255.255', 8125, socket.SOCK_DGRAM)",
        "multicast DNS": "reach('224.0.0.251', 5353, socket.SOCK_DGRAM)",
    }
    machine = f"reach('{network.gateway()}', 3128)"  # the proxy of the boxes, on another machine for the box
    routes = ("169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32")
    for route in routes:
        box.run(f"ip route add {route} via {network.gateway()}")
    said = inside(box, [*refused.values(), machine])
    for route in routes:
        box.run(f"ip route delete {route}")
    reached = {what: said[attempt] for what, attempt in refused.items()}
    assert not {what: how for what, how in reached.items() if how not in ("ECONNREFUSED", "EPERM")}
    assert said[machine] == "reached"
    assert dropped(box, "3")["to_host"] >= len(refused)
    # Root on the host reaches all of it.
    ask = "import socket; [socket.create_connection((host, port)) for host, port in (('127.0.0.1', 22), "
    ask += f"('{own}', 22), ('127.0.0.1', 11211), ('127.0.0.1', 27016))]"
    box.run(f"python3 -c {shlex.quote(ask)}")


def test_a_server_cannot_exhaust_the_logins_of_sshd(probed: Box) -> None:
    """150 connections without a login are more than MaxStartups of sshd lets wait."""
    hold = (
        "import socket, time\nheld = []\nfor _ in range(150):\n    each = socket.socket()\n    held.append(each)\n"
        "    each.settimeout(1)\n    each.connect_ex(('127.0.0.1', 22))\nprint('held', flush=True)\ntime.sleep(60)\n"
    )
    as_server = "-p User=left4me-3 -p Group=left4me"
    probed.run(f"systemd-run --quiet --unit=hold {as_server} python3 -c {shlex.quote(hold)}")
    try:
        says = "journalctl -o cat -u hold"
        wait_for("it holds what it got", lambda: "held" in probed.run(says).stdout, 30)
        login = ["ssh", "-F", str(probed.ssh_config), "-o", "ControlPath=none", probed.name, "true"]
        assert [subprocess.run(login, check=False, timeout=30).returncode for _ in range(12)] == [0] * 12
    finally:
        probed.run("systemctl stop hold")


def test_a_server_reaches_what_the_data_allow(listener: Box, drop_in: Box, inventory: Path) -> None:
    box, data = drop_in, inventory.read_text(encoding="utf-8")
    neighbour = main_pid(box, "4")
    inventory.write_text(data.replace("'rcon_from':", "'game_may_reach': ['127.0.0.1:3306'], 'rcon_from':"), "utf-8")
    allowed, other = "reach('127.0.0.1', 3306)", "reach('127.0.0.1', 11211)"
    try:
        assert inside(box, [allowed]) == {allowed: "ECONNREFUSED"}
        box.run("rm -f /run/systemd/system/left4me-server@3.service.d/probe.conf; systemctl daemon-reload")
        deploy(inventory)
        box.run("systemctl stop left4me-server@3")
        assert inside(box, [allowed, other]) == {allowed: "reached", other: "ECONNREFUSED"}
        assert main_pid(box, "4") == neighbour
    finally:
        inventory.write_text(data, "utf-8")
        deploy(inventory)


def test_a_server_cannot_answer_on_its_neighbours_port(probed: Box) -> None:
    box = probed
    box.run("systemctl stop left4me-server@4")
    squat = f"""
import os, select, socket
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("0.0.0.0", 27016))
tcp = socket.create_server(("0.0.0.0", 27016))
while True:
    for each in select.select([udp, tcp], [], [])[0]:
        if each is udp:
            data, client = udp.recvfrom(2048)
            print("asked", flush=True)
            try:
                udp.sendto({INFO!r}, client)
            except OSError as error:
                print(error, flush=True)
        else:
            with each.accept()[0] as client:
                print(client.recv(64), flush=True)
"""
    properties = "-p User=left4me-3 -p Group=left4me"
    box.run(f"systemd-run --quiet --unit=squatter {properties} python3 -c {shlex.quote(squat)}")
    try:
        wait_for("it listens", lambda: "27016" in box.run("ss -Hlnt 'sport = 27016'").stdout, 10)
        assert send(box, 27016, [INFO]) == 0
        with pytest.raises(OSError, match="timed out"), socket.create_connection((str(box.address), 27016), timeout=2):
            pass
        said = box.run("journalctl -o cat -u squatter").stdout
        assert "asked" in said
        assert "not permitted" in said  # it tried to answer
        assert dropped(box, "3")["wrong_port"] > 0
    finally:
        box.run("systemctl stop squatter; systemctl start left4me-server@4")
        wait_for_server(box, 27016)
