"""One evening and a bad night on Debian's own kernels: full machines, where a power cut loses what was not synced."""

from __future__ import annotations

from tests.integration.ctl import main_pid, state
from tests.integration.harness import wait_for, wait_for_server
from tests.stories.operator import Operator
from tests.vm.conftest import SLOW, WAIT, machine


def test_a_bad_night_on_debians_own_kernel(operator: Operator, debian: int) -> None:
    host = machine(operator)
    operator.declare()
    kernel = {12: "6.1.", 13: "6.12."}[debian]
    assert host.run("uname -r").stdout.startswith(kernel)
    assert host.run("lsmod | grep overlay", check=False).stdout == ""  # the module is loaded by the first mount
    deploy, verify = f"pyinfra {operator.inventory} deploy.py -y", f"make verify INVENTORY={operator.inventory}"

    def evening() -> str:
        return host.run("cat /var/lib/left4me/runtime/3/merged/left4dead2/evening.txt", check=False).stdout.strip()

    operator.types(deploy, seconds=SLOW)
    wait_for_server(host, 27015, WAIT)
    assert "overlay" in host.run("lsmod").stdout
    operator.types(verify, "passed", never=["failed"], seconds=SLOW)

    # A stop is clean; a process that keeps the overlay busy is named.
    operator.on(host, "l4d2ctl stop 3")
    assert state(host, "3") == "inactive"
    assert "/runtime/3/" not in host.run("cat /proc/1/mountinfo").stdout
    operator.on(host, "l4d2ctl start 3")
    wait_for_server(host, 27015, WAIT)
    busy = "systemd-run -q --unit=shell --property=WorkingDirectory=/var/lib/left4me/runtime/3/merged sleep 999"
    operator.on(host, busy)
    operator.on(host, "l4d2ctl holders 3", "sleep", "cwd")
    operator.on(host, "systemctl stop shell")

    host.run("echo first >/var/lib/left4me/runtime/3/merged/left4dead2/evening.txt; sync")
    operator.on(host, "l4d2ctl reset 3", "in all")
    assert evening() == ""
    operator.on(host, "l4d2ctl reset --undo 3")
    assert evening() == "first"

    host.reboot()
    wait_for_server(host, 27015, WAIT)
    operator.types(verify, "passed", never=["failed"], seconds=SLOW)

    # The power is cut amid a reset: what was promised is there, and the server is up without a human.
    host.run("echo second >/var/lib/left4me/runtime/3/merged/left4dead2/evening.txt; sync")
    before = main_pid(host, "3")
    host.run("systemd-run -q --unit=resets l4d2ctl reset 3")
    wait_for("the reset has begun", lambda: main_pid(host, "3") != before)
    host.crash()
    host.start()
    wait_for_server(host, 27015, WAIT)
    operator.on(host, "l4d2ctl doctor")
    attic = host.run("cd /var/lib/left4me/attic && cat */upper/left4dead2/evening.txt", check=False).stdout.split()
    assert evening() == "second" or "second" in attic
    operator.types(verify, "passed", never=["failed"], seconds=SLOW)
