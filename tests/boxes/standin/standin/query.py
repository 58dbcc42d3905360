"""A2S, the UDP queries of Source servers, as bytes (https://developer.valvesoftware.com/wiki/Server_queries)."""

import os
import struct

SINGLE = b"\xff\xff\xff\xff"
SPLIT = b"\xfe\xff\xff\xff"
PACKET = 1400
"""Bytes of a datagram, at most; a longer answer is split."""

INFO, PLAYER, RULES = 0x54, 0x55, 0x56
GET_CHALLENGE, CONNECT = 0x71, 0x6B
"""q and k: what a player sends before he plays. They are in no public document; the Source SDK names them."""
ACCEPTED = SINGLE + b"B"
INFO_REQUEST = SINGLE + b"TSource Engine Query\0"
PROTOCOL = 17
APP_ID = 550


def text(value: str) -> bytes:
    """Return a string as the protocol has it: UTF-8 that ends with a zero byte."""
    return value.encode().replace(b"\0", b"") + b"\0"


class Challenges:
    """The numbers a client has to send back, which prove that its source address is its own."""

    def __init__(self) -> None:
        """Choose a secret for this process."""
        self._secret = os.urandom(8)

    def of(self, client: tuple[str, int]) -> bytes:
        """Return the four bytes for one client address; never the -1 that asks for a challenge."""
        number = hash((self._secret, client)) & 0x7FFFFFFF
        return struct.pack("<i", number)


def parse(packet: bytes) -> tuple[int, bytes] | None:
    """Return the kind of a query and the challenge it brings (empty for none), or None for anything else."""
    if packet.startswith(INFO_REQUEST):
        return INFO, packet[len(INFO_REQUEST) :]
    if len(packet) == 9 and packet.startswith(SINGLE) and packet[4] in (PLAYER, RULES):
        return packet[4], packet[5:]
    return None


def joins(packet: bytes) -> int | None:
    """Return which step of a player's connection a packet is: GET_CHALLENGE, CONNECT, or None."""
    kind = packet[4] if len(packet) > 4 and packet.startswith(SINGLE) else None
    return kind if kind in (GET_CHALLENGE, CONNECT) else None


def challenge(number: bytes) -> bytes:
    """Return the answer to a query without the right challenge."""
    return SINGLE + b"A" + number


def info(
    *,
    hostname: str,
    map_name: str,
    players: int,
    max_players: int,
    bots: int,
    password: bool,
    secure: bool,
    version: str,
    port: int,
    steam_id: int,
    keywords: str,
    tv: tuple[int, str] | None,
) -> bytes:
    """Return the answer to A2S_INFO; `tv` is SourceTV's port and name."""
    answer = SINGLE + b"I" + bytes([PROTOCOL])
    answer += text(hostname) + text(map_name) + text("left4dead2") + text("Left 4 Dead 2")
    answer += struct.pack("<H", APP_ID) + bytes([players, max_players, bots])
    answer += b"dl" + bytes([password, secure]) + text(version)
    answer += bytes([0x80 | 0x10 | (0x40 if tv else 0) | 0x20 | 0x01])
    answer += struct.pack("<HQ", port, steam_id)
    if tv:
        answer += struct.pack("<H", tv[0]) + text(tv[1])
    return answer + text(keywords) + struct.pack("<Q", APP_ID)


def players(rows: list[tuple[str, int, float]]) -> bytes:
    """Return the answer to A2S_PLAYER from names, scores and seconds of play."""
    rows = rows[:255]
    answer = SINGLE + b"D" + bytes([len(rows)])
    for name, score, seconds in rows:
        answer += b"\0" + text(name) + struct.pack("<if", score, seconds)
    return answer


def rules(cvars: dict[str, str]) -> bytes:
    """Return the answer to A2S_RULES."""
    pairs = b"".join(text(name) + text(value) for name, value in cvars.items())
    return SINGLE + b"E" + struct.pack("<H", len(cvars)) + pairs


def packets(answer: bytes, number: int) -> list[bytes]:
    """Return an answer as datagrams; `number` tells one split answer from another."""
    if len(answer) <= PACKET:
        return [answer]
    size = PACKET - 12
    parts = [answer[start : start + size] for start in range(0, len(answer), size)]
    head = SPLIT + struct.pack("<I", number & 0x7FFF) + bytes([len(parts)])
    return [head + bytes([index]) + struct.pack("<H", size) + part for index, part in enumerate(parts)]
