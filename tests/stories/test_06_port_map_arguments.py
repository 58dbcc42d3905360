"""Port, map and arguments of a server are changed while people play: all of that comes with its restart."""

from __future__ import annotations

import a2s

from tests.integration.ctl import main_pid
from tests.integration.harness import SERVERS, wait_for_server
from tests.stories.operator import Operator


def test_port_map_and_arguments_come_with_a_restart(operator: Operator) -> None:
    host = operator.host()
    deploy, verify = f"pyinfra {operator.inventory} deploy.py", f"make verify INVENTORY={operator.inventory}"
    operator.plays(host, 2)
    playing = {server: main_pid(host, server) for server in SERVERS}

    three = {**SERVERS["3"], "port": 27020, "map": "c2m1_highway", "arguments": ["-nohltv"]}
    operator.declare({**SERVERS, "3": three})
    operator.types(f"{deploy} --dry", f"[{host.name}] will require a restart: 3: l4d2ctl restart 3")
    operator.types(f"{deploy} -y", f"[{host.name}] restart required: 3: l4d2ctl restart 3")
    assert {server: main_pid(host, server) for server in SERVERS} == playing

    # It is played on where it was. Whoever asks is told so, and finds it there.
    info = a2s.info((host.address, 27015), timeout=1)
    assert (info.map_name, info.player_count) == ("c1m1_hotel", 2)
    operator.on(host, "l4d2ctl status 3", "27015", "c1m1_hotel", "2/8", "restart required")
    operator.types(f"make status INVENTORY={operator.inventory}", "27015", "restart required", never=["27020"])
    operator.types(verify, "restart required (port, map, arguments)", "l4d2ctl restart 3", never=["failed"])
    operator.on(host, "l4d2ctl rcon 3 say this server moves to port 27020 in a minute", "moves to port 27020")

    operator.on(host, "l4d2ctl restart 3")
    wait_for_server(host, 27020)
    assert a2s.info((host.address, 27020), timeout=1).map_name == "c2m1_highway"
    assert "-nohltv" in host.run(f"tr '\\0' '\\n' </proc/{main_pid(host, '3')}/cmdline").stdout.split()
    assert "27015" not in host.run("ss --no-header --numeric --listening --udp --tcp").stdout
    assert main_pid(host, "4") == playing["4"]
    operator.on(host, "l4d2ctl rcon 3 status", "27020", "c2m1_highway")
    operator.types(verify, never=["pending:", "failed"])
