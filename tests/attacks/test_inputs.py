"""Each reader of root's programs and of the control machine returns a value or raises its own error, whatever it reads.

Everything runs in this process, below a temporary directory.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import io
import json
import os
import socket
import struct
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from left4me import answers, connection, shapes
from left4me_host import (
    a2s,
    commands,
    firewall,
    instance,
    job_output,
    jobs,
    layout,
    mountinfo,
    rcon,
    reset,
)
from left4me_host.status import table
from tests.deployed.found import CYCLED, FOUND
from tests.integration.harness import ROOT, rounds

CASES = rounds(40, 8000)
"""Cases per test. In soak 13 tests of 8,000 cases: 104,000."""
tried = settings(
    max_examples=CASES,
    deadline=10_000,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
pytestmark = pytest.mark.soak
NOISE = st.binary(max_size=300)
TEXT = st.text(max_size=60)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4))
LINE = st.sampled_from(["LEFT4ME_PORT=", "LEFT4ME_ADDRESS=", "LOWERS=", "into=", "back=", "asked=", "start=", "#", ""])
FILE = st.lists(st.tuples(LINE.map(str.encode), st.binary(max_size=40)), max_size=6).map(
    lambda lines: b"\n".join(key + value for key, value in lines)
)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host's directories, with server 3, below a temporary directory."""
    for name in ("SERVERS", "RUN", "RUNTIME", "HELD", "ATTIC", "OVERLAYS", "RELEASES", "SECRETS", "JOBS"):
        monkeypatch.setattr(layout, name, str(tmp_path / name.lower()))
        (tmp_path / name.lower()).mkdir()
    monkeypatch.setattr(layout, "FIREWALL", str(tmp_path / "firewall.nft"))
    (tmp_path / "servers/3").mkdir()
    (tmp_path / "runtime/3").mkdir()
    return tmp_path


@tried
@given(NOISE | NOISE.map(lambda data: b"\xff\xff\xff\xffI\x11" + data))
@example(b"\xff\xff\xff\xffI")
def test_an_a2s_answer(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        info = a2s.parse(data)
        assert max(len(info.name), len(info.map)) <= 128
        assert 0 <= info.players <= 255


@tried
@given(NOISE | NOISE.map(lambda data: b"\xff\xff\xff\xffD\x04" + data))
@example(b"\xff\xff\xff\xffD\xff")
def test_an_a2s_list_of_players(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        found = a2s.parse_players(data)
        assert len(found) <= 255
        json.dumps([vars(each) for each in found], allow_nan=False)
        assert all(len(each.name) <= 128 for each in found)


@tried
@given(NOISE | JSON.map(lambda value: json.dumps(value).encode()))
@example(b"[" * 100_000)
def test_a_damaged_record_of_a_job(host: Path, data: bytes) -> None:
    (host / "jobs/1.json").write_bytes(data)
    [row] = jobs.listed(jobs.latest())
    assert (row["job"], row["result"], row["words"]) == (1, "interrupted", "")
    job_output.table([row])
    assert jobs.read(1)


class Peer:
    """A server that sends these bytes to an RCON client, in pieces, and then closes the connection."""

    def __init__(self, data: bytes, piece: int) -> None:
        self.data, self.piece = data, piece

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None: ...

    def settimeout(self, _: float) -> None: ...

    def sendall(self, _: bytes) -> None: ...

    def recv(self, size: int) -> bytes:
        got, self.data = self.data[: min(size, self.piece)], self.data[min(size, self.piece) :]
        return got


PACKETS = st.lists(
    st.tuples(st.integers(-(2**31), 2**31 - 1) | st.integers(10, 40), st.integers(-1, 3), st.integers(0, 3), NOISE).map(
        lambda packet: struct.pack("<iii", *packet[:3]) + packet[3]
    ),
    max_size=5,
).map(b"".join)


@tried
@given(NOISE | PACKETS, st.integers(1, 64))
def test_an_rcon_answer(data: bytes, piece: int) -> None:
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(OSError, EOFError):
        patch.setattr(socket, "create_connection", lambda *_, **__: Peer(data, piece))
        said = rcon.execute(("127.0.0.1", 1), "password", "status")
        assert said is None or len(said) <= 1 << 21


@tried
@given(st.lists(st.binary(min_size=1, max_size=40).filter(lambda name: b"\0" not in name), min_size=2, max_size=2))
def test_a_line_of_mountinfo_with_any_names(host: Path, names: list[bytes]) -> None:
    escaped = [
        b"/" + b"".join(b"\\%03o" % byte if byte in b" \t\n\\" else bytes([byte]) for byte in name) for name in names
    ]
    line = b"36 35 98:0 %s %s rw,noatime shared:1 - overlay none rw,lowerdir=/a:/b,upperdir=/u\n" % tuple(escaped)
    (host / "mountinfo").write_bytes(line * 2)
    found = mountinfo.mounts(str(host / "mountinfo"))
    assert [(mount.kind, mount.device, mount.lowers()) for mount in found] == [("overlay", "98:0", ["/a", "/b"])] * 2
    assert [os.fsencode(found[0].root), os.fsencode(found[0].point)] == escaped


@tried
@given(FILE | NOISE)
@example('LEFT4ME_PORT="\u00b2"'.encode())
@example(b"LEFT4ME_ADDRESS=no such host\nLEFT4ME_PORT=27015")
@example(b"LEFT4ME_PORT=" + b"9" * 5000)
def test_what_a_server_was_started_with(host: Path, data: bytes) -> None:
    (host / "servers/3/server.env").write_bytes(data)
    (host / "run/3.started").write_bytes(data)
    for env in (instance.environment("3"), instance.started_with("3")):
        if address := instance.address_of(env):
            assert 0 <= address[1] <= 65535
            socket.inet_aton(address[0])


@tried
@given(FILE | NOISE)
def test_the_declared_files_of_a_server(host: Path, data: bytes) -> None:
    for name in ("layers", "keep", "build", "restart"):
        (host / f"servers/3/{name}").write_bytes(data)
    assert all(isinstance(line, str) for name in ("keep", "restart") for line in instance.declared_lines("3", name))
    with contextlib.suppress(ValueError):  # a NUL in a path
        assert instance.lowers("3")


@tried
@given(FILE | NOISE)
def test_the_records_of_stops_and_resets(host: Path, data: bytes) -> None:
    for path in ("held/3", "run/3.finished", "runtime/3/reset"):
        (host / path).write_bytes(data)
    assert len(instance.held_by("3")) <= 64
    assert isinstance(instance.finished("3"), str)
    plan = reset._read_plan(str(host / "runtime/3/reset"))
    assert plan is None or "into" in plan


@tried
@given(st.lists(TEXT | st.sampled_from(["status", "reset", "--undo", "-n", "3", "--json", "game", "rcon"]), max_size=6))
def test_the_arguments_of_l4d2ctl(words: list[str]) -> None:
    quiet = (contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()))
    with quiet[0], quiet[1], contextlib.suppress(instance.Usage, SystemExit):  # SystemExit is that of --help
        commands._parser().parse_args(words)  # parsed, but not run


def overlay_helper() -> ModuleType:
    loader = SourceFileLoader("overlay_helper", str(ROOT / "files/libexec/left4me-overlay"))
    spec = importlib.util.spec_from_loader("overlay_helper", loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


HELPER = overlay_helper()


@tried
@given(st.lists(TEXT | st.sampled_from(["mount", "umount", "3", "../3", "_bare", "3\n"]), max_size=3))
def test_the_arguments_of_the_overlay_helper(host: Path, words: list[str]) -> None:
    before, there = sorted(host.rglob("*")), Path.cwd()
    try:
        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(ValueError, OSError):
            # The helper keeps its lock until its process ends, and this one goes on.
            patch.setattr(fcntl, "flock", lambda descriptor, _how: os.close(descriptor))
            HELPER.main(words)
            pytest.fail(f"{words} did something")  # server 3 has no merged, and nothing else is one
    finally:
        os.chdir(there)
    assert sorted(host.rglob("*")) == before


@tried
@given(NOISE | TEXT.map(lambda text: f'table inet left4me {{\n\tcomment "{text}"\n}}\n'.encode()))
def test_the_table_on_disk(host: Path, data: bytes) -> None:
    (host / "firewall.nft").write_bytes(data)
    assert isinstance(firewall.deployed_version(), str)


READERS: dict[str, Callable[[str], Any]] = {
    **{name: lambda text, name=name: answers.read(text, shapes.SHAPES[name]) for name in shapes.SHAPES},  # type: ignore[misc]
    "found": lambda text: answers.read(text, FOUND),
    "cycled": lambda text: answers.read(text, CYCLED),
}


@tried
@given(st.sampled_from([*READERS]), JSON.map(json.dumps) | TEXT | NOISE.map(lambda data: data.decode(errors="replace")))
def test_an_answer_of_a_host(name: str, text: str) -> None:
    with contextlib.suppress(answers.Wrong):
        READERS[name](text)


@tried
@given(TEXT | NOISE.map(lambda data: data.decode(errors="replace")))
def test_what_ssh_and_sudo_say(text: str) -> None:
    assert connection.reason(text).isprintable()
    assert connection.sudo_reason(text).isprintable() or connection.sudo_reason(text) == ""


@tried
@given(TEXT)
def test_whatever_is_shown_has_no_escapes(text: str) -> None:
    assert instance.plain(text).isprintable()


@tried
@given(st.lists(st.lists(TEXT, min_size=2, max_size=2), max_size=3))
def test_a_table_of_anything(lines: list[list[str]]) -> None:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        commands.print_table(lines)
    assert "\x1b" not in out.getvalue()


def test_an_empty_table() -> None:
    assert table([])
