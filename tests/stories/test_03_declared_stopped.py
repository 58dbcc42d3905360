"""A server is declared stopped while players are on it, and later started by hand: nobody is thrown out of a game."""

from __future__ import annotations

from tests.integration.ctl import main_pid, state
from tests.integration.harness import SERVERS, overlays, wait_for_server
from tests.stories.operator import Operator


def test_a_server_that_is_declared_stopped_ends_when_it_has_no_players(operator: Operator) -> None:
    host = operator.host()
    deploy, verify = f"pyinfra {operator.inventory} deploy.py", f"make verify INVENTORY={operator.inventory}"
    operator.plays(host, 2)
    playing = main_pid(host, "3")

    operator.declare({"3": {**SERVERS["3"], "state": "stopped"}, "4": SERVERS["4"]})
    operator.types(f"{deploy} --dry -y", "remove -y", "nothing has changed", code=2)
    operator.types(f"{deploy} --dry", "declared stopped, still running: 3: l4d2ctl stop 3")
    operator.types(f"{deploy} -y", "declared stopped, still running: 3: l4d2ctl stop 3")
    operator.types(verify, "declared stopped, still running", "l4d2ctl stop 3", never=["failed"])
    assert main_pid(host, "3") == playing

    # They have left: the next deploy stops it, and no reboot brings it back.
    operator.plays(host, 0)
    operator.declare({"3": {**SERVERS["3"], "state": "stopped", "max_players": 4}, "4": SERVERS["4"]})
    operator.types(f"{deploy} --dry", never=["will require a restart"])
    operator.types(f"{deploy} -y", never=["declared stopped, still running"])
    assert state(host, "3") == "inactive"
    operator.types(verify, never=["pending:", "failed"])
    host.reboot()
    wait_for_server(host, 27016)
    assert state(host, "3") == "inactive"

    # For one evening it is started by hand: verification says so, and the next deploy ends it.
    operator.on(host, "l4d2ctl start 3")
    wait_for_server(host, 27015)
    operator.types(verify, "declared stopped, still running", never=["failed"])
    operator.types(f"{deploy} -y")
    assert state(host, "3") == "inactive"
    assert not any("/3/" in point for point in overlays(host))
    operator.types(verify, never=["pending:", "failed"])
