"""Debian 12 upgraded to 13 in place, with servers on it; a deploy before and after. By hand, `make soak-vm`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.boxes import mirror
from tests.boxes.boxes import Box
from tests.integration.ctl import main_pid, state
from tests.integration.harness import wait_for, wait_for_server
from tests.stories.operator import Operator
from tests.vm.conftest import SLOW, machine

APT = "DEBIAN_FRONTEND=noninteractive apt-get --yes --quiet -o Dpkg::Options::=--force-confold"
UPGRADE_SECONDS = 3600
EVENING = "/var/lib/left4me/runtime/3/merged/left4dead2/evening.txt"


@pytest.fixture
def debian() -> int:
    return 12


def upgrade(host: Box) -> None:
    """Upgrade all packages of the host to Debian 13, as its release notes say."""
    host.run("cat >/etc/apt/sources.list", input=mirror.sources(13).encode())
    steps = " && ".join(f"{APT} {step}" for step in ("update", "upgrade --without-new-pkgs", "full-upgrade"))
    host.run(f"systemd-run --quiet --unit=upgrade sh -c '{steps} && touch /root/upgraded'", timeout=120)
    running = "systemctl is-active upgrade.service"
    # The upgrade restarts sshd, so an answer may be missing.
    ended = ("inactive\n", "failed\n")
    wait_for("the upgrade ends", lambda: host.run(running, check=False).stdout in ended, UPGRADE_SECONDS)
    done = host.run("cat /root/upgraded; journalctl --quiet -o cat -u upgrade.service -n 30", check=False, timeout=120)
    assert host.run("test -e /root/upgraded", check=False).returncode == 0, done.stdout


def test_debian_12_becomes_13_with_servers_on_it(operator: Operator, tmp_path: Path) -> None:
    host = machine(operator)
    operator.declare()
    deploy, verify = f"pyinfra {operator.inventory} deploy.py -y", f"make verify INVENTORY={operator.inventory}"
    operator.types(deploy, seconds=SLOW)
    wait_for_server(host, 27015, 120)
    operator.types(verify, "passed", never=["failed"], seconds=SLOW)
    host.run(f"echo evening >{EVENING}")
    playing = {server: main_pid(host, server) for server in ("3", "4")}

    upgrade(host)
    assert host.run("cat /etc/debian_version").stdout.startswith("13")
    assert {server: main_pid(host, server) for server in playing} == playing  # nobody was thrown out
    operator.on(host, "l4d2ctl doctor", seconds=120)
    operator.on(host, "l4d2ctl stop 4", seconds=120)  # the mount of the old systemd ends under the new one
    assert state(host, "4") == "inactive"
    assert "/runtime/4/" not in host.run("cat /proc/1/mountinfo").stdout
    operator.on(host, "l4d2ctl start 4", seconds=120)

    host.upgrade_kernel()
    assert host.run("uname -r").stdout.startswith("6.12.")
    wait_for_server(host, 27015, 180)
    assert host.run(f"cat {EVENING}").stdout == "evening\n"
    # The next deploy brings what only Debian 13's systemd can do, from the next start of a server on.
    operator.types(verify, "sandbox.conf is missing", code=2, seconds=SLOW)
    operator.types(deploy, seconds=SLOW)
    operator.types(verify, "restart required (unit)", "passed", never=["failed"], seconds=SLOW)
    operator.on(host, "l4d2ctl restart 4", seconds=120)
    assert " /tmp /tmp " in host.run(f"cat /proc/{main_pid(host, '4')}/mountinfo").stdout  # the root of its tmpfs
    operator.on(host, "l4d2ctl reset 3", "in all", seconds=120)
    operator.on(host, "l4d2ctl reset --undo 3", seconds=120)
    assert host.run(f"cat {EVENING}").stdout == "evening\n"
