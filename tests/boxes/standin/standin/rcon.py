"""Source RCON over TCP (https://developer.valvesoftware.com/wiki/Source_RCON_Protocol)."""

import struct
from collections.abc import Callable

RESPONSE, EXECUTE, AUTH_RESPONSE, AUTH = 0, 2, 2, 3
BODY = 4096 - 10
"""Bytes of a body, at most: a packet of 4096 less its id, its type and two zero bytes."""


class ProtocolError(Exception):
    """What a client sent is not RCON; its connection is closed."""


def packet(number: int, kind: int, body: bytes) -> bytes:
    """Return one packet."""
    return struct.pack("<iii", len(body) + 10, number, kind) + body + b"\0\0"


class Connection:
    """What one client has said so far, and whether it may say more."""

    def __init__(self, password: Callable[[], str], execute: Callable[[str], str]) -> None:
        """Take what tells the password of the moment, and what executes a command."""
        self._password = password
        self._execute = execute
        self._received = b""
        self._authenticated = False

    def feed(self, data: bytes) -> list[bytes]:
        """Return the packets that answer what has come in so far. Raises ProtocolError."""
        self._received += data
        answers: list[bytes] = []
        while len(self._received) >= 4:
            (size,) = struct.unpack_from("<i", self._received)
            if not 10 <= size <= 4096:
                raise ProtocolError(f"a packet of {size} bytes")
            if len(self._received) < 4 + size:
                break
            number, kind = struct.unpack_from("<ii", self._received, 4)
            body = self._received[12 : 4 + size].split(b"\0", 1)[0]
            self._received = self._received[4 + size :]
            answers += self._answer(number, kind, body)
        return answers

    def _answer(self, number: int, kind: int, body: bytes) -> list[bytes]:
        if kind == AUTH:
            password = self._password()
            self._authenticated = password != "" and body == password.encode()
            granted = number if self._authenticated else -1
            return [packet(number, RESPONSE, b""), packet(granted, AUTH_RESPONSE, b"")]
        if not self._authenticated:
            return [packet(-1, AUTH_RESPONSE, b"")]
        if kind == EXECUTE:
            said = self._execute(body.decode(errors="replace")).encode()
            bodies = [said[start : start + BODY] for start in range(0, len(said), BODY)] or [b""]
            return [packet(number, RESPONSE, part) for part in bodies]
        if kind == RESPONSE:
            # The real one mirrors such a packet and sends a second; clients use it to find the end of a long answer.
            return [packet(number, RESPONSE, b""), packet(number, RESPONSE, b"\0\1\0\0")]
        return []
