"""What l4d2ctl reads of a server's answers to A2S_INFO and A2S_PLAYER, and of answers that are none."""

from __future__ import annotations

import contextlib
import math
import socket
import struct
import threading
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from left4me_host.a2s import Info, Player, ask, ask_players, parse, parse_players

PORT = 0x80
TELEVISION = 0x40


def answer(players: int, bots: int, extra: int = PORT, name: bytes = b"three") -> bytes:
    """Return an answer as the protocol's description has it (developer.valvesoftware.com/wiki/Server_queries)."""
    texts = name + b"\0c1m1_hotel\0left4dead2\0Left 4 Dead 2\0"
    counts = bytes([players, 8, bots])
    port = b"\x87\x69" if extra & PORT else b""
    television = b"\x8c\x69SourceTV\0" if extra & TELEVISION else b""
    return (
        b"\xff\xff\xff\xffI\x11"
        + texts
        + b"\x26\x02"
        + counts
        + b"dl\0\x01"
        + b"2.2.4.3\0"
        + bytes([extra])
        + port
        + television
    )


@pytest.mark.parametrize(
    ("players", "bots", "extra", "people"),
    [
        (0, 0, PORT, 0),
        (4, 0, PORT, 4),
        (6, 2, PORT, 4),
        (3, 3, PORT, 0),
        (2, 1, PORT | TELEVISION, 1),  # one plays, and SourceTV is a bot
        (1, 1, PORT | TELEVISION, 0),
        (2, 0, PORT | TELEVISION, 2),  # two play, or one and SourceTV: not told
        (0, 2, PORT, 0),
    ],
)
def test_people_are_players_without_bots(players: int, bots: int, extra: int, people: int) -> None:
    assert parse(answer(players, bots, extra)) == Info("three", "c1m1_hotel", people, 8)


@given(st.binary(max_size=80))
@example(b"")
@example(b"\xff\xff\xff\xffI")
@example(b"\xff\xff\xff\xff")
@example(answer(1, 0)[:30])
def test_what_is_no_answer_is_told_as_one_error(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert parse(data).players >= 0


def test_an_answer_may_be_cut_anywhere() -> None:
    whole = answer(1, 0, extra=0)
    for end in range(len(whole)):
        with contextlib.suppress(ValueError):
            assert parse(whole[:end]).players == 1


def test_a_name_that_is_no_text_is_still_a_name() -> None:
    assert parse(answer(1, 0, name=b"\xff\xfe")).name == "\ufffd\ufffd"


@pytest.fixture
def liar() -> Iterator[tuple[str, int]]:
    """A server that answers with rubbish before it answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.settimeout(5)

        def lie() -> None:
            _question, client = listening.recvfrom(2048)
            for data in (b"", b"\xff", b"\xff\xff\xff\xffI", b"\xff\xff\xff\xffD\0", answer(3, 1)):
                listening.sendto(data, client)

        thread = threading.Thread(target=lie)
        thread.start()
        yield listening.getsockname()
        thread.join()


def test_rubbish_is_passed_over_and_who_is_silent_is_left_out(liar: tuple[str, int]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent, socket.socket(type=socket.SOCK_DGRAM) as closed:
        silent.bind(("127.0.0.1", 0))
        closed.bind(("127.0.0.1", 0))
        nobody = closed.getsockname()
        closed.close()
        answers = ask({"3": liar, "4": silent.getsockname(), "5": nobody}, limit=0.3)
    assert {server: info.players for server, info in answers.items()} == {"3": 2}


@pytest.fixture
def challenger() -> Iterator[tuple[tuple[str, int], list[bytes]]]:
    """A server that answers each question with a split packet that looks like an answer, then with a challenge."""
    asked: list[bytes] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.settimeout(2)

        def challenge() -> None:
            with contextlib.suppress(TimeoutError):
                while True:
                    question, client = listening.recvfrom(2048)
                    asked.append(question)
                    listening.sendto(b"\xfe\xff\xff\xff" + answer(50, 0)[4:], client)
                    listening.sendto(b"\xff\xff\xff\xffA" + len(asked).to_bytes(4, "big"), client)

        thread = threading.Thread(target=challenge)
        thread.start()
        yield listening.getsockname(), asked
        thread.join()


def test_a_server_that_only_challenges_is_asked_a_few_times_and_has_no_players(
    challenger: tuple[tuple[str, int], list[bytes]],
) -> None:
    address, asked = challenger
    assert ask({"3": address}, limit=0.5) == {}
    assert len(asked) == 4
    assert asked[-1].endswith((3).to_bytes(4, "big"))


def listed(*rows: tuple[bytes, int, float], count: int | None = None) -> bytes:
    """Return an answer to A2S_PLAYER as the protocol's description has it."""
    whole = b"".join(
        bytes([index]) + name + b"\0" + struct.pack("<if", score, seconds)
        for index, (name, score, seconds) in enumerate(rows)
    )
    return b"\xff\xff\xff\xffD" + bytes([len(rows) if count is None else count]) + whole


def test_players_have_names_scores_and_seconds() -> None:
    data = listed((b"anna", 12, 61.26), (b"", 0, 0.5), (b"\xff" + b"x" * 300, -3, 7.0))
    assert parse_players(data) == [
        Player("anna", 61.3, 12),
        Player("", 0.5, 0),
        Player("\ufffd" + "x" * 127, 7.0, -3),
    ]
    assert parse_players(listed()) == []
    assert parse_players(listed((b"anna", 1, 1.0), count=4)) == [Player("anna", 1.0, 1)]


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -math.inf])
def test_a_time_that_is_none_is_zero(seconds: float) -> None:
    assert parse_players(listed((b"anna", 1, seconds))) == [Player("anna", 0.0, 1)]


@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda data: b"\xff\xff\xff\xffD" + data))
@example(b"\xff\xff\xff\xffD")
@example(listed((b"anna", 1, 1.0))[:-1])
def test_what_is_no_list_of_players_is_told_as_one_error(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        found = parse_players(data)
        assert len(found) <= 255
        assert all(len(each.name) <= 128 and math.isfinite(each.seconds) for each in found)


def test_players_are_asked_for_with_the_challenge_that_the_server_sends() -> None:
    asked: list[bytes] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.settimeout(5)

        def serve() -> None:
            for answer_to in (b"\xff\xff\xff\xffA\1\2\3\4", listed((b"anna", 1, 1.0))):
                question, client = listening.recvfrom(2048)
                asked.append(question)
                listening.sendto(answer_to, client)

        thread = threading.Thread(target=serve)
        thread.start()
        assert ask_players({"3": listening.getsockname()}) == {"3": [Player("anna", 1.0, 1)]}
        thread.join()
    assert asked == [b"\xff\xff\xff\xffU\xff\xff\xff\xff", b"\xff\xff\xff\xffU\1\2\3\4"]
