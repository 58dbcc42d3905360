"""A full disk, a mirror that is away, a wrong clock, a power cut amid a reset: each is named, and nothing is lost."""

from __future__ import annotations

from tests.integration.ctl import game_writes, main_pid
from tests.integration.harness import small_disk, wait_for, wait_for_server
from tests.integration.layers import merged
from tests.stories.operator import Operator

PROXY = "/etc/apt/apt.conf.d/90proxy"


def test_a_bad_night_ends_well(operator: Operator) -> None:
    host = operator.host()
    deploy = f"pyinfra {operator.inventory} deploy.py -y"

    def evening() -> str:
        path = merged(host, "evening.txt")
        return path.read_text().strip() if path.exists() else "none"

    # The disk is full: a reset is refused before anything has changed, and works once there is room.
    with small_disk(host) as disk:
        operator.on(host, "l4d2ctl start --all")
        wait_for_server(host, 27015)
        game_writes(host, "evening.txt", "crowded")
        playing = main_pid(host, "3")
        disk.fill()
        operator.on(host, "l4d2ctl reset 3", "is not reset and nothing changed", "No space left on device", code=1)
        assert (main_pid(host, "3"), evening()) == (playing, "crowded")
        disk.empty()
        operator.on(host, "l4d2ctl reset 3")
        assert evening() == "none"
        operator.on(host, "l4d2ctl reset --undo 3")
        assert evening() == "crowded"
    wait_for_server(host, 27015)

    # The mirror is away when a library is missing: the deploy says what it wants of whom, and later goes on.
    host.run(f"mv {PROXY} /root/; dpkg --purge lib32z1; apt-get clean")
    operator.types(deploy, "not installed: lib32z1:amd64", "the route to the mirror", code=1)
    wait_for_server(host, 27015)
    host.run(f"mv /root/90proxy {PROXY}")
    operator.types(deploy)

    # The clock goes wrong twice. What came last is still what an undo takes first.
    for clock, name in (("", "first"), ("faketime -f -1h ", "second"), ("faketime -f +1d ", "third"), ("", "fourth")):
        game_writes(host, "evening.txt", name)
        operator.on(host, f"{clock}l4d2ctl reset 3", "in all")
    for name in ("fourth", "third"):
        operator.on(host, "faketime -f -1h l4d2ctl reset --undo 3")
        assert evening() == name

    # The power is cut amid a reset. The boot finishes it and starts the server; status says so until he goes on.
    game_writes(host, "evening.txt", "fifth")
    stand_still = "-o /run/trace -e inject=rename:signal=SIGSTOP:when=2"  # strace stops it there
    host.run(f"strace {stand_still} l4d2ctl reset 3 >/dev/null 2>&1 </dev/null &")
    wait_for("it is half done", lambda: "stopped by SIGSTOP" in host.run("cat /run/trace", check=False).stdout)
    host.crash()
    host.start()
    wait_for_server(host, 27015)
    assert evening() == "none"
    operator.on(host, "l4d2ctl status 3", "a reset was finished at the boot")
    operator.types(f"make verify INVENTORY={operator.inventory}", never=["pending:", "failed"])
    operator.on(host, "l4d2ctl reset --undo 3")
    assert evening() == "fifth"
    operator.on(host, "l4d2ctl status 3", never=["boot"])
