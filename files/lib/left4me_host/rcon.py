"""Run a command on a server's console by RCON (https://developer.valvesoftware.com/wiki/Source_RCON_Protocol)."""

from __future__ import annotations

import os
import pwd
import socket
import struct
import time

from left4me_host import instance, layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO

LIMIT = 5.0
"""Seconds to wait for a connection or for more data."""
_TCP = ("/proc/net/tcp", "/proc/net/tcp6")
_RESPONSE, _EXECUTE, _AUTH_RESPONSE, _AUTH = 0, 2, 2, 3
_MOST = 1 << 20  # bytes of an answer
_LONGEST = 4096 - 10  # bytes of a command: a packet less its id, type and two zeros


def _password(server: str) -> str:
    """Return the password that the server's cfg sets. Raises Failed."""
    try:
        with open(f"{layout.SERVERS}/{server}/server.cfg", encoding="utf-8") as file:
            name = file.read().partition("exec left4me/secret/")[2].partition("\n")[0]
        with open(f"{layout.SECRETS}/{server}/{name}", encoding="utf-8") as file:
            return file.read().partition('"')[2].rpartition('"')[0]
    except (FileNotFoundError, IsADirectoryError):
        raise instance.Failed(f"server {server} has no RCON password: deploy this host") from None


def _listeners(port: int) -> set[int]:
    """Return the uids that listen on a TCP port (proc_pid_net(5))."""
    found = set()
    for path in filter(os.path.exists, _TCP):  # a kernel without IPv6 has no tcp6
        with open(path, encoding="ascii") as file:
            rows = [line.split() for line in file][1:]
        found |= {int(row[7]) for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port}
    return found


def _packet(number: int, kind: int, body: bytes) -> bytes:
    return struct.pack("<iii", len(body) + 10, number, kind) + body + b"\0\0"


def _read(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError("the server closed the connection")
    return data


def _receive(stream: BinaryIO) -> tuple[int, int, bytes]:
    """Return a packet's id, type and body. Raises EOFError if the server closes the connection."""
    size, number, kind = struct.unpack("<iii", _read(stream, 12))
    if not 10 <= size <= 1 << 20:
        raise OSError("the answer is not RCON")
    return number, kind, _read(stream, size - 8).rstrip(b"\0")


def execute(address: tuple[str, int], password: str, command: str) -> str | None:
    """Run a command and return its output; None if the server refuses the password.

    Raises OSError, or EOFError if the server closes the connection before it has checked the password.
    """
    output = b""
    with socket.create_connection(address, timeout=LIMIT) as connection, connection.makefile("rb") as stream:
        connection.sendall(_packet(1, _AUTH, password.encode()))
        kind, end = _RESPONSE, time.monotonic() + 6 * LIMIT
        while kind != _AUTH_RESPONSE:
            number, kind, _body = _receive(stream)
            if time.monotonic() > end:
                raise OSError("the server does not answer the password")
        if number == -1:
            return None
        try:
            # An answer has no end mark, but the server mirrors the second packet after the whole answer to the first.
            # Send both in one sendall(), because a map change delays a later packet.
            text = command.encode("utf-8", "surrogateescape")
            connection.sendall(_packet(1, _EXECUTE, text) + _packet(2, _RESPONSE, b""))
            while (packet := _receive(stream))[0] != 2:
                output += packet[2]
                if len(output) > _MOST or time.monotonic() > end:
                    raise OSError("the answer does not end")
        except (EOFError, ConnectionError):
            pass  # the command ended the game, as `quit` does
    return output.decode("utf-8", "replace")


def rcon(server: str, command: str) -> str:
    """Run a command on a declared server's console and return its output. Raises Failed."""
    if len(command.encode("utf-8", "surrogateescape")) > _LONGEST:
        raise instance.Failed(f"server {server}: the command is longer than {_LONGEST} bytes")
    is_running = instance.properties([server], "MainPID")[server]["MainPID"] != "0"
    # A server that an older left4me started has no record.
    address = instance.address_of(instance.started_with(server) or instance.environment(server))
    if not is_running or address is None:
        raise instance.Failed(f"server {server} is not running: l4d2ctl start {server}")
    password = _password(server)
    # Send the password only to the server's own user: another process may have its port.
    if (others := _listeners(address[1])) != {pwd.getpwnam(f"left4me-{server}").pw_uid}:
        who = f"another user (uid {', '.join(map(str, others))}) listens" if others else "no process listens"
        raise instance.Failed(f"server {server}: {who} on port {address[1]}; see l4d2ctl logs {server}")
    try:
        output = execute(address, password, command)
    except TimeoutError:
        why = f"server {server} does not answer within {LIMIT:.0f} s; see l4d2ctl logs {server}"
        raise instance.Failed(why) from None
    except (OSError, EOFError) as error:
        where = f"{address[0]}:{address[1]}"
        raise instance.Failed(f"server {server}: no RCON at {where}: {error}; see l4d2ctl status {server}") from None
    if output is None:
        why = "a new password takes effect at the next map change or restart"
        raise instance.Failed(f"server {server} refuses its RCON password: {why}")
    return output
