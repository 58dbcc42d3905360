"""rcon: one command to a server's console (https://developer.valvesoftware.com/wiki/Source_RCON_Protocol)."""

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
"""Seconds without a word after which a server is not waited for any more."""
_TCP = ("/proc/net/tcp", "/proc/net/tcp6")
_RESPONSE, _EXECUTE, _JUDGED, _PASSWORD = 0, 2, 2, 3
_MOST = 1 << 20  # bytes of an answer
_LONGEST = 4096 - 10  # bytes of a command: a packet less its id, its type and two zeros


def _password(server: str) -> str:
    """Return what the server's own cfg gives the game."""
    try:
        with open(f"{layout.SERVERS}/{server}/server.cfg", encoding="utf-8") as file:
            name = file.read().partition("exec left4me/secret/")[2].partition("\n")[0]
        with open(f"{layout.SECRETS}/{server}/{name}", encoding="utf-8") as file:
            return file.read().partition('"')[2].rpartition('"')[0]
    except (FileNotFoundError, IsADirectoryError):
        raise instance.Failed(f"server {server} has no RCON password: deploy this host") from None


def _listeners(port: int) -> set[int]:
    """Return the uids of those who listen on a TCP port (proc_pid_net(5))."""
    found = set()
    # A kernel without IPv6 has one of them.
    for path in filter(os.path.exists, _TCP):
        with open(path, encoding="ascii") as file:
            rows = [line.split() for line in file][1:]
        found |= {int(row[7]) for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port}
    return found


def _packet(number: int, kind: int, body: bytes) -> bytes:
    return struct.pack("<iii", len(body) + 10, number, kind) + body + b"\0\0"


def _read(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError("it closed the connection")
    return data


def _receive(stream: BinaryIO) -> tuple[int, int, bytes]:
    """Return a packet's number, type and body. Raises EOFError where the server has closed the connection."""
    size, number, kind = struct.unpack("<iii", _read(stream, 12))
    if not 10 <= size <= 1 << 20:
        raise OSError("what it answers is no RCON")
    return number, kind, _read(stream, size - 8).rstrip(b"\0")


def execute(address: tuple[str, int], password: str, command: str) -> str | None:
    """Return what a server says to a command; None where it refuses the password.

    Raises OSError, or EOFError where the server ends the connection before it has judged the password.
    """
    said = b""
    with socket.create_connection(address, timeout=LIMIT) as connection, connection.makefile("rb") as stream:
        connection.sendall(_packet(1, _PASSWORD, password.encode()))
        kind, end = _RESPONSE, time.monotonic() + 6 * LIMIT
        while kind != _JUDGED:
            number, kind, _body = _receive(stream)
            if time.monotonic() > end:
                raise OSError("it never judges the password")
        if number == -1:
            return None
        try:
            # An answer does not tell its end: the second packet is sent back, after all of the answer to the first.
            # Both in one go, for a map change is waited for with what comes later.
            text = command.encode("utf-8", "surrogateescape")
            connection.sendall(_packet(1, _EXECUTE, text) + _packet(2, _RESPONSE, b""))
            while (packet := _receive(stream))[0] != 2:
                said += packet[2]
                if len(said) > _MOST or time.monotonic() > end:
                    raise OSError("its answer does not end")
        except (EOFError, ConnectionError):
            pass  # `quit`, and what else ends the game
    return said.decode("utf-8", "replace")


def rcon(server: str, command: str) -> str:
    """Execute a command on a declared server's console and return what it says. Raises Failed."""
    if len(command.encode("utf-8", "surrogateescape")) > _LONGEST:
        raise instance.Failed(f"server {server}: a command has at most {_LONGEST} bytes")
    runs = instance.properties([server], "MainPID")[server]["MainPID"] != "0"
    # Without a record it runs since before left4me kept one; whose port it is, is looked up below.
    address = instance.address_of(instance.started_with(server) or instance.environment(server))
    if not runs or address is None:
        raise instance.Failed(f"server {server} does not run: l4d2ctl start {server}")
    password = _password(server)
    # Somebody else who has the port would be told the password.
    if (others := _listeners(address[1])) != {pwd.getpwnam(f"left4me-{server}").pw_uid}:
        who = f"uid {others} listens" if others else "nobody listens"
        raise instance.Failed(f"server {server}: {who} on port {address[1]}; see l4d2ctl logs {server}")
    try:
        said = execute(address, password, command)
    except TimeoutError:
        raise instance.Failed(
            f"server {server} does not answer within {LIMIT:.0f} s; see l4d2ctl logs {server}"
        ) from None
    except (OSError, EOFError) as error:
        where = f"{address[0]}:{address[1]}"
        raise instance.Failed(f"server {server}: no RCON at {where}: {error}; see l4d2ctl status {server}") from None
    if said is None:
        raise instance.Failed(f"server {server} refuses its RCON password: a new one holds at the next map or restart")
    return said
