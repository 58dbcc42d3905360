"""Query servers: A2S_INFO and A2S_PLAYER (https://developer.valvesoftware.com/wiki/Server_queries)."""

from __future__ import annotations

import contextlib
import math
import select
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

_WHOLE = b"\xff\xff\xff\xff"
"""The header of an unsplit packet; a split packet begins with fe ff ff ff."""
_REQUEST = _WHOLE + b"TSource Engine Query\0"
_CHALLENGE, _INFO, _PLAYER = 0x41, 0x49, 0x44
_LONGEST = 128
"""Characters of a name: a plugin may answer with thousands."""
_CHALLENGES = 3
"""Challenges to answer per server: the engine sends a second one if the first has expired."""
T = TypeVar("T")


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


@dataclass(frozen=True)
class Player:
    """Somebody on a server, or a bot, for `seconds`. The name of one who still connects is empty."""

    name: str
    seconds: float
    score: int


def parse_players(data: bytes) -> list[Player]:
    """Parse an A2S_PLAYER answer, header included. Raises ValueError for other data."""
    if not data.startswith(_WHOLE + bytes([_PLAYER])) or len(data) < 6:
        raise ValueError("not an answer to A2S_PLAYER")
    found, at = [], 6
    for _ in range(data[5]):
        if at == len(data):
            break  # the engine counts players that it does not list
        name, at = _text(data, at + 1)
        if len(data) < at + 8:
            raise ValueError("the answer is cut short")
        score, seconds = struct.unpack_from("<if", data, at)
        found.append(Player(name[:_LONGEST], round(seconds, 1) if math.isfinite(seconds) else 0.0, score))
        at += 8
    return found


def ask(addresses: dict[str, tuple[str, int]], limit: float = 1.0) -> dict[str, Info]:
    """Query servers in parallel; return the answers that arrive within `limit` seconds, by id.

    A server that does not answer may still run: it may be loading a map or flooded with packets.
    """
    return _exchange(addresses, limit, _REQUEST, b"", parse)


def ask_players(addresses: dict[str, tuple[str, int]], limit: float = 1.0) -> dict[str, list[Player]]:
    """Query servers for the names of their players, as ask() does for their number."""
    return _exchange(addresses, limit, _WHOLE + b"U", _WHOLE, parse_players)


def _exchange(
    addresses: dict[str, tuple[str, int]], limit: float, request: bytes, first: bytes, parsed: Callable[[bytes], T]
) -> dict[str, T]:
    """Send `request` with a challenge, at the beginning `first`, and return the answers that `parsed` accepts."""
    answers: dict[str, T] = {}
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
            _send(asking, request + first)
        while waiting and (left := end - time.monotonic()) > 0:
            for asking in select.select(list(waiting), [], [], left)[0]:
                try:
                    data = asking.recv(4096)
                    if data.startswith(_WHOLE + bytes([_CHALLENGE])):
                        challenges[asking] += 1
                        if challenges[asking] > _CHALLENGES:
                            waiting.pop(asking)  # give up on a server that only sends challenges
                        else:
                            _send(asking, request + data[5:9])
                    else:
                        answer = parsed(data)
                        answers[waiting.pop(asking)] = answer
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
