"""He updates left4me itself, goes back and forward again, while people play: nobody is thrown out, nothing is lost."""

from __future__ import annotations

from typing import Any

from tests.integration.ctl import main_pid, state
from tests.integration.harness import wait_for_server
from tests.stories.operator import Operator

OLD = "997ad99"  # the last one before servers' starts were recorded
KEPT = (
    "cat /var/lib/left4me/secrets/4/rcon.cfg",
    "grep PORT /etc/left4me/servers/*/server.env",
    "cd /var/lib/left4me/attic && find . -path '*ours*'",
)


def test_an_update_of_left4me_throws_nobody_out(operator: Operator) -> None:
    # Server 4 has the port and the RCON password that its host gave it.
    servers: dict[str, dict[str, Any]] = {"3": {"hostname": "three"}, "4": {"hostname": "four", "rcon_password": None}}
    here, host = operator.clones("here"), operator.bare()
    operator.declare(servers, rcon_from=None)
    deploy, verify = f"pyinfra {operator.inventory} deploy.py", f"make verify INVENTORY={operator.inventory}"
    operator.checks_out(OLD, here)
    operator.types(f"{deploy} -y", at=here)
    wait_for_server(host, 27015)
    operator.on(host, "touch /var/lib/left4me/runtime/3/merged/left4dead2/ours && l4d2ctl reset 3 && l4d2ctl stop 4")
    wait_for_server(host, 27015)
    operator.plays(host, 2)

    playing, kept = main_pid(host, "3"), [operator.on(host, command) for command in KEPT]
    assert all(kept)

    def nothing_is_lost() -> None:
        assert (main_pid(host, "3"), state(host, "4")) == (playing, "inactive")
        assert [operator.on(host, command) for command in KEPT] == kept

    # git pull: the sandbox is tighter, which a server gets at its next restart. There is a firewall; he opens RCON.
    operator.checks_out("-", here)
    operator.types(f"{deploy} --dry", "closes RCON", at=here)
    operator.declare(servers)
    operator.types(f"{deploy} --dry", "stopped by hand: 4", "will require a restart: 3", at=here)
    operator.types(f"{deploy} -y", "stopped by hand: 4", "restart required: 3", at=here)
    nothing_is_lost()
    operator.types(verify, "stopped by hand", "restart required", never=["failed"], at=here)
    rollout = f"python rollout.py {operator.inventory} -y --no-restart"
    operator.types(rollout, "Done and verified: 1 host; 2 pending.", at=here)
    nothing_is_lost()

    # He does not like it, and goes back, without the firewall as docs/firewall.md says. People come and go, and the
    # server is started anew there, with something else.
    operator.declare(servers, firewall=False, rcon_from=None)
    operator.types(f"{deploy} -y", at=here)
    operator.declare(servers, rcon_from=None)
    operator.checks_out(OLD, here)
    operator.types(f"{deploy} -y", at=here)
    nothing_is_lost()
    operator.on(host, "nft list tables", never=["left4me"])
    operator.plays(host, 0)
    faster = {**servers, "3": {**servers["3"], "tickrate": 60}}
    operator.declare(faster, rcon_from=None)
    operator.types(f"{deploy} -y", at=here)
    operator.on(host, "l4d2ctl restart 3")
    wait_for_server(host, 27015)
    operator.plays(host, 2)
    playing = main_pid(host, "3")

    # Forward again.
    operator.declare(faster)
    operator.checks_out("-", here)
    operator.types(f"{deploy} -y", "stopped by hand: 4", "restart required: 3", at=here)
    nothing_is_lost()
    operator.types(verify, "stopped by hand", "restart required", never=["failed"], at=here)
    operator.plays(host, 0)
    operator.on(host, "l4d2ctl reset --undo 3 && ls /var/lib/left4me/runtime/3/upper/left4dead2", "ours")
    operator.on(host, "l4d2ctl start 4")
