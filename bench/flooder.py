"""`python -m bench.flooder KIND SPOOFED ADDRESS PORT SECONDS`: flood as fast as one core can; print packets a second.

Only for bench/flood.py, which runs it in a network namespace on the boxes' own bridge. Spoofed sources are in FROM, a
part of RFC 2544's range for benchmarks, and the packets go to one box only.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys
import time

FROM = "198.18.0.0/16"
BATCH = 1024
INFO = b"\xff\xff\xff\xffTSource Engine Query\0"
PAYLOADS = {
    "A2S_INFO": INFO,
    "A2S_INFO with a made-up challenge": INFO + b"abcd",
    "empty": b"",
    "split": b"\xfe\xff\xff\xff",
    "1472 bytes": b"\xff" * 1472,
    "stranger's game packets": b"\1\0\0\0" * 25,
}
PACKETS = 4_000_000
"""A flood ends after so many, however fast it is."""


class _IoVec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Message(ctypes.Structure):
    """struct mmsghdr of sendmmsg(2)."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint),
        ("vectors", ctypes.c_void_p),
        ("vector_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
        ("sent", ctypes.c_uint),
    )


def packet(address: str, port: int, payload: bytes) -> bytes:
    """Return an IPv4 packet with UDP; the kernel fills in the checksum of its header, and UDP goes without."""
    length = 28 + len(payload)
    header = struct.pack(">BBHHHBBH", 0x45, 0, length, 0, 0, 64, socket.IPPROTO_UDP, 0)
    header += socket.inet_aton(FROM.partition("/")[0]) + socket.inet_aton(address)
    return header + struct.pack(">HHHH", 40000, port, 8 + len(payload), 0) + payload


def flood(payload: bytes, address: str, port: int, seconds: float, spoofed: str) -> float:
    """Send for `seconds` and return packets per second. `spoofed` is "", "address" or "address and port"."""
    one = packet(address, port, payload) if spoofed else payload
    size = max(len(one), 1)
    buffer = bytearray(one or b"\0") * BATCH
    start = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    target = struct.pack("=H", socket.AF_INET) + struct.pack(">H4s8x", port, socket.inet_aton(address))
    name = ctypes.create_string_buffer(target)
    vectors = (_IoVec * BATCH)(*(_IoVec(start + size * number, len(one)) for number in range(BATCH)))
    messages = (_Message * BATCH)()
    for number, message in enumerate(messages):
        message.name, message.name_length = ctypes.addressof(name), len(target)
        message.vectors, message.vector_count = ctypes.addressof(vectors[number]), 1
    kind = (socket.SOCK_RAW, socket.IPPROTO_RAW) if spoofed else (socket.SOCK_DGRAM, 0)
    sendmmsg = ctypes.CDLL(None, use_errno=True).sendmmsg
    sent, begin = 0, time.monotonic()
    with socket.socket(socket.AF_INET, *kind) as out:
        while time.monotonic() < begin + seconds and sent < PACKETS:
            if spoofed:
                for offset in (14, 15, *((20, 21) if spoofed == "address and port" else ())):
                    buffer[offset::size] = os.urandom(BATCH)
            sent += max(0, sendmmsg(out.fileno(), messages, BATCH, 0))
    return sent / (time.monotonic() - begin)


if __name__ == "__main__":
    kind, spoofed, address, port, seconds = sys.argv[1:]
    print(f"{flood(PAYLOADS[kind], address, int(port), float(seconds), spoofed):.0f}", flush=True)
