"""Two operators on one host: each sees what the other does, a lost connection ends nothing, and a restart can wait."""

from __future__ import annotations

import re

from tests.integration.ctl import PASSWORD, main_pid, state
from tests.integration.harness import wait_for, wait_for_server
from tests.stories.operator import Operator


def test_who_changes_what_and_how_it_ends(operator: Operator) -> None:
    host = operator.host()
    ssh = f"ssh -tt -S none -F {host.ssh_config}"
    operator.on(host, "useradd --create-home olga; echo 'olga ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/olga")

    # A reset says its number, and the list says whose it was.
    said = operator.on(host, "su olga -c 'sudo l4d2ctl reset 3'", "in all")
    [number] = re.findall(r"^job (\d+) succeeded in \d+\.\d\d s$", said, re.MULTILINE)
    wait_for_server(host, 27015)
    operator.on(host, "l4d2ctl jobs", f"{number}\t", "\tolga\treset 3\tsucceeded\t")
    operator.on(host, f"l4d2ctl jobs {number}", f"job {number}: reset 3", "by olga", "stop", "reset", "start", "in all")

    # People play on server 3: the restart waits. Ctrl-C ends only the output, and he can look again at any time.
    operator.plays(host, 2)
    playing = main_pid(host, "3")
    follow = "l4d2ctl jobs -f"
    with operator.begins(f"{ssh} {host.name} l4d2ctl restart --when-empty 3") as terminal:
        terminal.sees("server 3 has 2 players")
        terminal.types(chr(3))
        said = terminal.ends("goes on; to follow it again", follow, code=130)
    [waits] = re.findall(r"l4d2ctl: job (\d+) goes on", said)
    with operator.begins(f"{ssh} {host.name} {follow} {waits}") as terminal:
        terminal.sees("server 3 has 2 players")
    assert main_pid(host, "3") == playing
    operator.on(host, "l4d2ctl jobs", "restart --when-empty 3\twaiting")
    operator.on(host, "l4d2ctl restart --when-empty 3", f"job {waits} waits to restart it already", code=1)

    # They leave, and a minute later it is restarted.
    operator.plays(host, 0)
    operator.on(host, f"{follow} {waits}", "server 3 has 0 players", f"job {waits} succeeded in", seconds=120)
    assert main_pid(host, "3") != playing
    wait_for_server(host, 27015)

    # Another one that waits is cancelled by a stop, which names it; the server stays down.
    operator.plays(host, 1)
    with operator.begins(f"{ssh} {host.name} l4d2ctl restart --when-empty 3") as terminal:
        terminal.sees("server 3 has 1 player")
        operator.on(host, "su olga -c 'sudo l4d2ctl stop 3'", "server 3: cancelled job")
        terminal.ends("its restart is cancelled by job", "stop by olga", "was cancelled", code=1)
    assert state(host, "3") == "inactive"
    operator.on(host, "l4d2ctl start 3")
    wait_for_server(host, 27015)

    # The game takes its time to quit, and his connection goes. Olga is told what runs, and her stop waits for it.
    operator.on(host, "l4d2ctl rcon 3 standin_ignore_sigint 1")
    with operator.begins(f"{ssh} {host.name} l4d2ctl restart 3"):
        wait_for("it is stopping", lambda: state(host, "3") == "deactivating")
    said = operator.on(host, "l4d2ctl reset 3", "(restart by root, since", "is running", follow, code=3)
    [lost] = re.findall(r"job (\d+) \(", said)
    operator.on(host, "su olga -c 'sudo l4d2ctl stop 3'", f"server 3: waiting for job {lost} (restart by root, since")
    operator.on(host, f"{follow} {lost}", f"job {lost} succeeded in")
    assert state(host, "3") == "inactive"
    operator.on(host, "l4d2ctl show 3", "stopped  by hand by olga", never=[PASSWORD])
    operator.types(f"make verify INVENTORY={operator.inventory}", "stopped by hand", never=["failed"])
