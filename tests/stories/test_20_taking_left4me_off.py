"""Taking left4me off a host: nothing stays but one archive with what players made, and a deploy brings that back."""

import re

from tests.integration.ctl import RUNTIME
from tests.integration.harness import overlays, wait_for_server
from tests.stories.operator import Operator

LEFT = "find / /run /dev/shm -xdev '(' -name '*left4me*' -o -name '*l4d2ctl*' ')' -print"
AS_SERVER = "setpriv --reuid left4me-3 --regid left4me --clear-groups"
GAME = f"{RUNTIME}/3/merged/left4dead2"
LAYERS_OWN = "cfg/layer.cfg"


def test_left4me_leaves_a_host_and_what_players_made_stays(operator: Operator) -> None:
    host = operator.host()
    for port in (27015, 27016):
        wait_for_server(host, port)
    # Server 3 has written a file, and removed one that came with its layer.
    operator.on(host, f"cd {GAME} && {AS_SERVER} sh -c 'echo mine >mine.txt && rm {LAYERS_OWN}'")
    remove = f"pyinfra {operator.inventory} remove.py"

    # It is said for one host, while nobody plays, and once more where nobody would be asked.
    operator.types(remove, f"add --limit with one of {host.name}", "nothing has changed", code=2)
    operator.types(f"{remove} --limit {host.name} -y", f"add --data remove={host.name}", code=2)
    operator.plays(host, 2)
    operator.types(f"{remove} --limit {host.name}", "server 3 has 2 players: wait, or l4d2ctl stop 3", code=1)
    operator.plays(host, 0)

    # He sees what goes and what stays, and thinks again.
    shown = ("left4me-3 left4me-4 left4me", "/etc/left4me", "/root/left4me-", "packages stay: ", " libc6:i386 ")
    operator.types(f"{remove} --limit {host.name}", *shown, answers="no\n")
    assert len(overlays(host)) == 2

    said = operator.types(f"{remove} --limit {host.name}", *shown, "left4me is removed from this host", answers="\n")
    archive = re.findall(r"kept: (\S+\.tar\.gz)", said)[0]
    operator.on(
        host, re.findall(r"apt-get autoremove --purge .*", said)[0] + " --simulate", "Purg libc6:i386", "Purg lib32z1"
    )

    # That archive is all that is left.
    assert operator.on(host, LEFT).split() == [archive]
    assert operator.on(host, f"stat -c '%a %U' {archive}") == "600 root\n"
    accounts = "getent passwd | grep left4me; getent group | grep left4me"
    operator.on(host, f"{accounts}; systemctl list-units --all | grep left4me", code=1)
    operator.on(host, "systemctl list-unit-files | grep left4me; findmnt --list --output TARGET | grep left4me", code=1)
    operator.on(host, "nft list tables", never=["left4me"])
    assert operator.on(host, "systemctl is-system-running") == "running\n"
    operator.on(host, "journalctl --quiet --lines=1 --unit='left4me-server@3'", "left4me-server@3")

    # Months later it is a host again, and server 3 goes on where it was.
    operator.types(f"pyinfra {operator.inventory} deploy.py -y")
    wait_for_server(host, 27015)
    operator.on(host, f"cd {GAME} && test -e {LAYERS_OWN} && ! test -e mine.txt")
    operator.on(host, "l4d2ctl stop 3 && l4d2ctl reset 3")
    operator.on(host, f"tar -xzf {archive} -C /var/lib/left4me --xattrs --xattrs-include='*' runtime/3/upper")
    operator.on(host, "l4d2ctl start 3")
    wait_for_server(host, 27015)
    operator.on(host, f"cd {GAME} && cat mine.txt && stat -c %U mine.txt", "mine\nleft4me-3\n")
    operator.on(host, f"ls {GAME}/{LAYERS_OWN}", "No such file", code=2)
    operator.types(f"make verify INVENTORY={operator.inventory}", never=["pending:", "failed"])
