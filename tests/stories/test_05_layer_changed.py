"""A layer is changed under two running servers. Each keeps what it runs on until it is restarted."""

from __future__ import annotations

import shutil

from tests.integration.ctl import LAYER, LAYERS, main_pid
from tests.integration.harness import ROOT, SERVERS, wait_for_server
from tests.integration.layers import control, current, lowers, merged, versions
from tests.stories.operator import Operator


def test_a_layer_that_is_changed_comes_with_each_servers_restart(operator: Operator) -> None:
    host = operator.host()
    deploy, verify = f"pyinfra {operator.inventory} deploy.py -y", f"make verify INVENTORY={operator.inventory}"
    before = current(host, LAYER)
    playing = {server: main_pid(host, server) for server in SERVERS}

    # The layer lies in his own repository from now on, and has a file more.
    layer = shutil.copytree(ROOT / LAYERS[LAYER]["path"], operator.fleet / LAYER)
    (layer / "left4dead2/cfg/evening.cfg").write_text("echo good evening\n", encoding="utf-8")
    operator.declare(layers={LAYER: control(layer)})
    operator.types(deploy, f"[{host.name}] restart required: 3, 4: l4d2ctl restart 3 4")
    after = current(host, LAYER)
    assert after != before
    assert {server: main_pid(host, server) for server in SERVERS} == playing
    assert lowers(host, "3")[0] == lowers(host, "4")[0] == before
    operator.on(host, "l4d2ctl status 3", "restart required")
    operator.on(host, "l4d2ctl rcon 3 exec evening.cfg", "couldn't exec")
    operator.types(verify, "restart required (layers)", "l4d2ctl restart 3", "l4d2ctl restart 4", never=["failed"])

    # Server 3 has nobody on it: it is restarted, and has the new content. Server 4 plays on with the old one.
    operator.on(host, "l4d2ctl restart 3")
    wait_for_server(host, 27015)
    operator.on(host, "l4d2ctl rcon 3 exec evening.cfg", "good evening")
    assert (lowers(host, "3")[0], lowers(host, "4")[0]) == (after, before)
    assert merged(host, "cfg/evening.cfg", "3").exists()
    assert not merged(host, "cfg/evening.cfg", "4").exists()
    operator.types(deploy, "restart required: 4: l4d2ctl restart 4")
    assert main_pid(host, "4") == playing["4"]
    assert versions(host, LAYER) == sorted([before, after])

    # When server 4 has it too, the next deploy removes the version that nobody uses.
    operator.on(host, "l4d2ctl restart 4")
    wait_for_server(host, 27016)
    operator.types(deploy, never=["restart required"])
    assert versions(host, LAYER) == [after]
    operator.types(verify, never=["pending:", "failed"])
