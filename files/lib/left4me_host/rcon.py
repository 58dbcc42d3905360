"""Run a command on a server's console by RCON (https://developer.valvesoftware.com/wiki/Source_RCON_Protocol)."""

from __future__ import annotations

import os
import pwd
import socket
import struct
import time

from left4me_host import instance, layout

LIMIT = 5.0
"""Seconds to wait for a connection or for more data."""
WHOLE = 6 * LIMIT
"""Seconds for a command in all: a server that sends a byte now and then does not hold its caller."""
_TCP = ("/proc/net/tcp", "/proc/net/tcp6")
_RESPONSE, _EXECUTE, _AUTH_RESPONSE, _AUTH = 0, 2, 2, 3
_MOST = 1 << 20  # bytes of an answer, and of a packet
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


class _Connection:
    """A connection to a server, and one deadline for all that is read from it."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket, self._end = connected, time.monotonic() + WHOLE

    def send(self, data: bytes) -> None:
        self._socket.settimeout(LIMIT)
        self._socket.sendall(data)

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            if time.monotonic() > self._end:
                raise OSError(f"the answer does not end within {WHOLE:.0f} s")
            self._socket.settimeout(LIMIT)
            if not (more := self._socket.recv(size - len(data))):
                raise EOFError("the server closed the connection")
            data += more
        return bytes(data)

    def receive(self) -> tuple[int, int, bytes]:
        """Return a packet's id, type and body.

        Raises EOFError if the server closes the connection, OSError if it sends no packet or takes too long.
        """
        size, number, kind = struct.unpack("<iii", self._read(12))
        if not 10 <= size <= _MOST:
            raise OSError("the answer is not RCON")
        return number, kind, self._read(size - 8).rstrip(b"\0")


def execute(address: tuple[str, int], password: str, command: str) -> str | None:
    """Run a command and return its output; None if the server refuses the password.

    Raises OSError, or EOFError if the server closes the connection before it has checked the password.
    """
    output, kind = b"", _RESPONSE
    with socket.create_connection(address, timeout=LIMIT) as connected:
        server = _Connection(connected)
        server.send(_packet(1, _AUTH, password.encode()))
        while kind != _AUTH_RESPONSE:
            number, kind, _body = server.receive()
        if number == -1:
            return None
        try:
            # An answer has no end mark, but the server mirrors the second packet after the whole answer to the first.
            # Send both in one sendall(), because a map change delays a later packet.
            text = command.encode("utf-8", "surrogateescape")
            server.send(_packet(1, _EXECUTE, text) + _packet(2, _RESPONSE, b""))
            while (packet := server.receive())[0] != 2:
                output += packet[2]
                if len(output) > _MOST:
                    raise OSError(f"the answer is longer than {_MOST} bytes")
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
