"""The first deploy ends at the game, for Steam is away; then the game comes from a directory, and all is well."""

from __future__ import annotations

from typing import Any

from tests.integration import steam as steams
from tests.integration.harness import GAME, wait_for_server
from tests.integration.test_webhook import outside
from tests.stories.operator import Operator


def test_a_deploy_that_ends_at_the_game_is_told_of_until_its_reason_is_gone(operator: Operator) -> None:
    host = operator.bare()
    deploy = f"pyinfra {operator.inventory} deploy.py -y"
    with steams.serving(outside(host)) as steam:
        steam.is_down = True
        steamcmd: dict[str, Any] = {"steamcmd_url": steam.steamcmd_url, "steamcmd_sha256": steam.steamcmd_sha256}
        operator.declare(game={"source": "steamcmd"}, **steamcmd)
        operator.types(deploy, "the update failed; the current build is still none", code=1)

    # What is there, and why not more; what the deploy has prepared is nothing to be put away.
    operator.on(host, "l4d2ctl game status", "no build", "the last update failed on 2")
    found = ["there is no build of the game yet", "the last update failed on 2", "runtime/3", "deploy this host"]
    operator.on(host, "l4d2ctl doctor", *found, code=1, never=["attic"])
    operator.on(host, "l4d2ctl doctor --fix", *found, code=1)
    assert host.run("ls /var/lib/left4me/runtime").stdout.split() == ["3", "4", "_bare", "_modded"]
    # As a night's update leaves it.
    host.run("systemctl start left4me-game.service", check=False)
    assert host.run("systemctl is-failed left4me-game.service").stdout == "failed\n"

    operator.declare(game=GAME)
    operator.types(deploy)
    wait_for_server(host, 27015)
    operator.on(host, "l4d2ctl game status", "current", never=["failed"])
    operator.on(host, "l4d2ctl doctor")
    operator.types(f"make verify INVENTORY={operator.inventory}", "passed", never=["failed"])
