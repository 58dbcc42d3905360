"""A bad evening: one server hangs, another crashes, is killed, and stays down. Each says so, and what to do."""

from __future__ import annotations

import queue

from tests.integration.ctl import main_pid, rcon, state, unit
from tests.integration.harness import properties, wait_for, wait_for_server
from tests.integration.test_webhook import Listener, outside
from tests.stories.operator import Operator


def hears(discord: Listener, *words: str) -> None:
    """Read the channel until a post has these words, and fail where none comes."""
    heard = [""]
    while not all(word in heard[-1] for word in words):
        try:
            heard.append(discord.told())
        except queue.Empty:
            raise AssertionError(f"nobody told {words}, but: {heard}") from None


def test_what_is_seen_of_a_server_that_crashes_is_killed_or_hangs(operator: Operator) -> None:
    host = operator.host()

    def sub_state() -> str:
        return properties(host, unit("3"), "SubState")["SubState"]

    with Listener(outside(host)) as discord:
        operator.declare(webhook=discord.url)
        operator.types(f"pyinfra {operator.inventory} deploy.py -y")

        # Server 4 hangs. Its process is there, and systemd finds nothing wrong: only who asks it knows.
        wait_for_server(host, 27016)
        hung = main_pid(host, "4")
        rcon(host, 27016, "standin_hang forever")
        operator.on(host, "l4d2ctl status 4", "active", "no answer since")
        with operator.begins(f"pytest tests/deployed --inventory {operator.inventory} --grace 1s") as verifying:
            # While that asks it for ten seconds, server 3 crashes with two people on it.
            wait_for_server(host, 27015)
            operator.plays(host, 2)
            rcon(host, 27015, "say last words", "standin_crash SEGV")
            wait_for("it has crashed", lambda: sub_state() == "auto-restart")
            operator.on(host, "l4d2ctl status 3", "auto-restart")
            hears(discord, f"{host.name}: server 3 crashed (SIGSEGV)", "last words")
            operator.on(host, "l4d2ctl logs -n 10 3", "last words", "server 3 crashed (SIGSEGV)")
            wait_for_server(host, 27015)
            operator.on(host, "l4d2ctl status 3", "active", "0/8")
            verifying.ends("server 4 does not answer A2S_INFO on its port", code=1)

        # A restart gives server 4 its time to quit, 15 seconds, and kills it then.
        with operator.begins(f"ssh -F {host.ssh_config} {host.name} l4d2ctl restart 4") as restarting:
            # Meanwhile server 3 is killed, again and again: nobody waits the five seconds until it is started.
            kill_it = f"systemctl start {unit('3')}; systemctl kill --kill-whom=main --signal=KILL {unit('3')}"

            def has_given_up() -> bool:
                host.run(kill_it, check=False)
                return sub_state() == "failed"

            wait_for("systemd gives up", has_given_up)
            hears(discord, "server 3 was killed (SIGKILL)", "status=9/KILL")
            hears(discord, "server 3 failed five times in five minutes and stays down", "l4d2ctl start 3")
            operator.on(host, "l4d2ctl status 3", "failed")
            operator.on(host, "l4d2ctl logs -n 10 3", "status=9/KILL", "Start request repeated too quickly")
            restarting.ends("server 4: did not quit when asked and was killed; it is stopped and unmounted")
        hears(discord, "server 4 did not stop in time and was killed")
        wait_for_server(host, 27016)
        assert main_pid(host, "4") not in ("0", hung)

        # Server 4 is well again. Server 3 stays down, and verification names it, until somebody starts it.
        verify = f"make verify INVENTORY={operator.inventory}"
        operator.types(verify, "left4me-server@3.service is failed (failed), must be active", "l4d2ctl logs 3", code=2)
        operator.on(host, "l4d2ctl start 3")
        wait_for_server(host, 27015)
        assert [state(host, server) for server in ("3", "4")] == ["active", "active"]
        operator.types(verify, never=["pending:", "failed"])
        assert discord.bodies.empty(), discord.told()
        discord.shutdown()
