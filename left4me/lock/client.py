"""Take the deploy's lock on a host over the deploy's own connection, and fence each command of an operation."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Callable, Generator
from contextlib import suppress
from functools import cache, wraps
from typing import IO, Any, ParamSpec

import gevent
from gevent.subprocess import PIPE, Popen
from paramiko import SSHException
from pyinfra import logger
from pyinfra.api.arguments import CONNECTOR_ARGUMENT_KEYS, pop_global_arguments
from pyinfra.api.arguments_typed import PyinfraOperation
from pyinfra.api.command import StringCommand
from pyinfra.api.host import Host as PyinfraHost
from pyinfra.api.operation import operation as pyinfra_operation
from pyinfra.connectors.base import BaseConnector
from pyinfra.connectors.fake import FakeConnector
from pyinfra.connectors.local import LocalConnector
from pyinfra.connectors.ssh import SSHConnector
from pyinfra.connectors.util import extract_control_arguments

from left4me import answers, connection, facts
from left4me.lock import protocol
from left4me.pyinfra_connection import command_line

GIVEN = os.environ.get(protocol.TOKEN)
"""The lock token of the rollout that started this run, else None."""
TOKEN = GIVEN or secrets.token_hex(8)
P = ParamSpec("P")


class NoAnswer(Exception):
    """The host did not answer the lock request; the message is one line with the reason."""


def take(host: PyinfraHost) -> str:
    """Take a host's lock until this process ends; return "" or why the host refused. Raises NoAnswer."""
    if isinstance(host.connector, FakeConnector):
        return ""
    arguments: Any = {
        key: value
        for key, value in pop_global_arguments(host.state, host, {})[0].items()
        if key in CONNECTOR_ARGUMENT_KEYS
    }
    limit = extract_control_arguments(arguments).get("_timeout")
    program = facts.program("holder", protocol.request(TOKEN, given=bool(GIVEN)))
    line, password = command_line(host.connector, program, arguments)
    try:
        with gevent.Timeout(limit, TimeoutError(f"no answer in {limit} s")):
            stdin, stdout, stderr = _start(host, line)
            with suppress(OSError):  # it has ended already; the output has the reason
                stdin.write(password.encode())
                stdin.flush()
            lines, size = [""], 0
            while connection.MARK not in lines[-1]:  # the login shell may print something first
                line = stdout.readline(protocol.MOST).decode(errors="replace")
                if (size := size + len(line)) > protocol.MOST:
                    stdout.close()
                    raise NoAnswer(f"it printed more than {protocol.MOST >> 10} KB before its answer")
                if not line:
                    errors = stderr.read(protocol.MOST).decode(errors="replace")
                    if refusal := connection.sudo_reason(errors):
                        return refusal
                    raise NoAnswer(connection.reason(errors, lines[-1].strip() or "no reason given"))
                lines.append(line)
            answer = answers.short(lines[-1].partition(connection.MARK)[2])
    except (OSError, SSHException) as error:
        raise NoAnswer(answers.short(str(error))) from None
    if answer != protocol.LOCKED:
        return answer
    if GIVEN:
        _end_with_parent()
    # Not `host` itself: it may be pyinfra's proxy, which is another host in another greenlet.
    gevent.spawn(_send_heartbeats, host.connector, host.print_prefix, stdin, stdout)
    return ""


@cache
def _end_with_parent() -> None:
    """Kill this process when its parent ends: the rollout, which holds the locks."""
    gevent.spawn(_watch, os.getppid())


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        gevent.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)


def _start(host: PyinfraHost, command: str) -> tuple[IO[bytes], IO[bytes], IO[bytes]]:
    """Start a command on a host; return stdin, stdout and stderr."""
    connector = host.connector
    if isinstance(connector, LocalConnector):
        process: Any = Popen(command, shell=True, stdin=PIPE, stdout=PIPE, stderr=PIPE)
        return process.stdin, process.stdout, process.stderr
    if not isinstance(connector, SSHConnector):
        raise NoAnswer("this connector is not supported: use SSH or @local")
    channel: Any = connector.client.get_transport().open_session()  # type: ignore[union-attr]
    channel.exec_command(command)
    return channel.makefile_stdin("wb"), channel.makefile("rb"), channel.makefile_stderr("rb")


def _send_heartbeats(connector: BaseConnector, prefix: str, stdin: IO[bytes], stdout: IO[bytes]) -> None:
    with suppress(OSError):  # without the connection, the fence protects the host
        while True:
            gevent.sleep(protocol.HEARTBEAT)
            stdin.write(b"\n")
            stdin.flush()
            if gevent.with_timeout(protocol.SILENCE, stdout.readline, 2, timeout_value=None) is not None:
                continue
            # The kernel of a frozen host keeps the connection open, and a command may have two hours.
            logger.error(f"{prefix}no answer for {protocol.SILENCE} s; closing the connection")
            if isinstance(connector, SSHConnector):
                assert connector.client
                connector.client.close()
            return


def operation(function: Callable[P, Generator[StringCommand, None, None]]) -> PyinfraOperation[P]:
    """Return `function` as a pyinfra operation whose commands fail once another deploy has the lock."""

    @wraps(function)
    def fenced(*args: P.args, **kwargs: P.kwargs) -> Generator[StringCommand, None, None]:
        for command in function(*args, **kwargs):
            command.bits = (protocol.fence(TOKEN), *command.bits)
            yield command

    return pyinfra_operation()(fenced)
