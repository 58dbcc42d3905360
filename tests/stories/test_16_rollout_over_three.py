"""A rollout over three hosts: one has a server stopped by hand, one has players, one cannot be reached."""

from __future__ import annotations

from tests.integration.ctl import main_pid, rcon, state
from tests.integration.harness import SERVERS, name_over_a2s
from tests.stories.operator import Operator


def test_a_rollout_over_three_hosts_of_which_each_has_something(operator: Operator) -> None:
    calm, busy, gone = (operator.host(name) for name in ("a", "b", "c"))
    rollout = f"python rollout.py {operator.inventory} -y --quiet 1s"
    operator.on(calm, "l4d2ctl stop 4")
    operator.plays(busy, 2)
    playing = main_pid(busy, "3")
    gone.crash()
    operator.declare({**SERVERS, "3": {**SERVERS["3"], "hostname": "new", "tickrate": 60}})

    # One that cannot be reached is named before anything has changed, with what to type.
    operator.types(rollout, f"refused: {gone.name}: ", "Nothing has changed.", "--exclude NAME", code=2)
    operator.types(f"{rollout} --dry --exclude {gone.name}", "will require a restart: 3: l4d2ctl restart 3")

    # Nobody is thrown out while --drain lasts; the server that was stopped by hand stays down, and is listed.
    said = operator.types(f"{rollout} --exclude {gone.name} --drain 5s", "stopped by hand", "l4d2ctl start 4")
    assert "server 3 has 2 players" in said
    assert "Done and verified: 2 hosts; 1 pending." in said
    assert main_pid(busy, "3") != playing  # the drain was over
    assert (state(calm, "4"), name_over_a2s(calm, 27015), name_over_a2s(busy, 27015)) == ("inactive", "new", "new")
    rcon(busy, 27016, "say that server was left alone")

    gone.start()
    operator.types(f"{rollout} --limit {gone.name}", "Done and verified: 1 host.")
    assert name_over_a2s(gone, 27015) == "new"
