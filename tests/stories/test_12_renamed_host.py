"""He calls a host by another name in the inventory: it is the same host, and nothing on it changes."""

from __future__ import annotations

from tests.integration.harness import standing
from tests.stories.operator import Operator


def test_a_host_that_is_renamed_in_the_inventory_stays_as_it_is(operator: Operator) -> None:
    host = operator.host()
    operator.plays(host, 2)
    before = standing(host)

    operator.types(f"sed -i \"s/('{host.name}',/('game1.example.org',/\" {operator.inventory}")
    deploy = f"pyinfra {operator.inventory} deploy.py"
    operator.types(f"{deploy} --dry", "[game1.example.org]", never=[f"[{host.name}]"])
    operator.types(f"{deploy} -y", "[game1.example.org]", "No changes")
    operator.types(f"make verify INVENTORY={operator.inventory}", never=["pending:", "failed"])
    operator.types(f"make status INVENTORY={operator.inventory}", "game1.example.org", "2/8", never=[host.name])
    operator.types(f"python rollout.py {operator.inventory} -y", "Done and verified: 1 host.")
    assert standing(host) == before
