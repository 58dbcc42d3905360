"""A cvar is changed while people play. It holds from the next map on; nothing is restarted for it."""

from __future__ import annotations

import a2s

from tests.integration.ctl import main_pid
from tests.integration.harness import SERVERS, wait_for
from tests.stories.operator import Operator


def test_a_cvar_that_is_changed_holds_at_the_next_map(operator: Operator) -> None:
    host = operator.host()
    deploy, verify = f"pyinfra {operator.inventory} deploy.py -y", f"make verify INVENTORY={operator.inventory}"
    address = (host.address, 27015)
    operator.plays(host, 2)
    playing = main_pid(host, "3")

    operator.declare({**SERVERS, "3": {**SERVERS["3"], "hostname": "Low gravity", "cvars": {"sv_gravity": 700}}})
    operator.types(deploy, f"[{host.name}] configuration at the next map: 3: wait, or l4d2ctl restart 3")
    assert a2s.rules(address, timeout=1)["sv_gravity"] == "800"
    operator.on(host, "l4d2ctl status 3", "at the next map", "2/8")
    operator.types(verify, "configuration at the next map", "wait, or l4d2ctl restart 3", never=["failed"])
    operator.types(deploy, "configuration at the next map: 3")

    # They have played the map to its end.
    operator.on(host, "l4d2ctl rcon 3 changelevel c1m2_streets")
    wait_for("the next map runs", lambda: a2s.info(address, timeout=10).map_name == "c1m2_streets")
    assert a2s.rules(address, timeout=1)["sv_gravity"] == "700"
    assert a2s.info(address, timeout=1).server_name == "Low gravity"
    assert main_pid(host, "3") == playing
    operator.on(host, "l4d2ctl status 3", "2/8", never=["at the next map"])
    operator.types(verify, never=["pending:", "failed"])
    operator.types(deploy, never=["at the next map"])
