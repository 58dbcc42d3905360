"""l4d2ctl's RCON client, against servers that keep to the protocol and against some that do not."""

from __future__ import annotations

import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "files/lib"))

from left4me_host import instance, rcon

Address = tuple[str, int]
Serve = Callable[..., Address]
LOGIN = [(1, 0, b""), (1, 2, b"")]
"""What the game says to the right password."""
MIRRORED = [(2, 0, b""), (2, 0, b"\0\1\0\0")]


def packet(number: int, kind: int, body: bytes) -> bytes:
    return struct.pack("<iii", len(body) + 10, number, kind) + body + b"\0\0"


def test_a_kernel_without_ipv6_lists_those_who_listen_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rcon, "_TCP", ("/proc/net/tcp", str(tmp_path / "tcp6")))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        assert rcon._listeners(listening.getsockname()[1]) == {os.getuid()}


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Answer one client: each of the answers is sent, in pieces, once it has said something; then, perhaps, close."""
    threads = []
    done = threading.Event()

    def serve(*answers: list[tuple[int, int, bytes]] | bytes, piece: int = 1 << 20, close: bool = True) -> Address:
        listening = socket.create_server(("127.0.0.1", 0))

        def answer() -> None:
            # The client may leave before it was told everything.
            with suppress(ConnectionError), listening, listening.accept()[0] as client:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for each in answers:
                    client.recv(8192)
                    data = each if isinstance(each, bytes) else b"".join(packet(*part) for part in each)
                    for start in range(0, len(data), piece):
                        client.sendall(data[start : start + piece])
                if not close:
                    done.wait(10)

        threads.append(threading.Thread(target=answer))
        threads[-1].start()
        address: Address = listening.getsockname()
        return address

    yield serve
    done.set()
    for thread in threads:
        thread.join(10)


@pytest.mark.parametrize("piece", [1, 5, 1 << 20])
def test_an_answer_of_several_packets_that_come_in_pieces(serve: Serve, piece: int) -> None:
    long = "ä line\n" * 2000
    halves = [long.encode()[:4085], long.encode()[4085:]]
    address = serve(LOGIN, [*((1, 0, half) for half in halves), *MIRRORED], piece=piece, close=False)
    assert rcon.execute(address, "x", "cvarlist") == long


def test_no_answer_at_all_is_an_empty_one(serve: Serve) -> None:
    assert rcon.execute(serve(LOGIN, MIRRORED, close=False), "x", "sv_cheats 1") == ""


def test_a_server_that_goes_after_the_command_has_done_it(serve: Serve) -> None:
    assert rcon.execute(serve(LOGIN), "x", "quit") == ""
    assert rcon.execute(serve(LOGIN, [(1, 0, b"Bye")]), "x", "quit") == "Bye"


def test_a_refused_password(serve: Serve) -> None:
    assert rcon.execute(serve([(1, 0, b""), (-1, 2, b"")]), "x", "status") is None


@pytest.mark.parametrize(
    ("answers", "error"),
    [
        ([[]], "closed the connection"),
        ([[(1, 0, b"")]], "closed the connection"),
        ([b"SSH-2.0-OpenSSH_9.2\r\n"], "not RCON"),
        ([struct.pack("<iii", -5, 1, 0)], "not RCON"),
    ],
)
def test_who_speaks_no_rcon_is_an_error(serve: Serve, answers: list[bytes], error: str) -> None:
    with pytest.raises((OSError, EOFError), match=error):
        rcon.execute(serve(*answers), "x", "status")


@pytest.mark.parametrize("answers", [[[]], [LOGIN, [(1, 0, b"half")]]])
def test_who_falls_silent_is_not_waited_for(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, answers: list[bytes]
) -> None:
    monkeypatch.setattr(rcon, "LIMIT", 0.2)
    begin = time.monotonic()
    with pytest.raises(TimeoutError):
        rcon.execute(serve(*answers, close=False), "x", "status")
    assert time.monotonic() - begin < 1.5


@pytest.mark.parametrize("answers", [[packet(1, 0, b"x" * 4000)], [LOGIN, packet(1, 0, b"x" * 4000)]])
def test_who_sends_a_byte_now_and_then_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, answers: list[Any]) -> None:
    """Each byte comes within the time that more data may take, and yet it ends."""
    monkeypatch.setattr(rcon, "LIMIT", 0.5)
    monkeypatch.setattr(rcon, "WHOLE", 1.0)
    data = b"".join(each if isinstance(each, bytes) else b"".join(packet(*part) for part in each) for each in answers)
    over = threading.Event()

    def drip() -> None:
        with suppress(ConnectionError), listening.accept()[0] as client:
            for byte in data:
                client.sendall(bytes([byte]))
                if over.wait(0.05):
                    return

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=drip)
        thread.start()
        begin = time.monotonic()
        with pytest.raises(OSError, match="does not end within 1 s"):
            rcon.execute(listening.getsockname(), "x", "status")
        over.set()
        thread.join(10)
    assert time.monotonic() - begin < 3


def test_a_command_is_no_longer_than_a_packet() -> None:
    with pytest.raises(instance.Failed, match="4086 bytes"):
        rcon.rcon("3", "ä" * 2044)
