"""The deploy's lock on a host: held over the deploy's own connection, and asked for by each command that it runs."""

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

from left4me import connection, facts
from left4me.lock import protocol
from left4me.pyinfra_connection import command_line

GIVEN = os.environ.get(protocol.TOKEN)
"""The token of whoever started this run and holds the locks of its hosts."""
TOKEN = GIVEN or secrets.token_hex(8)
P = ParamSpec("P")


class _Silent(Exception):
    """A host that does not answer a sign of life."""


class NoAnswer(Exception):
    """Why a host did not say whether its lock is taken, in one line."""


def take(host: PyinfraHost) -> str:
    """Take a host's lock until this process ends; return why not, or nothing. Raises NoAnswer."""
    if isinstance(host.connector, FakeConnector):
        return ""
    arguments: Any = {
        key: value
        for key, value in pop_global_arguments(host.state, host, {})[0].items()
        if key in CONNECTOR_ARGUMENT_KEYS
    }
    limit = extract_control_arguments(arguments).get("_timeout")
    program = facts.program("holder", protocol.request(TOKEN, given=bool(GIVEN)))
    line, before = command_line(host.connector, program, arguments)
    try:
        with gevent.Timeout(limit, TimeoutError(f"no answer in {limit} s")):
            stdin, stdout, stderr = _start(host, line)
            stdin.write(before.encode())
            stdin.flush()
            said = [""]
            while not said[-1].startswith(connection.MARK):  # its shell may print something when it starts
                if not (line := stdout.readline().decode(errors="replace")):
                    why = stderr.read().decode(errors="replace")
                    if sudo := connection.sudo_reason(why):
                        return sudo
                    raise NoAnswer(connection.reason(why, said[-1].strip() or "it says nothing"))
                said.append(line)
            answer = said[-1].removeprefix(connection.MARK).strip()
    except (OSError, SSHException) as error:
        raise NoAnswer(str(error)) from None
    if answer != protocol.LOCKED:
        return answer
    if GIVEN:
        _end_with_who_gave_it()
    # Not the host itself, which preflight has by way of its greenlet's context.
    gevent.spawn(_beat, host.connector, host.print_prefix, stdin, stdout)
    return ""


@cache
def _end_with_who_gave_it() -> None:
    gevent.spawn(_watch, os.getppid())


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        gevent.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)


def _start(host: PyinfraHost, command: str) -> tuple[IO[bytes], IO[bytes], IO[bytes]]:
    """Start a command on a host; return its standard streams."""
    connector = host.connector
    if isinstance(connector, LocalConnector):
        process: Any = Popen(command, shell=True, stdin=PIPE, stdout=PIPE, stderr=PIPE)
        return process.stdin, process.stdout, process.stderr
    if not isinstance(connector, SSHConnector):
        raise NoAnswer("neither an SSH connection nor @local")
    channel: Any = connector.client.get_transport().open_session()  # type: ignore[union-attr]
    channel.exec_command(command)
    return channel.makefile_stdin("wb"), channel.makefile("rb"), channel.makefile_stderr("rb")


def _beat(connector: BaseConnector, prefix: str, stdin: IO[bytes], stdout: IO[bytes]) -> None:
    with suppress(OSError):  # the connection is gone: the fence is what counts then
        while True:
            gevent.sleep(protocol.HEARTBEAT)
            stdin.write(b"\n")
            stdin.flush()
            with suppress(_Silent), gevent.Timeout(protocol.SILENCE, _Silent):
                stdout.readline()
                continue
            # Nothing else ends a command of two hours on a host that is frozen: its kernel keeps the connection.
            logger.error(f"{prefix}it does not answer for {protocol.SILENCE} s: its connection is given up")
            if isinstance(connector, SSHConnector):
                assert connector.client
                connector.client.close()
            return


def operation(function: Callable[P, Generator[StringCommand, None, None]]) -> PyinfraOperation[P]:
    """Make pyinfra's operation of a function, whose commands run only while the lock is not another's."""

    @wraps(function)
    def fenced(*args: P.args, **kwargs: P.kwargs) -> Generator[StringCommand, None, None]:
        for command in function(*args, **kwargs):
            command.bits = (protocol.fence(TOKEN), *command.bits)
            yield command

    return pyinfra_operation()(fenced)
