"""A host whose administrator has a password, for SSH and for sudo, and whose shell is not bash."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping
from typing import Any

from tests.boxes import deployed
from tests.integration.ctl import layered
from tests.integration.harness import GAME, SERVERS, wait_for
from tests.stories.operator import Operator

PASSWORD = "correct horse; 'battery' $taple"
USER = "olga"
LOOK = """\
while sleep 0.01; do cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null; done | tr "\\0" "\\n" |
    grep --text --line-buffered --only-matching -e "[b]attery" -e "[l]eft4me.shapes" >/run/seen"""


def test_one_description_of_the_connection_is_read_by_everything(operator: Operator, debian: int) -> None:
    [host] = deployed.up([operator.name], debian)
    operator.hosts.append(host)
    host.run("apt-get update -q && apt-get install -y -q tcsh")
    host.run(f"useradd --create-home --groups sudo --shell /bin/bash {USER}")
    host.run(f"chpasswd <<'END'\n{USER}:{PASSWORD}\nEND")
    operator.on(host, f"sudo -u {USER} sudo -n true", "a password is required", code=1)
    key = operator.fleet / "id_olga"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", PASSWORD, "-f", key], check=True)
    host.run(
        f"install -d -o {USER} -m 700 ~{USER}/.ssh && cat >~{USER}/.ssh/authorized_keys && chown {USER} ~{USER}/.ssh/*",
        input=key.with_suffix(".pub").read_bytes(),
    )
    user: dict[str, Any] = {"ssh_user": USER, "_sudo": True, "ssh_look_for_keys": False}
    deploy, verify = f"pyinfra {operator.inventory} deploy.py -y", f"make verify INVENTORY={operator.inventory}"
    status, rollout = f"make status INVENTORY={operator.inventory}", f"python rollout.py {operator.inventory} -y"

    def declare(data: dict[str, Any], servers: Mapping[str, Any] = SERVERS) -> None:
        reach = {"ssh_hostname": host.address, "ssh_known_hosts_file": str(host.known_hosts), **data}
        everything = {"ssh_config_file": "/dev/null", "game": GAME, **layered(servers), **reach}
        operator.inventory.write_text(f"boxes = [({host.name!r}, {everything!r})]\n", encoding="utf-8")

    # What is missing or wrong is named, and nobody is asked.
    needed = "sudo asks for a password: set _sudo_password in the host's data"
    declare({**user, "ssh_password": PASSWORD})
    operator.types(deploy, f"refused, nothing changed: {needed}", code=1, never=[PASSWORD])
    operator.types(verify, needed, code=2)
    operator.types(status, needed, code=2)
    operator.types(rollout, needed, code=2)
    wrong = "sudo rejects the password: check _sudo_password in the host's data"
    declare({**user, "ssh_password": PASSWORD, "_sudo_password": "no"})
    operator.types(deploy, f"refused, nothing changed: {wrong}", code=1)
    operator.types(status, wrong, code=2)
    declare({**user, "ssh_key": str(key)})
    operator.types(deploy, f"the key {key} has a passphrase: set ssh_key_password", code=1)

    # By passwords.
    by_password = {**user, "ssh_password": PASSWORD, "_sudo_password": PASSWORD}
    declare(by_password)
    operator.types(deploy, never=[PASSWORD])
    operator.types(verify, "passed", never=["failed", PASSWORD])
    operator.types(status, "27015", "27016", never=[PASSWORD])
    declare(by_password, {**SERVERS, "3": {**SERVERS["3"], "hostname": "another evening!"}})
    operator.types(rollout, "Done and verified: 1 host", never=[PASSWORD])
    assert "another evening!" in host.run("cat /etc/left4me/servers/3/server.cfg").stdout

    # By a key with a passphrase; his login shell ends words at newlines and expands exclamation marks.
    host.run(f"chsh -s /bin/tcsh {USER}")
    declare({**user, "ssh_key": str(key), "ssh_key_password": PASSWORD, "_sudo_password": PASSWORD})
    host.run(f"systemd-run --quiet --unit=looks sh -c {shlex.quote(LOOK)}")
    wait_for("the look has begun", lambda: host.run("test -e /run/seen", check=False).returncode == 0)
    operator.types(deploy, never=[PASSWORD])
    operator.types(status, "27015", "27016", never=[PASSWORD])
    # Nothing on the host shows the password: not its process list while a deploy works, not its journal.
    host.run("systemctl stop looks")
    assert {*host.run("cat /run/seen").stdout.split()} == {
        "left4me.shapes"
    }  # a program of the deploy's, as it is shown
    assert "battery" not in host.run("journalctl --output=cat").stdout
