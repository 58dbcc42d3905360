"""A server fills the disk that all servers share: he finds which one, gets the space back, and everybody plays on.

To limit it from now on, he learns what the filesystem needs.
"""

from __future__ import annotations

from tests.boxes.boxes import Box
from tests.integration.ctl import RUNTIME, main_pid
from tests.integration.harness import SERVERS, small_disk, wait_for_server
from tests.stories.operator import Operator

AS_THE_GAME = "setpriv --reuid left4me-3 --regid left4me --clear-groups"


def fills(host: Box, program: str) -> None:
    """Have server 3 write below its left4dead2 as its game does, until the disk is full."""
    host.run(f"cd {RUNTIME}/3/merged/left4dead2 && {AS_THE_GAME} sh -c '{program}'", check=False)


def test_a_full_disk_is_named_and_emptied(operator: Operator) -> None:
    host = operator.host()
    with small_disk(host):
        operator.on(host, "l4d2ctl start --all")
        wait_for_server(host, 27016)
        operator.on(host, "l4d2ctl doctor", never=["the disk"])
        fills(host, "cat /dev/zero >demo.dem")

        # What runs goes on. Stops work; doctor names who filled the disk, and what to do.
        playing = main_pid(host, "4")
        upper = f"{RUNTIME}/3/upper"
        operator.on(host, "l4d2ctl doctor", "the disk is nearly full: 0 MiB", upper, "l4d2ctl stop 3", code=1)
        operator.on(host, "l4d2ctl stop 3")
        host.run(f"rm {upper}/left4dead2/demo.dem")
        operator.on(host, "l4d2ctl start 3")
        wait_for_server(host, 27015)
        operator.on(host, "l4d2ctl doctor", never=["the disk"])
        assert main_pid(host, "4") == playing

        # Files without content use up the inodes instead. A stop still unmounts, and says what it could not note.
        fills(host, "mkdir many; n=0; while : >many/$n; do n=$((n+1)); done")
        operator.on(host, "l4d2ctl doctor", "0 inodes are left", upper, code=1)
        operator.on(host, "l4d2ctl stop 3", "server 3 is stopped, but the next deploy or reboot will start it", code=1)
        assert f"{RUNTIME}/3/" not in host.run("cat /proc/1/mountinfo").stdout
        host.run(f"rm -r {upper}/left4dead2/many")
        operator.on(host, "l4d2ctl start 3")

        # What a reset moved to the attic still fills the disk, until he removes it there.
        wait_for_server(host, 27015)
        fills(host, "head -c 300M /dev/zero >demo.dem")
        operator.on(host, "l4d2ctl reset 3")
        fills(host, "head -c 60M /dev/zero >demo.dem; cat /dev/zero >more.dem")
        said = operator.on(host, "l4d2ctl doctor", "/var/lib/left4me/attic/3@", code=1)
        [remove] = [line.strip() for line in said.splitlines() if "rm -r" in line]
        operator.on(host, remove[remove.index("rm -r") :])
        operator.on(host, "l4d2ctl doctor", never=["the disk"])
    wait_for_server(host, 27015)

    # He wants a limit. This filesystem has none to give: the deploy says so, what it needs, and changes nothing.
    playing = main_pid(host, "3")
    operator.declare({**SERVERS, "3": {**SERVERS["3"], "disk_max": "1G"}})
    deploy = f"pyinfra {operator.inventory} deploy.py -y"
    operator.types(deploy, "servers.3.disk_max:", "enforces no project quotas", "docs/servers.md", code=1)
    assert main_pid(host, "3") == playing
    operator.declare()
    operator.types(f"make verify INVENTORY={operator.inventory}", "passed", never=["failed"])
