"""Steam has a build that does not run, then a good one: nobody is thrown out, and the way back needs no download."""

from __future__ import annotations

from pathlib import Path

from tests.integration import steam as steams
from tests.integration.ctl import main_pid
from tests.integration.harness import SERVERS, wait_for_server
from tests.integration.layers import lowers, merged
from tests.integration.test_update import LOST, build_of, current, state_of
from tests.integration.test_webhook import outside
from tests.stories.operator import Operator

RESTARTS = "left4me-restart.service"


def test_a_build_that_fails_its_smoke_test_and_one_that_does_not(operator: Operator, game: Path) -> None:
    host = operator.host()
    verify = f"make verify INVENTORY={operator.inventory}"
    old = current(host)

    def restarts_when_idle() -> None:
        """Have what waits for players to leave do so for a second instead of a minute."""
        assert state_of(host, RESTARTS) == "active"
        again = "/usr/local/libexec/left4me/left4me-restart 1"
        operator.on(host, f"systemctl stop {RESTARTS} && {again}", "restarting server 3, 0 players")

    with steams.serving(outside(host)) as steam:
        # From now on the game comes from Steam; server 3 is restarted after an update when nobody plays there.
        servers = {**SERVERS, "3": {**SERVERS["3"], "restart": "when-empty"}}
        steamcmd = {"steamcmd_url": steam.steamcmd_url, "steamcmd_sha256": steam.steamcmd_sha256}
        operator.declare(servers, game={"source": "steamcmd"}, **steamcmd)
        operator.types(f"pyinfra {operator.inventory} deploy.py -y")
        wait_for_server(host, 27015)
        operator.plays(host, 2)
        playing = [main_pid(host, server) for server in SERVERS]

        # A build whose program does not start: it is named, and nothing else has changed.
        steam.publish("15000001", game, {"srcds_linux": LOST})
        operator.on(host, "l4d2ctl game update --check", f"current build: {old}; Steam's newest: 15000001")
        operator.on(
            host, "l4d2ctl game update", "build 15000001 failed its smoke test", "status=3", f"still {old}", code=1
        )
        assert current(host) == old
        operator.on(host, "l4d2ctl game status", "15000001", "the last update failed on 2", "build 15000001 failed")
        operator.on(host, "l4d2ctl doctor", "the last update failed on 2", "l4d2ctl game update", code=1)
        operator.types(verify, never=["pending:", "failed"])

        # The next one is good. It is current, and those who play keep theirs.
        steam.publish("15000002", game, {"left4dead2/build.txt": b"15000002"})
        operator.on(host, "l4d2ctl game update", "build 15000002 is current; running servers use it after a restart")
        assert current(host) == "15000002"
        operator.on(host, "l4d2ctl game status", never=["the last update failed"])
        assert [main_pid(host, server) for server in SERVERS] == playing
        assert (build_of(host, "3"), build_of(host, "4")) == (old, old)
        operator.types(verify, "restart required (build)", "l4d2ctl restart 3", "l4d2ctl restart 4", never=["failed"])

        # They have left server 3. Server 4 is nobody's to restart but the operator's.
        operator.plays(host, 0)
        restarts_when_idle()
        wait_for_server(host, 27015)
        assert merged(host, "build.txt").read_text() == "15000002"
        assert (main_pid(host, "4"), build_of(host, "4")) == (playing[1], old)
        operator.on(host, "l4d2ctl game status", "15000002\tcurrent")

        # It is no good after all: back, without Steam.
        steam.is_down = True
        operator.on(host, "l4d2ctl game rollback", f"build {old} is current")
        restarts_when_idle()
        wait_for_server(host, 27015)
        assert lowers(host, "3") == lowers(host, "4")
    operator.types(verify, never=["pending:", "failed"])
