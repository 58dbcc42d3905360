"""A host was reinstalled under its name, so its host key is another: each command says so, and what to type."""

from __future__ import annotations

import shlex
from pathlib import Path

from tests.boxes.boxes import Box
from tests.integration.harness import standing
from tests.stories.operator import Operator


def reinstall(host: Box) -> str:
    """Give a host the one thing of a new installation that an operator's ssh sees; return the key's fingerprint."""
    key = "/etc/ssh/ssh_host_ed25519_key"
    made = f"rm {key}; ssh-keygen -q -t ed25519 -N '' -f {key}; cat {key}.pub; ssh-keygen -lf {key}"
    public, fingerprint = host.run(f"{made}; systemctl restart ssh").stdout.splitlines()
    host.known_hosts.write_text(f"{host.name},{host.address} {public}\n", encoding="utf-8")  # the tests' own
    return fingerprint.split()[1]


def test_a_reinstalled_host_is_told_from_another_machine_by_the_operator(operator: Operator, tmp_path: Path) -> None:
    host = operator.host()
    known_hosts = tmp_path / "my known_hosts"
    known_hosts.write_text(host.known_hosts.read_text(encoding="utf-8"), encoding="utf-8")
    operator.declare(ssh_known_hosts_file=str(known_hosts), ssh_strict_host_key_checking="accept-new")
    commands = (
        (f"pyinfra {operator.inventory} deploy.py -y", 1),
        (f"make verify INVENTORY={operator.inventory}", 2),
        (f"make status INVENTORY={operator.inventory}", 2),
        (f"python rollout.py {operator.inventory} --dry", 2),
    )

    fingerprint = reinstall(host)
    before = standing(host)
    forget = f"ssh-keygen -f {shlex.quote(str(known_hosts))} -R {host.address}"
    for command, code in commands:
        said = operator.types(command, f"its host key has changed to {fingerprint}", forget, code=code)
        [line] = [each for each in said.splitlines() if forget in each]
        assert host.name in line
    assert standing(host) == before

    # It was he who reinstalled it. He types what he was told to.
    operator.types(forget)
    for command, _code in commands:
        operator.types(command, never=["has changed"])
