"""Of his two hosts one answers nonsense: he sees which, works on with the other, and a deploy repairs it."""

from __future__ import annotations

from tests.integration.harness import wait_for_server
from tests.stories.operator import Operator

CTL = "/usr/local/sbin/l4d2ctl"


def test_a_host_that_answers_nonsense_stops_nobody_else(operator: Operator) -> None:
    good, bad = operator.host("a"), operator.host("b")
    deploy = f"pyinfra {operator.inventory} deploy.py -y"
    status, verify = f"make status INVENTORY={operator.inventory}", f"make verify INVENTORY={operator.inventory}"
    for host in (good, bad):
        wait_for_server(host, 27015)
    operator.types(deploy)

    # Somebody replaced l4d2ctl: what it prints is no status, and nested deeper than Python reads.
    bad.run(f"cat >{CTL}", input=b"#!/bin/sh\nhead -c 200000 /dev/zero | tr '\\0' '['\n")
    said = operator.types(status, good.name, f"{bad.name}: its l4d2ctl printed no valid status", code=2)
    assert [line.split()[:2] for line in said.splitlines() if line.startswith(good.name)] == [
        [good.name, "3"],
        [good.name, "4"],
    ]
    said = operator.types(verify, CTL, code=2)
    assert f"{bad.name}: {CTL}" in said
    assert f"{good.name}: " not in said

    # The other host gets its change, and this one its program back.
    operator.declare({"3": {"port": 27015, "hostname": "changed"}, "4": {"port": 27016}})
    operator.types(deploy, code=0)
    assert "changed" in good.run("cat /etc/left4me/servers/3/server.cfg").stdout
    operator.types(status, good.name, bad.name, never=["no valid status"])
    operator.types(verify, "passed", never=["failed"])
