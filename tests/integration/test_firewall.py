"""The firewall: who may use RCON, floods, other tables, and the return from rules that cut off SSH."""

from __future__ import annotations

import json
import shlex
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from left4me.remote.program_text import program_command
from tests.boxes import network
from tests.boxes.boxes import Box, BoxError
from tests.integration.ctl import rcon
from tests.integration.harness import RCON_FROM, name_over_a2s, pyinfra, wait_for, wait_for_server, write_inventory
from tests.integration.probe import main_pid
from tests.integration.test_verification import verify

PORTS = (27015, 27016)
INFO = b"\xff\xff\xff\xffTSource Engine Query\0"


def deploy(inventory: Path, *options: str) -> str:
    done = pyinfra(inventory, "deploy.py", *(options or ("-y",)))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def table(box: Box) -> str:
    """Return the loaded table, without the elements of sets; "" if there is none."""
    return box.run("/usr/sbin/nft --terse list table inet left4me", check=False).stdout


def dropped(box: Box, server: str) -> dict[str, int]:
    """Return what `l4d2ctl status` says that the firewall dropped for a server."""
    counts: dict[str, int] = json.loads(box.run(f"l4d2ctl status --json {server}").stdout)[0]["dropped"]
    return counts


def uses_rcon(box: Box, port: int) -> bool:
    try:
        rcon(box, port, "echo left4me")
    except OSError:
        return False
    return True


def send(box: Box, port: int, packets: list[bytes]) -> int:
    """Send packets to a server from one socket, and return how many answers come within a second."""
    answers = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect((str(box.address), port))
        client.settimeout(1)
        for packet in packets:
            client.send(packet)
        with suppress(TimeoutError):
            while True:
                client.recv(2048)
                answers += 1
    return answers


def test_rcon_is_closed_to_other_machines_unless_the_data_name_them(probed: Box, inventory: Path) -> None:
    box, data = probed, inventory.read_text(encoding="utf-8")
    pids = {server: main_pid(box, server) for server in ("3", "4")}
    assert uses_rcon(box, 27015)
    inventory.write_text(data.replace(repr(RCON_FROM), "['192.0.2.1']"), "utf-8")
    try:
        deploy(inventory)
        with pytest.raises(TimeoutError):
            socket.create_connection((str(box.address), 27015), timeout=2).close()
        assert dropped(box, "3")["rcon"] > 0
        assert "echo left4me" not in box.run("l4d2ctl rcon 3 status").stdout  # over loopback it answers
        assert verify(inventory).returncode == 0
    finally:
        inventory.write_text(data, "utf-8")
        deploy(inventory)
    assert uses_rcon(box, 27015)
    assert {server: main_pid(box, server) for server in pids} == pids
    assert verify(inventory).returncode == 0


def test_a_second_deploy_leaves_the_loaded_table_alone(probed: Box, inventory: Path) -> None:
    before = probed.run("nft -a list table inet left4me | grep -c handle").stdout
    handle = 'nft -j list tables | grep -o \'"left4me", "handle": [0-9]*\''
    same = probed.run(handle).stdout
    assert "left4me" in same
    deploy(inventory)
    assert (probed.run(handle).stdout, probed.run("nft -a list table inet left4me | grep -c handle").stdout) == (
        same,
        before,
    )


@pytest.mark.parametrize("how", ["restart", "reload", "stop"])
def test_debians_own_nftables_service_does_not_take_the_table_away(probed: Box, how: str) -> None:
    probed.run("nft add table ip operators_own; nft list ruleset >/dev/null; systemctl start nftables")
    assert table(probed)
    probed.run(f"systemctl {how} nftables")
    assert "chain from_game" in table(probed)
    probed.run("systemctl stop nftables")
    assert uses_rcon(probed, 27015)


def test_other_tables_are_left_alone_and_the_table_is_there_after_a_boot(probed: Box, inventory: Path) -> None:
    probed.run("nft add table ip operators_own; nft add chain ip operators_own input")
    probed.run("nft delete table inet left4me")
    assert "the firewall is not loaded" in probed.run("l4d2ctl doctor", check=False).stdout
    assert verify(inventory).returncode == 1
    deploy(inventory)
    assert table(probed)
    assert "operators_own" in probed.run("nft list tables").stdout
    probed.run("l4d2ctl doctor")
    probed.reboot()
    assert "chain from_game" in table(probed)
    for port in PORTS:
        wait_for_server(probed, port)
    probed.run("nft delete table inet left4me")
    probed.run("l4d2ctl doctor --fix")
    assert "chain from_game" in table(probed)
    assert verify(inventory).returncode == 0


def test_rules_that_cut_off_ssh_go_away_by_themselves(probed: Box) -> None:
    before = table(probed)
    cut_off = """
table inet left4me {}
delete table inet left4me
table inet left4me {
    chain prerouting { type filter hook prerouting priority raw; policy accept; tcp dport 22 drop; }
}
"""
    probed.run(shlex.join(program_command("load_firewall", "load")), input=cut_off.encode())
    with pytest.raises(BoxError):
        probed.run("true", timeout=10)
    with pytest.raises(TimeoutError):
        socket.create_connection((str(probed.address), 22), timeout=3).close()

    def logs_in() -> bool:
        with suppress(TimeoutError):
            socket.create_connection((str(probed.address), 22), timeout=2).close()
            return True
        return False

    wait_for("SSH is back", logs_in, 45)
    assert probed.run("true", timeout=20).returncode == 0
    assert table(probed).count("chain") == before.count("chain")
    too_late = probed.run(shlex.join(program_command("load_firewall", "confirm")), check=False)
    assert too_late.returncode == 1
    assert "deploy again" in too_late.stderr


def test_a_flood_is_dropped_counted_and_named(probed: Box) -> None:
    box = probed
    assert name_over_a2s(box, 27015) == "three"
    before = dropped(box, "3")
    assert send(box, 27015, [b""] * 300) == 0
    assert dropped(box, "3").get("too_short", 0) - before.get("too_short", 0) == 300
    assert send(box, 27015, [b"\xfe\xff\xff\xff"] * 50) == 0
    assert dropped(box, "3")["too_short"] - before.get("too_short", 0) == 350
    assert send(box, 27015, [b"\0" * 1460] * 50) == 0
    assert dropped(box, "3").get("too_long", 0) - before.get("too_long", 0) == 50
    assert send(box, 27015, [b"\1\0\0\0" * 25] * 1000) == 0
    assert dropped(box, "3").get("strangers", 0) > before.get("strangers", 0)
    # One address that floods one server still gets answers of the other, and of the first a moment later.
    assert send(box, 27015, [INFO] * 1000) < 300
    assert dropped(box, "3")["one_source"] > before.get("one_source", 0)
    assert send(box, 27016, [INFO]) == 1
    wait_for("the first answers again", lambda: send(box, 27015, [INFO]) == 1, 10)
    assert dropped(box, "4").get("too_short", 0) == 0


def test_doctor_names_an_attack_while_it_goes_on(probed: Box) -> None:
    flood = (
        "import socket, time\nclient = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\nend = time.time() + 6\n"
        f"while time.time() < end:\n    client.sendto(b'', ('{probed.address}', 27015))\n    time.sleep(0.001)\n"
    )
    with subprocess.Popen([sys.executable, "-c", flood]) as flooding:
        wait_for(
            "doctor names it",
            lambda: "under attack: port 27015" in probed.run("l4d2ctl doctor", check=False).stdout,
            10,
        )
        flooding.kill()
    assert "under attack" not in probed.run("l4d2ctl doctor").stdout


def test_the_first_deploy_names_what_it_closes_and_no_firewall_means_none(probed: Box, inventory: Path) -> None:
    box, data = probed, inventory.read_text(encoding="utf-8")
    pids = {server: main_pid(box, server) for server in ("3", "4")}
    without = data.replace(f"'rcon_from': {RCON_FROM!r}", "'firewall': False")
    inventory.write_text(without, "utf-8")
    try:
        deploy(inventory)
        assert table(box) == ""
        assert box.run("ls /etc/left4me/firewall.nft", check=False).returncode != 0
        assert box.run("systemctl cat left4me-firewall", check=False).returncode != 0
        assert verify(inventory).returncode == 0
        box.run("l4d2ctl doctor")
    finally:
        inventory.write_text(data, "utf-8")
    box.run("mkdir -p /etc/ufw && echo ENABLED=yes >/etc/ufw/ufw.conf; nft add table ip theirs")
    box.run(
        "nft 'add chain ip theirs input { type filter hook input priority 5; policy drop; }'; "
        "nft add rule ip theirs input accept"
    )
    try:
        said = deploy(inventory, "--dry")
    finally:
        box.run("nft delete table ip theirs; rm -r /etc/ufw")
    assert "closes RCON (TCP 27015, 27016) to other machines except 198.18.0.0/15" in said
    assert "ufw allow proto udp to any port 27015,27016" in said
    assert "table ip theirs (input) drops by default" in said
    assert table(box) == ""
    box.run("systemctl start nftables")
    assert "closes RCON" in deploy(inventory)
    assert "chain from_game" in table(box)
    box.run("systemctl restart nftables")
    assert "chain from_game" in table(box)
    box.run("systemctl stop nftables")
    assert "closes RCON" not in deploy(inventory)
    assert {server: main_pid(box, server) for server in pids} == pids


def test_a_server_that_runs_on_its_former_port_is_protected_there_and_on_the_new_one(
    probed: Box, inventory: Path
) -> None:
    data, pid = inventory.read_text(encoding="utf-8"), main_pid(probed, "3")
    inventory.write_text(data.replace("27015", "27017"), "utf-8")
    try:
        deploy(inventory)
        assert main_pid(probed, "3") == pid
        assert send(probed, 27015, [INFO]) == 1
        assert send(probed, 27015, [b""] * 10) == 0
        assert dropped(probed, "3")["too_short"] >= 10
        probed.run("l4d2ctl restart 3", timeout=60)
        wait_for_server(probed, 27017)
    finally:
        inventory.write_text(data, "utf-8")
        deploy(inventory)
        probed.run("l4d2ctl restart 3", timeout=60)
        wait_for_server(probed, 27015)
    deploy(inventory)
    assert "27017" not in probed.run("nft list set inet left4me game").stdout


def test_a_server_fills_only_its_own_sets(probed: Box) -> None:
    """A hostile server sends to thousands of addresses, as if they played. The packets lead nowhere."""
    flood = (
        "import socket\nout = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\nout.bind(('0.0.0.0', 27016))\n"
        "for number in range(6000):\n    out.sendto(b'game', (f'198.18.{number // 250}.{1 + number % 250}', 9))\n"
    )
    probed.run("""
        systemctl stop left4me-server@4
        ip link add nowhere type veth peer name nobody && ip link set nowhere up && ip link set nobody up
        ip address add 192.0.2.1/24 dev nowhere
        ip neighbour add 192.0.2.2 lladdr 02:00:00:00:00:02 dev nowhere
        ip route add 198.18.0.0/16 via 192.0.2.2
    """)
    try:
        as_server = "setpriv --reuid=left4me-4 --regid=left4me --clear-groups"
        probed.run(f"{as_server} python3 -c {shlex.quote(flood)}", check=False)
        assert probed.run("nft list set inet left4me players_27016").stdout.count(" . 9 ") >= 1000
        assert send(probed, 27015, [INFO]) == 1
        challenged = name_over_a2s(probed, 27015)
        assert challenged == "three"
        assert network.gateway() in probed.run("nft list set inet left4me answered_27015").stdout
    finally:
        probed.run("ip link delete nowhere; systemctl start left4me-server@4")
        wait_for_server(probed, 27016)


def test_the_port_of_sshd_is_refused(probed: Box, tmp_path: Path) -> None:
    probed.run("mkdir -p /etc/ssh/sshd_config.d; echo 'Port 22\nPort 27020' >/etc/ssh/sshd_config.d/more.conf")
    try:
        servers: dict[str, Any] = {"3": {"port": 27020, "hostname": "three"}, "4": {"port": 27016, "hostname": "four"}}
        done = pyinfra(write_inventory(tmp_path / "inventory", [probed], servers=servers), "deploy.py", "-y")
    finally:
        probed.run("rm /etc/ssh/sshd_config.d/more.conf")
    assert done.returncode != 0
    assert "servers.3.port: 27020 is the port of sshd on this host" in done.stdout + done.stderr
    assert "nothing changed" in done.stdout + done.stderr
