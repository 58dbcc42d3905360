"""The parts of a server's sandbox that boxes lack: what needs BPF or AppArmor. By hand, `make soak-vm`."""

from __future__ import annotations

import itertools

from tests.boxes.boxes import Box
from tests.integration.ctl import main_pid
from tests.integration.harness import wait_for_server
from tests.integration.probe import ATTEMPT, DROP_IN, PROBE, UNIT, inside
from tests.stories.operator import Operator
from tests.vm.conftest import SLOW, WAIT, machine

TRIAL_PORT = 27200


def probed(operator: Operator) -> Box:
    """Return a full machine with servers 3 and 4, of which 3 is stopped, and the probe on it."""
    host = machine(operator)
    operator.declare()
    operator.types(f"pyinfra {operator.inventory} deploy.py -y", seconds=SLOW)
    for port in (27015, 27016):
        wait_for_server(host, port, WAIT)
    host.run(f"cat >{PROBE}", input=ATTEMPT.encode())
    host.run(f"mkdir -p {DROP_IN}; systemctl stop {UNIT}", timeout=120)
    return host


def test_a_32_bit_program_reaches_only_the_allowed_address_families(operator: Operator, debian: int) -> None:
    host = probed(operator)
    # Address family and kind: <linux/socket.h>. AF_ALG, AF_VSOCK, AF_PACKET, AF_TIPC; then AF_INET, AF_INET6, AF_UNIX,
    # and AF_NETLINK.
    denied = [f"socketcall({family}, {kind})" for family, kind in ((38, 5), (40, 1), (17, 3), (30, 1))]
    allowed = [f"socketcall({family}, {kind})" for family, kind in ((2, 1), (10, 2), (1, 1), (16, 3))]
    resolve = "socket.getaddrinfo('localhost', 27015, socket.AF_INET)[0][4]"
    without = inside(host, [*denied, *allowed], "AppArmorProfile=")
    assert without["socketcall(38, 5)"] is None
    assert "EACCES" not in without.values()
    said = inside(host, [*denied, *allowed, resolve])
    assert {said[each] for each in denied} == {"EACCES"}
    assert {said[each] for each in allowed} == {None}
    assert said[resolve] == ["127.0.0.1", 27015]

    host.run(f"rm -r {DROP_IN}; systemctl daemon-reload; systemctl start {UNIT}", timeout=120)
    wait_for_server(host, 27015, WAIT)
    label = f"cat /proc/{main_pid(host, '3')}/attr/current"
    assert host.run(label).stdout == "left4me-server (enforce)\n"
    assert "srcds" in host.run("l4d2ctl holders 3").stdout
    exposure = host.run(f"systemd-analyze security --no-pager {UNIT}").stdout
    assert float(exposure.rpartition(f"{UNIT}: ")[2].split()[0]) <= 1.2
    operator.on(host, "l4d2ctl reset 3", "in all", seconds=120)
    wait_for_server(host, 27015, WAIT)
    operator.types(f"make verify INVENTORY={operator.inventory}", "passed", never=["failed"], seconds=SLOW)

    # A profile that is not loaded, for whatever reason, is loaded by the next deploy. Removal takes it away.
    loaded = "grep -c left4me /sys/kernel/security/apparmor/profiles"
    host.run("apparmor_parser --remove /etc/apparmor.d/left4me-server")
    assert host.run(loaded, check=False).stdout == "0\n"
    operator.types(f"pyinfra {operator.inventory} deploy.py -y", seconds=SLOW)
    assert host.run(loaded).stdout == "1\n"
    remove = f"pyinfra {operator.inventory} remove.py --limit {host.name} -y --data remove={host.name}"
    operator.types(remove, seconds=SLOW)
    assert host.run(loaded, check=False).stdout == "0\n"
    left = "find /etc/apparmor.d /var/cache/apparmor /sys/fs/bpf /etc/systemd -name '*left4me*'"
    assert host.run(left, check=False).stdout == ""


def test_a_server_binds_no_port_of_another_one_while_that_is_down(operator: Operator, debian: int) -> None:
    """On Debian 12 it can, which docs/threats.md says: its systemd is built without BPF."""
    host = probed(operator)
    host.run("l4d2ctl stop 4", timeout=120)
    kinds = [*itertools.product(("socket.AF_INET", "socket.AF_INET6"), ("socket.SOCK_STREAM", "socket.SOCK_DGRAM"))]
    others, own = (
        [f"bind({port}, {family}, {kind})" for port in ports for family, kind in kinds]
        for ports in ((27016, TRIAL_PORT), (27015, 27020, 0))
    )
    said = inside(host, [*others, *own])
    assert {said[each] for each in others} == {"EPERM" if debian == 13 else None}
    assert {said[each] for each in own} == {None}
    # It holds over a daemon-reload, where systemd 257 itself would end it: a program joins the server's cgroup.
    host.run(f"rm -r {DROP_IN}; systemctl daemon-reload; systemctl start {UNIT}", timeout=120)
    host.run("systemctl daemon-reload; systemctl daemon-reexec")
    joined = f"""
        echo $$ >/sys/fs/cgroup/left4me.slice/{UNIT}/cgroup.procs
        for port in 27016 27020; do python3 -c "import socket; socket.socket().bind(('', $port))" && echo $port; done
    """
    bound = host.run(joined, check=False).stdout.split()
    assert bound == (["27020"] if debian == 13 else ["27016", "27020"])
    host.run("l4d2ctl start 4", timeout=120)
    for port in (27015, 27016):
        wait_for_server(host, port, WAIT)
    operator.types(f"make verify INVENTORY={operator.inventory}", "passed", never=["failed"], seconds=SLOW)
