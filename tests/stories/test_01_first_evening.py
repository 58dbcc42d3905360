"""The first evening: a clone, the demo, one's own inventory beside it, a deploy, verification, players, RCON.

The game takes 45 s to load, as the real one may: verification right after the deploy is green, and says that it starts.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import a2s

from tests.integration.harness import ROOT, wait_for_server
from tests.stories.operator import Operator

LOADS = 45  # seconds


def test_a_clone_tonight_and_players_an_hour_later(operator: Operator, tmp_path: Path) -> None:
    host = operator.bare()
    operator.declare({"3": {"hostname": "Our evening", "arguments": ["+standin_start_delay", str(LOADS)]}})
    checkout = tmp_path / "left4me"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(checkout)], check=True)

    # What pip and the boxes' image take is not part of this: the environment is the one that runs the tests.
    (checkout / ".venv").symlink_to(ROOT / ".venv")
    (checkout / ".venv/installed").touch()  # newer than the clone's requirements.lock
    try:
        demo = operator.types(
            "make demo", "Holders while it stopped   none", "Mounts left                none", at=checkout
        )
        assert "Exit code of ExecStopPost  0" in demo
    finally:
        operator.types("./box down", at=checkout)

    deploy, verify = f"pyinfra {operator.inventory} deploy.py -y", f"make verify INVENTORY={operator.inventory}"
    operator.types(deploy, "Grand total", at=ROOT)
    operator.types(verify, "starting", "l4d2ctl status 3", never=["failed"])
    wait_for_server(host, 27015, 2 * LOADS)
    operator.types(verify, never=["pending:", "failed"])

    operator.plays(host, 2)
    info = a2s.info((host.address, 27015), timeout=1)
    assert (info.server_name, info.map_name, info.player_count) == ("Our evening", "c1m1_hotel", 2)
    operator.on(host, "l4d2ctl status", "2/8")
    operator.on(host, "l4d2ctl rcon 3 say welcome to our evening", "Console: welcome to our evening")
    operator.on(host, "l4d2ctl logs -n 5 3", "welcome to our evening")
    assert re.search(r"Grand total +(\d+) +- +- +\1 ", operator.types(deploy)), "the second deploy changed something"
