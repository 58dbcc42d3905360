"""A server is taken out of the data by mistake and declared again: all it had comes back, its port and password too."""

from __future__ import annotations

from tests.integration.ctl import RUNTIME, game_writes, state
from tests.integration.harness import SERVERS, wait_for_server
from tests.integration.layers import merged
from tests.stories.operator import Operator

SECRET = "/var/lib/left4me/secrets/3/rcon.cfg"


def test_a_server_that_was_removed_by_mistake_comes_back_whole(operator: Operator) -> None:
    host = operator.host()
    deploy = f"pyinfra {operator.inventory} deploy.py -y"
    # Its RCON password is made on the host, and its port was given out there.
    three, four = {"hostname": "three", "rcon_password": None}, SERVERS["4"]
    operator.declare({"3": three, "4": four})
    operator.types(deploy, "at the next map: 3")
    operator.on(host, "l4d2ctl restart 3")
    wait_for_server(host, 27015)
    password = host.run(f"cat {SECRET}").stdout
    game_writes(host, "ranks.txt", "a season of them")

    # A slip of the finger: nobody plays there, so it goes at once, and another server comes.
    operator.declare({"4": four, "5": {"hostname": "five"}})
    operator.types(deploy)
    assert state(host, "3") == "inactive"
    assert host.run(f"ls -d {RUNTIME}/3 {SECRET}", check=False).stdout == ""
    operator.on(host, "l4d2ctl status 5", "27017", never=["27015"])

    # What it had is in the attic. Declared again it is as new, at its port and with another password.
    operator.on(host, "l4d2ctl attic 3", "removal\tnext")
    operator.declare({"3": three, "4": four, "5": {"hostname": "five"}})
    operator.types(deploy)
    wait_for_server(host, 27015)
    assert not merged(host, "ranks.txt").exists()
    assert host.run(f"cat {SECRET}").stdout != password

    operator.on(host, "l4d2ctl reset --undo 3")
    wait_for_server(host, 27015)
    assert merged(host, "ranks.txt").read_text() == "a season of them\n"
    assert host.run(f"cat {SECRET}").stdout == password
    operator.on(host, "l4d2ctl rcon 3 hostname", "three")
    operator.types(f"make verify INVENTORY={operator.inventory}", never=["pending:", "failed"])
