"""Two servers exchange their ports. Neither can have its new one before the other has left it: they go together."""

from __future__ import annotations

from tests.integration.ctl import main_pid, state, unit
from tests.integration.harness import SERVERS, name_over_a2s, properties, wait_for_server
from tests.stories.operator import Operator


def test_two_servers_that_exchange_their_ports_are_restarted_together(operator: Operator) -> None:
    host = operator.host()
    deploy, verify = f"pyinfra {operator.inventory} deploy.py -y", f"make verify INVENTORY={operator.inventory}"
    operator.plays(host, 2)
    playing = {server: main_pid(host, server) for server in SERVERS}

    def names() -> tuple[str, str]:
        return name_over_a2s(host, 27015), name_over_a2s(host, 27016)

    operator.declare({"3": {**SERVERS["3"], "port": 27016}, "4": {**SERVERS["4"], "port": 27015}})
    operator.types(deploy, f"[{host.name}] restart required: 3, 4: l4d2ctl restart 3 4")
    assert names() == ("three", "four")
    operator.types(verify, "restart required (port)", "l4d2ctl restart 3 4", never=["failed"])

    # One alone would find its new port taken, end at once, and be started again and again. It is left as it is.
    taken = "server 3: port 27016 is still held by server 4; "
    operator.on(host, "l4d2ctl restart 3", f"{taken}restart them together: l4d2ctl restart 3 4", code=1)
    operator.on(host, "l4d2ctl reset 4", "held by server 3; restart them together: l4d2ctl restart 4 3", code=1)
    assert {server: main_pid(host, server) for server in SERVERS} == playing
    assert names() == ("three", "four")

    # So is one that is stopped.
    operator.on(host, "l4d2ctl stop 3")
    operator.on(host, "l4d2ctl start 3", f"{taken}l4d2ctl restart 4 && l4d2ctl start 3", code=1)
    assert (state(host, "3"), main_pid(host, "4")) == ("inactive", playing["4"])

    operator.on(host, "l4d2ctl restart 3 4")
    wait_for_server(host, 27015)
    wait_for_server(host, 27016)
    assert names() == ("four", "three")
    assert {properties(host, unit(server), "NRestarts")["NRestarts"] for server in SERVERS} == {"0"}
    operator.types(verify, never=["pending:", "failed"])
    operator.types(deploy, never=["restart required"])
