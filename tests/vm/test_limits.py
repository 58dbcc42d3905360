"""Limits that bite: memory and CPU on Debian's own kernel, where boxes only accept them. By hand, `make soak-vm`."""

from __future__ import annotations

import sys
import threading
from contextlib import suppress

import pytest

from tests.attacks.floods import stopping
from tests.boxes.boxes import Box
from tests.integration.ctl import main_pid, rcon, unit
from tests.integration.harness import properties, wait_for, wait_for_server
from tests.stories.operator import Operator
from tests.vm.conftest import SLOW, machine

CGROUP = "/sys/fs/cgroup/left4me.slice"
PORTS = {"3": 27015, "4": 27016}
BUSY = 20.0
"""Seconds over which the CPU time of two busy servers is compared."""
KILLED = 120.0
"""Seconds within which the kernel ends the greedy server: short of memory, an emulated machine is slow."""
STOP_SECONDS = 15
"""TimeoutStopSec= of a server. A neighbour that takes all memory must not make a stop reach it."""


def leaking(host: Box, server: str, megabytes: int) -> threading.Thread:
    """Have a server take memory; the answer never comes if the kernel kills it."""

    def leak() -> None:
        with suppress(OSError, ValueError):
            # In pieces: the kernel refuses at once what is larger than its memory.
            rcon(host, PORTS[server], *["standin_leak 100"] * (megabytes // 100), seconds=KILLED)

    thread = threading.Thread(target=leak)
    thread.start()
    return thread


def oom_kills(host: Box, server: str) -> int:
    """Return how often systemd has seen the kernel kill a process of a server for its memory."""
    killed = host.run(f"journalctl --quiet -o cat -u {unit(server)} | grep -c 'result .oom-kill'", check=False)
    return int(killed.stdout)


@pytest.mark.parametrize(
    ("limit", "megabytes"), [("300M", 400), ("2G", 3000)], ids=("its own limit", "more than the machine has")
)
def test_a_server_that_takes_all_memory_is_killed_alone(
    operator: Operator, limit: str, megabytes: int, capsys: pytest.CaptureFixture[str]
) -> None:
    host = machine(operator)
    operator.declare({server: {"port": port, "memory_max": limit} for server, port in PORTS.items()})
    operator.types(f"pyinfra {operator.inventory} deploy.py -y", seconds=SLOW)
    for port in PORTS.values():
        wait_for_server(host, port, 120)
    host.run("echo evening >/var/lib/left4me/runtime/4/merged/left4dead2/evening.txt")

    quiet = [stopping(host) for _ in range(3)]
    neighbour, greedy, beside = main_pid(host, "4"), main_pid(host, "3"), []
    for number in range(3):
        thread = leaking(host, "3", megabytes)
        beside.append(stopping(host))
        thread.join()
        wait_for("the greedy server is killed", lambda: oom_kills(host, "3") > number, KILLED)  # noqa: B023
        wait_for_server(host, PORTS["3"], 180)  # systemd has started it again
    with capsys.disabled():
        print(
            f"\nDebian {host.debian}, {limit}: stops of the neighbour {quiet} s quiet, {beside} s while server 3 takes "
            f"{megabytes} MB",
            file=sys.stderr,
        )
    assert max(beside) < STOP_SECONDS
    assert main_pid(host, "3") != greedy
    assert main_pid(host, "4") != neighbour  # by its own stops alone:
    assert oom_kills(host, "4") == 0
    assert "evening" in host.run("cat /var/lib/left4me/runtime/4/merged/left4dead2/evening.txt").stdout
    operator.types(f"make verify INVENTORY={operator.inventory}", "passed", never=["failed"], seconds=SLOW)


def shares(host: Box) -> dict[str, float]:
    """Return which part of one CPU each server gets while both want all of it."""
    for port in PORTS.values():
        rcon(host, port, f"standin_busy {BUSY + 60}")
    files = " ".join(f"{CGROUP}/{unit(server)}/cpu.stat" for server in PORTS)
    look = f"cut -d' ' -f1 /proc/uptime; grep -h usage_usec {files}"
    # On the host, by one command: a login takes long while the servers take the CPU.
    lines = host.run(f"{look}; sleep {BUSY}; {look}", timeout=120).stdout.split("\n")
    (begin, *before), (end, *after) = ([float(line.split()[-1]) for line in each] for each in (lines[:3], lines[3:6]))
    for port in PORTS.values():
        wait_for_server(host, port, 180)
    both = zip(PORTS, before, after, strict=True)
    return {server: (last - first) / 1e6 / (end - begin) for server, first, last in both}


def test_cpu_weight_and_quota_show_in_what_two_busy_servers_get(
    operator: Operator, capsys: pytest.CaptureFixture[str]
) -> None:
    host = machine(operator)
    servers = {"3": {"port": PORTS["3"], "cpu_weight": 100}, "4": {"port": PORTS["4"], "cpu_weight": 400}}
    operator.declare(servers)
    operator.types(f"pyinfra {operator.inventory} deploy.py -y", seconds=SLOW)
    host.run("echo 0 >/sys/devices/system/cpu/cpu1/online")  # with a CPU each they would not compete
    for port in PORTS.values():
        wait_for_server(host, port, 120)
    weighed = shares(host)

    # Changed limits are in force without a restart: the kernel has them.
    changed = {server: {"port": port, "memory_max": "900M"} for server, port in PORTS.items()}
    operator.declare(changed, cpu_quota=40)
    operator.types(f"pyinfra {operator.inventory} deploy.py -y", never=["restart required"], seconds=SLOW)
    assert host.run(f"cat {CGROUP}/cpu.max").stdout.startswith("40000 ")
    assert host.run(f"cat {CGROUP}/{unit('3')}/memory.max").stdout == f"{900 << 20}\n"
    assert host.run(f"cat {CGROUP}/{unit('3')}/cpu.weight").stdout == "100\n"
    operator.types(f"make verify INVENTORY={operator.inventory}", "passed", never=["failed"], seconds=SLOW)
    host.run("l4d2ctl restart --all", timeout=120)
    for port in PORTS.values():
        wait_for_server(host, port, 180)
    limited = shares(host)
    with capsys.disabled():
        print(f"\nDebian {host.debian}: of one CPU, weights 1:4 {weighed}, quota 40 % {limited}", file=sys.stderr)
    assert 2.5 < weighed["4"] / weighed["3"] < 6
    assert sum(limited.values()) < 0.48
    assert properties(host, "left4me.slice", "CPUQuotaPerSecUSec")["CPUQuotaPerSecUSec"] == "400ms"
