"""Patches pyinfra's connections to follow connection.py."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NoReturn
from weakref import WeakSet

import paramiko
import pyinfra.connectors.local
import pyinfra.connectors.ssh
import pyinfra.connectors.ssh_util
import pyinfra.connectors.util
from pyinfra.api.command import StringCommand
from pyinfra.api.exceptions import ConnectError, PyinfraError
from pyinfra.connectors.base import BaseConnector
from pyinfra.connectors.local import LocalConnector
from pyinfra.connectors.ssh import SSHConnector
from pyinfra.connectors.sshuserclient.client import SSHClient
from pyinfra.connectors.util import CommandOutput, OutputLine, make_unix_command

from left4me import answers, connection
from left4me_host.instance import plain


class OneSession(Exception):
    """The host's sshd allows only one session per connection."""

    def __str__(self) -> str:
        return (
            "its sshd allows only one session per connection, but a deploy needs two (one holds the lock): "
            "raise MaxSessions in its sshd_config"
        )


def command_line(connector: BaseConnector, command: StringCommand, arguments: dict[str, Any]) -> tuple[str, str]:
    """Return the shell line that runs `command` on a host, and the beginning of its standard input.

    `arguments` are pyinfra's connector arguments; the sudo arguments are removed from them.
    """
    sudo = {key: arguments.pop(key, None) for key in ("_sudo", "_sudo_password")}
    line, stdin = connection.as_root(make_unix_command(command, **arguments).get_raw_value(), sudo)
    return (line if isinstance(connector, LocalConnector) else connection.for_any_shell(line)), stdin


_answered: WeakSet[BaseConnector] = WeakSet()
"""Connections over which a command has run."""


SHOWN = 200
"""Lines of a failed command's output that are shown, the last ones."""


class _Stdin(list[str]):
    """Standard input: `beginning`, then the lines of `rest`, which an Upload generates as they are sent."""

    def __init__(self, beginning: str, rest: Any) -> None:
        super().__init__(beginning.split("\n")[:-1])
        self._rest = rest if isinstance(rest, list | tuple) else [rest] if rest else []

    def __iter__(self) -> Iterator[str]:
        yield from super().__iter__()
        yield from self._rest


def _run(
    run: Callable[..., tuple[bool, CommandOutput]],
    connector: BaseConnector,
    command: StringCommand,
    print_output: bool = False,
    print_input: bool = False,
    **arguments: Any,
) -> tuple[bool, CommandOutput]:
    how = {key: arguments.pop(key) for key in ("_get_pty", "_timeout", "_success_exit_codes") if key in arguments}
    given = arguments.pop("_stdin", None)
    line, stdin = command_line(connector, command, arguments)
    try:
        done, output = run(
            connector,
            StringCommand(line),
            print_output=print_output,
            print_input=print_input,
            _shell_executable=None,
            _stdin=_Stdin(stdin, given) if stdin else given,
            **how,
        )
    except paramiko.ChannelException as error:
        if connector in _answered:
            raise
        raise OneSession from error
    _answered.add(connector)
    if not done:  # pyinfra prints all of it
        output = CommandOutput([OutputLine(each.buffer_name, each.line[:1000]) for each in output][-SHOWN:])
        if why := connection.sudo_reason(output.stderr):
            output = CommandOutput([OutputLine("stderr", why)])
    return done, output


class TooMuch(OSError):
    """A command printed too much; pyinfra reports this as the failure of its host."""


def _read_output(read: Callable[..., CommandOutput], stdout: Any, stderr: Any, **how: Any) -> CommandOutput:
    """Read a command's output with pyinfra's `read`. Raises TooMuch.

    A host may print without end, and what is no text: pyinfra would keep it all, and show it as it is.
    """
    most = answers.STREAM if how["print_output"] else answers.MOST
    exceeded = False

    def lines(buffer: Any) -> Iterator[str]:
        nonlocal exceeded
        size, line = 0, bytearray()
        # paramiko copies its buffer for each line, so ask for little.
        while piece := buffer.readline(8192):
            line += piece
            size += max(len(piece), 64)  # a short line takes more memory than its text
            if size > most:
                exceeded = True
                # Ends the reader of the other buffer, too.
                getattr(buffer, "channel", buffer).close()
                return
            if line.endswith(b"\n"):
                yield plain(line.rstrip(b"\r\n").decode(errors="replace").replace("\t", " "))
                line.clear()
        if line:
            yield plain(line.decode(errors="replace").replace("\t", " "))

    # As bytes: paramiko would raise an error for what is no UTF-8.
    for buffer in (stdout, stderr):
        if isinstance(buffer, paramiko.file.BufferedFile):
            buffer._flags |= buffer.FLAG_BINARY  # type: ignore[attr-defined]
    output = read(lines(stdout), lines(stderr), **how)
    if exceeded:
        raise TooMuch(f"it printed more than {most >> 20} MB")
    return output


def _without_a_question(_host: Any, _arguments: Any, execute: Callable[[], Any]) -> Any:
    """Run a command once. pyinfra would ask for sudo's password, which then only the deploy would know."""
    return execute()


def _refuse_to_ask(question: str) -> NoReturn:
    """Replace getpass where pyinfra loads a key. Raises ConnectError, which pyinfra reports."""
    key = question.removeprefix("Enter password for private key: ").removesuffix(": ")
    raise ConnectError(
        f"the key {key} has a passphrase: set ssh_key_password, or remove ssh_key and run: ssh-add {key}"
    )


def _load_key(load: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Load a key. Raises ConnectError, which concerns one host, where pyinfra's PyinfraError would end the run."""
    try:
        return load(*args, **kwargs)
    except ConnectError:
        raise
    except PyinfraError as error:
        raise ConnectError(f"{error}: check ssh_key and ssh_key_password") from error


def _quick_start(start: Callable[..., None], transport: paramiko.Transport, *args: Any, **kwargs: Any) -> None:
    # With Nagle's algorithm a command on a local network takes 47 ms, without it 3 ms.
    if isinstance(transport.sock, socket.socket):  # with ProxyJump, sock is a channel
        transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # Seconds for a channel to open; paramiko's default is an hour.
    transport.channel_timeout = 30  # type: ignore[attr-defined]
    start(transport, *args, **kwargs)


def _connect(connect: Callable[..., None], client: SSHClient, *args: Any, **kwargs: Any) -> None:
    try:
        connect(client, *args, **kwargs)
    except paramiko.BadHostKeyException as error:
        reason = connection.changed_key(error.key.fingerprint, str(client._host_keys_filename), error.hostname)
        raise paramiko.SSHException(reason) from error
    except paramiko.SSHException as error:
        if type(error) is not paramiko.SSHException:
            raise  # of a kind that pyinfra explains
        raise paramiko.SSHException(answers.short(str(error))) from error  # may contain what the host sent


def _method(function: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, *args, **kwargs: function(original, self, *args, **kwargs)


def install() -> None:
    for connector in (SSHConnector, LocalConnector):
        connector.run_shell_command = _method(_run, connector.run_shell_command)  # type: ignore[method-assign]
    for module in (pyinfra.connectors.ssh, pyinfra.connectors.local):
        module.execute_command_with_sudo_retry = _without_a_question  # type: ignore[attr-defined]
    read = partial(_read_output, pyinfra.connectors.util.read_output_buffers)
    for module in (pyinfra.connectors.ssh, pyinfra.connectors.util):
        module.read_output_buffers = read  # type: ignore[attr-defined]
    load = pyinfra.connectors.ssh.get_private_key  # type: ignore[attr-defined]
    pyinfra.connectors.ssh.get_private_key = partial(_load_key, load)  # type: ignore[attr-defined]
    pyinfra.connectors.ssh_util.getpass = _refuse_to_ask  # type: ignore[attr-defined, assignment]
    paramiko.Transport.start_client = _method(_quick_start, paramiko.Transport.start_client)  # type: ignore[method-assign]
    SSHClient.connect = _method(_connect, SSHClient.connect)  # type: ignore[method-assign]
