"""Ask servers who plays: A2S_INFO, as Valve's developer wiki has it ("Server queries")."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from dataclasses import dataclass

_WHOLE = b"\xff\xff\xff\xff"
"""What a packet begins with that is not one of several (a split one begins with fe ff ff ff)."""
_REQUEST = _WHOLE + b"TSource Engine Query\0"
_CHALLENGE, _INFO = 0x41, 0x49
_CHALLENGES = 3
"""How many challenges of one server are answered: the engine sends one, and a second where the first has expired."""


@dataclass(frozen=True)
class Info:
    """What a server says of itself; `players` has no bots.

    SourceTV is a bot to the engine. Where a server counts it as a player alone, `players` is one too high: no answer
    tells the one from the other, and a server that somebody plays on must not look empty.
    """

    name: str
    map: str
    players: int
    slots: int


def _text(data: bytes, at: int) -> tuple[str, int]:
    end = data.index(b"\0", at)
    return data[at:end].decode("utf-8", "replace"), end + 1


def parse(data: bytes) -> Info:
    """Read an answer, from its header on. Raises ValueError or IndexError where it is none."""
    if not data.startswith(_WHOLE) or data[4] != _INFO:
        raise ValueError("no answer to A2S_INFO")
    name, at = _text(data, 6)
    map_name, at = _text(data, at)
    _folder, at = _text(data, at)
    _game, at = _text(data, at)
    players, slots, bots = data[at + 2], data[at + 3], data[at + 4]
    return Info(name, map_name, max(0, players - bots), slots)


def ask(addresses: dict[str, tuple[str, int]], limit: float = 1.0) -> dict[str, Info]:
    """Ask all servers at once, by id; who does not answer within `limit` seconds is not in the result.

    A server that does not answer may be loading a map or be under a flood: it is not therefore dead.
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
                    if data.startswith(_WHOLE) and data[4] == _CHALLENGE:
                        challenges[asking] += 1
                        if challenges[asking] > _CHALLENGES:
                            waiting.pop(asking)  # it answers nothing else
                        else:
                            _send(asking, _REQUEST + data[5:9])
                    else:
                        info = parse(data)
                        answers[waiting.pop(asking)] = info
                except ConnectionRefusedError:
                    waiting.pop(asking)  # nobody listens there
                except (ValueError, IndexError):
                    continue  # not an answer
    finally:
        for asking in sockets:
            asking.close()
    return answers


def _send(asking: socket.socket, data: bytes) -> None:
    with contextlib.suppress(ConnectionRefusedError):  # what an earlier packet met; the wait for an answer tells
        asking.send(data)
