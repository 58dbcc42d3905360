"""A server is stopped by hand. It stays down over a deploy, a rollout and a reboot, and all of them are green."""

from __future__ import annotations

from tests.integration.ctl import state
from tests.integration.harness import overlays, wait_for_server
from tests.stories.operator import Operator


def test_a_server_stopped_by_hand_stays_down_and_all_is_green(operator: Operator) -> None:
    host = operator.host()
    listed = ("stopped by hand", "admin", "l4d2ctl start 3")

    operator.on(host, "sudo l4d2ctl stop 3", user="admin")
    operator.on(host, "l4d2ctl status 3", "inactive", "by hand")
    assert not any("/3/" in point for point in overlays(host))

    def stays_down() -> None:
        assert (state(host, "3"), state(host, "4")) == ("inactive", "active")

    operator.types(f"make verify INVENTORY={operator.inventory}", *listed, never=["failed"])
    operator.types(f"pyinfra {operator.inventory} deploy.py -y", "stopped by hand: 3: l4d2ctl start 3")
    stays_down()
    operator.types(f"python rollout.py {operator.inventory} -y", *listed, "Done and verified: 1 host; 1 pending.")
    stays_down()
    host.reboot()
    wait_for_server(host, 27016)
    stays_down()
    operator.types(f"make verify INVENTORY={operator.inventory}", *listed, never=["failed"])

    # Whoever wants none of that left can ask for it.
    strict = f"pytest tests/deployed --inventory {operator.inventory} --no-pending"
    operator.types(strict, "server 3: stopped by hand; l4d2ctl start 3", "1 failed", code=1)

    operator.on(host, "l4d2ctl start 3")
    wait_for_server(host, 27015)
    operator.types(strict, never=["pending:"])
