"""Two operators deploy the same at once, each from his own machine: one is told whose the host is, and waits."""

import re

from tests.integration.harness import SERVERS, standing, wait_for_server
from tests.integration.test_lock import elsewhere
from tests.stories.operator import Operator


def test_of_two_machines_one_deploys_and_the_other_is_told(operator: Operator) -> None:
    host = operator.host()
    operator.declare({**SERVERS, "3": {**SERVERS["3"], "cvars": {"sv_gravity": 700}}})
    olgas, rolfs = operator.clones("olga"), operator.clones("rolf")
    revision = operator.types("git rev-parse --short HEAD", at=olgas).strip()
    deploy = f"pyinfra {operator.inventory} deploy.py"

    # Olga's machine is another one, with an address of its own.
    with elsewhere(host) as machine:
        desk = f"ip netns exec {machine} unshare --uts sh -c 'hostname desk && exec {deploy}'"
        with operator.begins(desk, at=olgas, environment={"LOGNAME": "olga"}) as olga:
            # She thinks about what would change, and the host is hers meanwhile.
            olga.sees("Press enter to execute")
            before = standing(host)
            said = operator.types(f"{deploy} -y", "refused, nothing changed", code=1, at=rolfs)
            [line] = [each for each in said.splitlines() if "refused" in each]
            told = r"by olga@desk from \S+ since \d{4}-\d\d-\d\d [\d:]{8} UTC \(revision (\S+)\); wait for it"
            found = re.search(told, line)
            assert found, line
            assert found[1] == revision
            assert standing(host) == before
            olga.types("\n")
            olga.ends("Success")

    # It is done. The same from the other machine finds nothing to do.
    after = standing(host)
    assert after["inodes"] != before["inodes"]
    operator.types(f"{deploy} -y", "No changes", at=rolfs)
    assert standing(host) == after
    operator.on(host, "l4d2ctl rcon 3 map c1m1_hotel")
    wait_for_server(host, 27015)
    operator.on(host, "l4d2ctl rcon 3 sv_gravity", '"sv_gravity" = "700"')
    operator.types(f"make verify INVENTORY={operator.inventory}", at=rolfs, never=["pending:", "failed"])
