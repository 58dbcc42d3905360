"""The parts of a server's sandbox that boxes lack: what needs BPF or AppArmor. By hand, `make soak-vm`."""

from __future__ import annotations

import itertools

from tests.boxes.boxes import Box
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
