"""A bad commit is rolled out. The canary stops it, the other host never sees it, and git checkout is the way back."""

from __future__ import annotations

from tests.integration.ctl import main_pid
from tests.integration.harness import SERVERS, name_over_a2s, standing
from tests.stories.operator import COMMIT, Operator

UNIT = "templates/systemd/left4me-server@.service.j2"


def test_a_bad_commit_stops_at_the_canary_and_goes_back_by_checkout(operator: Operator) -> None:
    canary, other = operator.host("a"), operator.host("b")
    checkout = operator.clones("left4me")
    rollout = f"python rollout.py {operator.inventory} -y --quiet 1s --grace 5s"
    operator.plays(other, 2)
    playing = {(box.name, server): main_pid(box, server) for box in (canary, other) for server in SERVERS}

    # Somebody hardened the unit, and the game is a 32-bit program. The canary's first restart shows it.
    hardened = f"sed -i 's/native x86/native/' {UNIT} && {COMMIT} -am 'Allow only native system calls'"
    operator.types(hardened, at=checkout)
    before = standing(other)
    failed = (f"{canary.name} failed at restart:\n    server 3", "status=31/SYS", f"Untouched: {other.name}.")
    operator.types(rollout, *failed, "look closer: ssh ", code=1, at=checkout)
    assert standing(other) == before
    assert main_pid(canary, "4") == playing[canary.name, "4"]
    operator.on(canary, "l4d2ctl logs -n 5 3", "status=31/SYS")

    # Back, by the same command. Server 4 and the other host have seen nothing of it.
    operator.types("git checkout --quiet HEAD~1", at=checkout)
    operator.types(rollout, "Done and verified: 2 hosts.", never=["pending:"], at=checkout)
    assert name_over_a2s(canary, 27015) == "three"
    back = operator.types("git rev-parse --short HEAD", at=checkout)
    for box in (canary, other):
        assert box.run("cat /etc/left4me/revision").stdout == back
    for box, server in ((canary, "4"), (other, "3"), (other, "4")):
        assert main_pid(box, server) == playing[box.name, server]
