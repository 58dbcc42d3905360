"""Start, stop and restart servers through systemd, and explain failures."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from left4me_host import instance, jobs, layout

_SIGSEGV, _BY_SIGNAL = "11", ("2", "3")  # CLD_KILLED and CLD_DUMPED of waitid(2)
_PORT = "LEFT4ME_PORT"
_AFTER = ("ActiveState", "Result", "ExecMainCode", "ExecMainStatus")


def reset_failed(servers: list[str]) -> instance.Systemctl:
    """Reset the start counters of servers: a unit at its start limit would not start."""
    return instance.Systemctl("reset-failed", *map(layout.unit, servers))


def _port_holder(server: str, free: Iterable[str] = ()) -> str:
    """Return another server, not in `free`, that runs on the declared port of `server`; empty if the port is free."""
    port = instance.environment(server).get(_PORT)
    if port is None:
        return ""  # systemd reports the missing server.env
    others = [each for each in instance.instances() if each != server and each not in free]
    same_port = [each for each in others if instance.started_with(each).get(_PORT) == port]
    states = instance.properties(same_port, "ActiveState")
    # After a failed unmount a server still has its record, but its game has ended.
    return next((each for each in same_port if states[each]["ActiveState"] not in ("inactive", "failed")), "")


def require_ports(servers: list[str], command: str) -> None:
    """Raise Failed if `command` (start, restart or reset) would start a server whose port is still taken.

    The game would end at once, again and again, until the other server releases the port.
    """
    lines = []
    for server in servers:
        if command == "start" and instance.started_with(server):
            continue  # it runs
        if other := _port_holder(server, servers if command == "restart" else ()):
            what = f"server {server}: port {instance.environment(server)[_PORT]} is still held by server {other}"
            lines.append(f"{what}; {_commands_to_free_port(servers, server, other, command)}")
    if lines:
        raise instance.Failed("\n".join(lines))


def _commands_to_free_port(servers: list[str], server: str, other: str, command: str) -> str:
    if instance.environment(other).get(_PORT) == instance.environment(server)[_PORT]:  # `other` is no longer declared
        return f"l4d2ctl stop {other} && l4d2ctl {command} {server}"
    if command == "start":
        return f"l4d2ctl restart {other} && l4d2ctl start {server}"
    together = list(servers if command == "restart" else [server])
    while other:
        together.append(other)
        other = _port_holder(other, together)
    return f"restart them together: l4d2ctl restart {' '.join(together)}"


def start(servers: list[str]) -> None:
    """Start servers, also those stopped by hand. Raises Failed with the last log lines of those that did not start."""
    require_ports(servers, "start")
    _start(servers)


def _start(servers: list[str], failures: Iterable[str] = ()) -> None:
    """Start servers. Raises Failed with `failures`, which are those of other servers, and the new ones."""
    unfinished = list(filter(instance.reset_unfinished, servers))
    reset = [f"server {server}: its reset did not finish; run l4d2ctl reset {server}" for server in unfinished]
    lines = [*failures, *reset]
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


def start_again(servers: list[str], resetting: instance.Systemctl | None = None) -> None:
    """Start servers that are not stopped by hand; `resetting` is the result of an earlier reset_failed().

    Raises Failed with the last log lines of those that did not start.
    """
    if not servers:
        return
    (resetting or reset_failed(servers)).wait()
    failed, output = instance.Systemctl("start", *map(layout.unit, servers)).wait()
    if failed:
        _explain_start(servers, output)


def _explain_start(servers: list[str], output: str) -> None:
    states = instance.properties(servers, "ActiveState", "Result")
    # This includes servers that wait for systemd's next attempt.
    down = [server for server in servers if states[server]["ActiveState"] != "active"]
    if not down:
        raise instance.Failed(output.splitlines()[0] if output else "systemctl start failed")
    lines = []
    for server in down:
        lines.append(f"server {server} did not start ({states[server]['Result']}):")
        lines += instance.journal(layout.unit(server), 10)
    raise instance.Failed("\n".join(lines))


def stop(servers: list[str], held: bool = True, again: str = "stop") -> None:
    """Stop servers; with `held` they stay down until `l4d2ctl start`.

    Raises Failed, which names the holders of an overlay and the command to repeat (`again`). A server that was killed
    or crashed while quitting counts as stopped; a line on stderr reports it.
    """
    failures = hold(servers) if held else []
    failures += _stop(servers, again).values()
    if failures:
        raise instance.Failed("\n".join(failures))


def hold(servers: list[str]) -> list[str]:
    """Keep declared servers down over deploys and reboots; return why some of them will not stay down."""
    failures = []
    for server in set(servers).intersection(instance.declared()):
        try:
            instance.hold(server)
        except OSError as error:
            failures.append(f"server {server} is stopped, but the next deploy or reboot will start it: {error}")
    return failures


def _stop(servers: list[str], again: str) -> dict[str, str]:
    """Stop servers and return the failures by server."""
    ran = set(filter(instance.mounted, servers))
    instance.Systemctl("stop", *map(layout.unit, servers)).wait()
    states = instance.properties(servers, *_AFTER)
    lines = {server: _after_stop(server, states[server], server in ran, again) for server in servers}
    return {server: line for server, line in lines.items() if line}


def _after_stop(server: str, state: dict[str, str], ran: bool, again: str) -> str:
    """Return why a server is not stopped and unmounted; empty if it is."""
    if state["ActiveState"] not in ("inactive", "failed"):
        return f"server {server}: systemd still reports {state['ActiveState']}; see l4d2ctl logs {server}"
    if instance.mounted(server) or instance.noted(server):
        from left4me_host import holders  # here: few stops need it

        found, why = holders.holders(server), ""
        if not found:
            # The holder has ended, and systemd runs ExecStopPost= only once.
            _code, why = instance.Command(*layout.OVERLAY_HELPER, "umount", server).wait()
        if instance.mounted(server) or instance.noted(server):
            by = "; ".join(map(str, found or holders.holders(server))) or f"a process that /proc does not show ({why})"
            return (
                f"server {server} is stopped but its overlay is held by {by}. "
                f"End the holder, then: l4d2ctl {again} {server}"
            )
    if state["ActiveState"] == "failed":
        how = "did not quit when asked and was killed"
        if state["Result"] != "timeout":
            how = f"had already ended with {state['Result']} (status {state['ExecMainStatus']})"
        print(f"server {server}: {how}; it is stopped and unmounted", file=sys.stderr)
        reset_failed([server]).wait()
    elif ran and state["ExecMainStatus"] == _SIGSEGV and state["ExecMainCode"] in _BY_SIGNAL:
        print(f"server {server}: crashed (SIGSEGV) while quitting; it is stopped and unmounted", file=sys.stderr)
    return ""


def restart(servers: list[str], unless_stopped: bool = False) -> None:
    """Stop servers, and start those whose stop succeeded. Raises Failed.

    `unless_stopped` skips servers that are not running, and does not start those that are stopped by hand meanwhile.
    """
    if unless_stopped:
        states = instance.properties(servers, "ActiveState")
        down = [each for each in servers if states[each]["ActiveState"] in ("inactive", "failed")]
        for server in down:
            print(f"server {server} is not running; skipped", file=sys.stderr)
        servers = [server for server in servers if server not in down]
    require_ports(servers, "restart")
    with jobs.timed("stop"):
        failed = _stop(servers, "restart")
    stopped = [server for server in servers if server not in failed]
    with jobs.timed("start"):
        if not unless_stopped:
            _start(stopped, failed.values())
            return
        start_again([server for server in stopped if not instance.is_held(server)])
    if failed:
        raise instance.Failed("\n".join(failed.values()))
