"""An operator without root: the group that `operators` names may run l4d2ctl, and that is all that it may."""

import shlex

from tests.integration.ctl import PASSWORD, main_pid, state
from tests.integration.harness import name_over_a2s, wait_for_server
from tests.stories.operator import Operator

MAY_NOT = {
    "a shell of root": "sudo -n bash",
    "a shell of a server": "sudo -n -u left4me-3 sh",
    "systemd past l4d2ctl": "sudo -n systemctl stop left4me-server@3",
    "root's files": "sudo -n cat /etc/shadow",
    "the program that l4d2ctl starts": "sudo -n /usr/local/libexec/left4me/left4me-overlay umount 3",
    "another program by that name": "cp /bin/cat /tmp/l4d2ctl && sudo -n /tmp/l4d2ctl /etc/shadow",
}
"""By what it would be; sudo refuses each."""
ON_A_TERMINAL = "script --quiet --return --command 'sudo l4d2ctl logs -n 5 3' /dev/null"


def test_an_operator_without_root_runs_the_servers_and_nothing_else(operator: Operator) -> None:
    host = operator.host()
    operator.on(host, "groupadd gamers && useradd --create-home --shell /bin/bash --groups gamers olga")
    operator.on(host, "useradd --create-home --shell /bin/bash mallory")
    for each in ("olga", "mallory"):
        operator.on(host, f"cp -r /root/.ssh /home/{each}/ && chown -R {each}: /home/{each}/.ssh")

    def types_as(user: str, command: str, *says: str, code: int = 0) -> str:
        """Type a command at the host, in the shell of a user who has logged in there."""
        return operator.types(f"ssh -F {host.ssh_config} {user}@{host.name} {shlex.quote(command)}", *says, code=code)

    deploy = f"pyinfra {operator.inventory} deploy.py -y"
    verify = f"make verify INVENTORY={operator.inventory}"

    # Before root says so in the data she is nobody.
    types_as("olga", "sudo -n l4d2ctl status", "password is required", code=1)
    operator.declare(operators="gamer")
    operator.types(deploy, "refused, nothing changed: operators: group gamer does not exist: groupadd gamer", code=1)
    operator.declare(operators="gamers")
    operator.types(deploy)

    # She stops a server for good, starts it, looks, and says something to the players.
    wait_for_server(host, 27015)
    types_as("olga", "sudo l4d2ctl status", "c1m1_hotel", "27016")
    types_as("olga", "sudo l4d2ctl stop 3")
    assert state(host, "3") == "inactive"
    types_as("olga", "sudo l4d2ctl status 3", "by hand")
    operator.types(verify, "stopped by hand", "olga", "l4d2ctl start 3")
    types_as("olga", "sudo l4d2ctl start 3")
    wait_for_server(host, 27015)
    types_as("olga", "sudo l4d2ctl rcon 3 say good evening", "Console: good evening")
    types_as("olga", "sudo l4d2ctl logs -n 5 3", "good evening")
    types_as("olga", "sudo l4d2ctl rcon 3 hostname tonight")
    assert name_over_a2s(host, 27015) == "tonight"

    # Nothing else is hers: no shell, no file, no other command, also by way of a pager.
    listed = types_as("olga", "sudo -n -l").splitlines()
    assert [line.strip() for line in listed if "NOPASSWD" in line] == ["(root) NOPASSWD: /usr/local/sbin/l4d2ctl"]
    assert not [line for line in listed if "(ALL" in line]
    pager = "printf '#!/bin/sh\\nid >/tmp/paged\\n' >/tmp/pager && chmod 755 /tmp/pager"
    types_as("olga", f"{pager} && export PAGER=/tmp/pager SYSTEMD_PAGER=/tmp/pager && {ON_A_TERMINAL}", "good evening")
    types_as("olga", "PAGER=/tmp/pager sudo --preserve-env=PAGER l4d2ctl logs 3", "not allowed to set", code=1)
    operator.on(host, "test ! -e /tmp/paged")
    before = main_pid(host, "3")
    types_as("olga", "/usr/local/sbin/l4d2ctl stop 3", "needs root: run sudo l4d2ctl", code=1)
    for what, command in MAY_NOT.items():
        assert "password is required" in types_as("olga", command, code=1), what
    for secret in ("/var/lib/left4me/secrets/3/rcon-given.cfg", "/etc/left4me/servers/3/server.cfg"):
        assert PASSWORD not in types_as("olga", f"cat {secret}", "Permission denied", code=1)
    types_as("olga", "touch /etc/left4me/servers/3/layers /var/lib/left4me/held/3", "Permission denied", code=1)
    types_as("olga", "sudo -n l4d2ctl logs --file=/etc/shadow 3", "unrecognized arguments", code=2)
    assert main_pid(host, "3") == before

    # Who is in no group may not even look; and all of that is as declared.
    types_as("mallory", "sudo -n l4d2ctl status", "password is required", code=1)
    operator.types(verify, never=["pending:", "failed"])
