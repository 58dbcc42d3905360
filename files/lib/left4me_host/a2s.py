"""Query servers for their players: A2S_INFO (https://developer.valvesoftware.com/wiki/Server_queries)."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from dataclasses import dataclass

_WHOLE = b"\xff\xff\xff\xff"
"""The header of an unsplit packet; a split packet begins with fe ff ff ff."""
_REQUEST = _WHOLE + b"TSource Engine Query\0"
_CHALLENGE, _INFO = 0x41, 0x49
_LONGEST = 128
"""Characters of a name: a plugin may answer with thousands."""
_CHALLENGES = 3
"""Challenges to answer per server: the engine sends a second one if the first has expired."""


@dataclass(frozen=True)
class Info:
    """A server's answer; `players` excludes bots.

    The engine counts SourceTV as a bot. If a server counts SourceTV only as a player, `players` is one too high. The
    answer does not show that, and a server with players must not look empty.
    """

    name: str
    map: str
    players: int
    slots: int


def _text(data: bytes, at: int) -> tuple[str, int]:
    end = data.index(b"\0", at)
    return data[at:end].decode("utf-8", "replace"), end + 1


def parse(data: bytes) -> Info:
    """Parse an A2S_INFO answer, header included. Raises ValueError for other data."""
    if not data.startswith(_WHOLE + bytes([_INFO])):
        raise ValueError("not an answer to A2S_INFO")
    name, at = _text(data, 6)
    map_name, at = _text(data, at)
    _folder, at = _text(data, at)
    _game, at = _text(data, at)
    if len(data) < at + 5:
        raise ValueError("the answer is cut short")
    players, slots, bots = data[at + 2], data[at + 3], data[at + 4]
    return Info(name[:_LONGEST], map_name[:_LONGEST], max(0, players - bots), slots)


def ask(addresses: dict[str, tuple[str, int]], limit: float = 1.0) -> dict[str, Info]:
    """Query servers in parallel; return the answers that arrive within `limit` seconds, by id.

    A server that does not answer may still run: it may be loading a map or flooded with packets.
    """
    answers: dict[str, Info] = {}
    sockets: dict[socket.socket, str] = {}
    for name, address in addresses.items():
        asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        asking.connect(address)
        asking.setblocking(False)
        sockets[asking] = name
    waiting = dict(sockets)
    challenges = dict.fromkeys(sockets, 0)
    end = time.monotonic() + limit
    try:
        for asking in list(waiting):
            _send(asking, _REQUEST)
        while waiting and (left := end - time.monotonic()) > 0:
            for asking in select.select(list(waiting), [], [], left)[0]:
                try:
                    data = asking.recv(4096)
                    if data.startswith(_WHOLE + bytes([_CHALLENGE])):
                        challenges[asking] += 1
                        if challenges[asking] > _CHALLENGES:
                            waiting.pop(asking)  # give up on a server that only sends challenges
                        else:
                            _send(asking, _REQUEST + data[5:9])
                    else:
                        info = parse(data)
                        answers[waiting.pop(asking)] = info
                except ConnectionRefusedError:
                    waiting.pop(asking)  # no process listens on that port
                except ValueError:
                    continue
    finally:
        for asking in sockets:
            asking.close()
    return answers


def _send(asking: socket.socket, data: bytes) -> None:
    with contextlib.suppress(ConnectionRefusedError):  # the error of an earlier packet; recv() raises it too
        asking.send(data)
