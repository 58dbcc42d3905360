"""start, stop, restart: through systemd, and with a word on what it was that stood in the way."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

from left4me_host import instance, layout

_SIGSEGV, _BY_SIGNAL = "11", ("2", "3")  # CLD_KILLED and CLD_DUMPED of waitid(2)
_PORT = "LEFT4ME_PORT"
_AFTER = ("ActiveState", "Result", "ExecMainCode", "ExecMainStatus")


def forgetting(servers: list[str]) -> instance.Systemctl:
    """Have systemd forget how often servers were started: one at its start limit would not start."""
    return instance.Systemctl("reset-failed", *map(layout.unit, servers))


def _port_holder(server: str, free: Iterable[str] = ()) -> str:
    """Return which other server, none of `free`, runs on the port that a start would give a server; or nothing."""
    port = instance.environment(server).get(_PORT)
    if port is None:
        return ""  # systemd says what is missing
    others = [each for each in instance.instances() if each != server and each not in free]
    held = [each for each in others if instance.started_with(each).get(_PORT) == port]
    states = instance.properties(held, "ActiveState")
    # What could not be unmounted is there still, and its game is not.
    return "".join([each for each in held if states[each]["ActiveState"] not in ("inactive", "failed")][:1])


def require_ports(servers: list[str], command: str) -> None:
    """Raise Failed where `command`, which is start, restart or reset, would start a server that finds its port taken.

    Such a game ends at once, again and again: a changed port is in use until the server that has it is restarted too.
    """
    lines = []
    for server in servers:
        if command == "start" and instance.started_with(server):
            continue  # it runs
        other = _port_holder(server, servers if command == "restart" else ())
        if other:
            what = f"server {server}: port {instance.environment(server)[_PORT]}, which it is to have, is still held by"
            lines.append(f"{what} server {other}; {_way(servers, server, other, command)}")
    if lines:
        raise instance.Failed("\n".join(lines))


def _way(servers: list[str], server: str, other: str, command: str) -> str:
    """Return the commands after which a server has its port, which another one holds."""
    if instance.environment(other).get(_PORT) == instance.environment(server)[_PORT]:  # it is not declared any more
        return f"l4d2ctl stop {other} && l4d2ctl {command} {server}"
    if command == "start":
        return f"l4d2ctl restart {other} && l4d2ctl start {server}"
    together = list(servers if command == "restart" else [server])
    while other:
        together.append(other)
        other = _port_holder(other, together)
    return f"together: l4d2ctl restart {' '.join(together)}"


def start(servers: list[str]) -> None:
    """Start servers and end what an operator's stop holds. Raises Failed with the last lines of who did not start."""
    require_ports(servers, "start")
    _start(servers)


def _start(servers: list[str], failures: Iterable[str] = ()) -> None:
    """Start servers; raise Failed after `failures` of others that could not even be tried."""
    unfinished = list(filter(instance.reset_unfinished, servers))
    lines = [
        f"server {server}: a reset of it did not finish; l4d2ctl reset {server} does that" for server in unfinished
    ]
    lines = [*failures, *lines]
    others = [server for server in servers if server not in unfinished]
    for server in others:
        instance.release(server)
        instance.forget_finished(server)
    try:
        start_again(others)
    except instance.Failed as failed:
        lines.append(str(failed))
    if lines:
        raise instance.Failed("\n".join(lines))


def start_again(
    servers: list[str],
    forgotten: instance.Systemctl | None = None,
    beside: Callable[[], None] = lambda: None,
) -> None:
    """Start servers that no stop holds; `forgotten` is a forgetting() that is under way, `beside` done meanwhile.

    Raises Failed with the last lines of who did not start.
    """
    if not servers:
        return
    (forgotten or forgetting(servers)).wait()
    starting = instance.Systemctl("start", *map(layout.unit, servers))
    try:
        beside()
    finally:
        failed, said = starting.wait()
    if failed:
        _explain_start(servers, said)


def _explain_start(servers: list[str], said: str) -> None:
    states = instance.properties(servers, "ActiveState", "Result")
    # One that systemd starts again by itself in a while is down as well.
    down = [server for server in servers if states[server]["ActiveState"] != "active"]
    if not down:
        raise instance.Failed(said.splitlines()[0] if said else "systemctl start failed")
    lines = []
    for server in down:
        lines.append(f"server {server} did not start ({states[server]['Result']}):")
        lines += instance.journal(layout.unit(server), 10)
    raise instance.Failed("\n".join(lines))


def stop(servers: list[str], held: bool = True, beside: Callable[[], None] = lambda: None, again: str = "stop") -> None:
    """Stop servers, for good until `start` where `held`; `beside` is done meanwhile, `again` is what to do once more.

    Raises Failed that names who holds an overlay. A server that had to be killed, or crashed while it quit, is stopped
    all the same: that is said, and no failure.
    """
    failures = []
    for server in set(servers).intersection(instance.declared()) if held else ():
        try:
            instance.hold(server)
        except OSError as error:
            failures.append(f"server {server} is stopped, and the next deploy or reboot will start it: {error}")
    failures += _stop(servers, again, beside).values()
    if failures:
        raise instance.Failed("\n".join(failures))


def _stop(servers: list[str], again: str, beside: Callable[[], None] = lambda: None) -> dict[str, str]:
    """Stop servers and return, by server, what stands in the way of those that could not be stopped."""
    ran = set(filter(instance.mounted, servers))
    stopping = instance.Systemctl("stop", *map(layout.unit, servers))
    try:
        beside()
    finally:
        stopping.wait()
    states = instance.properties(servers, *_AFTER)
    lines = {server: _after_stop(server, states[server], server in ran, again) for server in servers}
    return {server: line for server, line in lines.items() if line}


def _after_stop(server: str, state: dict[str, str], ran: bool, again: str) -> str:
    if state["ActiveState"] not in ("inactive", "failed"):
        return f"server {server}: systemd still has it as {state['ActiveState']}; see l4d2ctl logs {server}"
    if instance.mounted(server) or instance.noted(server):
        from left4me_host import holders  # here: hardly any stop comes to it

        found, why = holders.holders(server), ""
        if not found:
            import subprocess

            # Who was in the way has gone, and no unit runs its ExecStopPost a second time.
            done = subprocess.run(
                [*layout.OVERLAY_HELPER, "umount", server], capture_output=True, text=True, check=False
            )
            why = done.stderr.strip()
        if instance.mounted(server) or instance.noted(server):
            by = "; ".join(map(str, found or holders.holders(server))) or f"nobody whom /proc shows ({why})"
            do = f"End that, then: l4d2ctl {again} {server}"
            return f"server {server} is stopped and its overlay is held by {by}. {do}"
    if state["ActiveState"] == "failed":
        how = "did not quit when asked and was killed"
        if state["Result"] != "timeout":
            how = f"had ended before with {state['Result']} (status {state['ExecMainStatus']})"
        print(f"server {server}: {how}; it is stopped and unmounted", file=sys.stderr)
        forgetting([server]).wait()
    elif ran and state["ExecMainStatus"] == _SIGSEGV and state["ExecMainCode"] in _BY_SIGNAL:
        print(f"server {server}: crashed by SIGSEGV while it quit; it is stopped and unmounted", file=sys.stderr)
    return ""


def restart(servers: list[str], unless_stopped: bool = False) -> None:
    """Stop servers and start those that stopped. Raises Failed.

    With `unless_stopped` those that do not run are left alone, and an operator's stop holds, also one that comes in
    between.
    """
    if unless_stopped:
        states = instance.properties(servers, "ActiveState")
        down = [each for each in servers if states[each]["ActiveState"] in ("inactive", "failed")]
        for server in down:
            print(f"server {server} does not run: left alone", file=sys.stderr)
        servers = [server for server in servers if server not in down]
    require_ports(servers, "restart")
    failed = _stop(servers, "restart")
    stopped = [server for server in servers if server not in failed]
    if not unless_stopped:
        _start(stopped, failed.values())
        return
    start_again([server for server in stopped if not instance.is_held(server)])
    if failed:
        raise instance.Failed("\n".join(failed.values()))
