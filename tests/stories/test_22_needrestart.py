"""He upgrades a host whose needrestart restarts whatever has an old library mapped: nobody is thrown out of a game."""

from __future__ import annotations

from tests.integration.ctl import main_pid
from tests.integration.harness import properties, wait_for_server
from tests.stories.operator import Operator

GAME = "/var/lib/left4me/installation"
OTHER = f"""[Service]
WorkingDirectory={GAME}
Environment=LD_LIBRARY_PATH=bin
ExecStart={GAME}/bin/srcds_linux -I -S -B -c 'import time; time.sleep(3600)'
"""


def test_an_upgrade_restarts_no_server(operator: Operator) -> None:
    host = operator.host()
    apt = "DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=a apt-get -qq -y"
    operator.on(host, f"apt-get -qq update && {apt} install needrestart", seconds=120)
    # The same program in a unit that is not left4me's shows that this needrestart does restart.
    host.run("cat >/etc/systemd/system/other.service; systemctl daemon-reload", input=OTHER.encode())
    operator.on(host, "systemctl start other.service")
    operator.plays(host, 2)
    playing, others = main_pid(host, "3"), properties(host, "other.service", "MainPID")["MainPID"]

    # Each server has the C library for i386 mapped. Its upgrade replaces it, and needrestart runs as apt's hook.
    operator.on(
        host,
        f"{apt} install --reinstall libc6:i386",
        "Restarting services...",
        "restarts being deferred",
        "left4me-server@3.service",
        seconds=120,
    )
    operator.on(host, f"cat /proc/{playing}/maps", "libc.so.6 (deleted)")
    assert main_pid(host, "3") == playing
    assert properties(host, "other.service", "MainPID")["MainPID"] not in ("0", others)
    operator.types(f"make verify INVENTORY={operator.inventory}", never=["pending:", "failed"])

    # When they have left he restarts the server, which has the new library then.
    operator.plays(host, 0)
    operator.on(host, "l4d2ctl restart 3")
    wait_for_server(host, 27015)
    operator.on(host, f"cat /proc/{main_pid(host, '3')}/maps", "libc.so.6", never=["libc.so.6 (deleted)"])
