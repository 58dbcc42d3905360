"""A host whose root shell greets everybody: deploy, verify, status and rollout work all the same."""

from __future__ import annotations

from tests.integration.harness import SERVERS
from tests.stories.operator import Operator


def test_a_shell_that_greets_is_in_no_ones_way(operator: Operator) -> None:
    host = operator.host()
    # Debian's bash reads it for `ssh host command` too.
    host.run("sed -i '1i echo Hello; echo [and welcome]; echo {}' /root/.bashrc")
    assert "Hello" in operator.on(host, "true")
    deploy, verify = f"pyinfra {operator.inventory} deploy.py -y", f"make verify INVENTORY={operator.inventory}"

    operator.types(deploy, never=["refused"])
    operator.types(verify, "passed", never=["failed"])
    operator.types(f"make status INVENTORY={operator.inventory}", "27015", "27016")
    operator.declare({**SERVERS, "3": {**SERVERS["3"], "hostname": "another evening"}})
    operator.types(f"python rollout.py {operator.inventory} -y", "Done and verified: 1 host")
    assert "another evening" in host.run("cat /etc/left4me/servers/3/server.cfg").stdout
