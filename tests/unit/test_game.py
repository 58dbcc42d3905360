"""The stand-in game, run on loopback by the Python that runs the tests: it is one program, whoever runs it."""

import contextlib
import hashlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import a2s
import pytest

from tests.boxes import game, mirror

PASSWORD = "swordfish"
SECONDS = 10.0
"""How long anything may take before a test calls it lost."""


class Rcon:
    """An RCON client written from the protocol's description, not from the server."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=SECONDS)

    def send(self, number: int, kind: int, body: str) -> None:
        payload = struct.pack("<ii", number, kind) + body.encode() + b"\0\0"
        self.socket.sendall(struct.pack("<i", len(payload)) + payload)

    def receive(self) -> tuple[int, int, bytes]:
        (size,) = struct.unpack("<i", self._read(4))
        assert size <= 4096
        payload = self._read(size)
        number, kind = struct.unpack_from("<ii", payload)
        assert payload.endswith(b"\0\0")
        return number, kind, payload[8:-2]

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.socket.recv(size - len(data))
            if not part:
                raise EOFError("the game closed the connection")
            data += part
        return data

    def login(self, password: str) -> int:
        self.send(7, 3, password)
        assert self.receive() == (7, 0, b"")
        number, kind, body = self.receive()
        assert (kind, body) == (2, b"")
        return number

    def do(self, command: str) -> None:
        """Execute something after which the game is away; its answer comes before."""
        self.send(1, 2, command)
        assert self.receive() == (1, 0, b"")

    def __call__(self, command: str) -> str:
        """Execute; a packet that is mirrored after the answer says where the answer ends."""
        self.send(1, 2, command)
        self.send(2, 0, "")
        said = b""
        while True:
            number, kind, body = self.receive()
            assert kind == 0
            if number == 2:
                break
            said += body
        assert self.receive()[2] == b"\0\1\0\0"
        return said.decode()


class Running:
    """A started game."""

    def __init__(self, tree: Path, process: "subprocess.Popen[str]", port: int) -> None:
        self.tree = tree
        self.process = process
        self.port = port
        self.address = ("127.0.0.1", port)

    def info(self, timeout: float = SECONDS) -> a2s.SourceInfo:
        answer = a2s.info(self.address, timeout=timeout)
        assert isinstance(answer, a2s.SourceInfo)
        return answer

    def silent(self) -> bool:
        try:
            self.info(timeout=0.15)
        except TimeoutError:
            return True
        return False

    def rcon(self) -> Rcon:
        client = Rcon(self.port)
        assert client.login(PASSWORD) == 7
        return client

    def ended(self) -> int:
        return self.process.wait(SECONDS)


Start = Callable[..., Running]


@pytest.fixture(scope="session")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp("game") / "tree"
    game.lay_out(tree)
    (tree / "bin/srcds_linux").symlink_to(Path(sys.executable).resolve())
    return tree


@pytest.fixture
def tree(installation: Path, tmp_path: Path) -> Path:
    return shutil.copytree(installation, tmp_path / "tree", symlinks=True)


@pytest.fixture
def run(tree: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str, stdin: int = subprocess.DEVNULL) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [tree / "srcds_run", "-game", "left4dead2", *arguments],
            cwd=tree / "left4dead2",
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        # Its group, also where it has ended itself: the pause of srcds_run may outlive it and hold its output open.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=SECONDS)


@pytest.fixture
def start(tree: Path, run: Callable[..., "subprocess.Popen[str]"]) -> Start:
    def start(*arguments: str, map_name: str = "c1m1_hotel", stdin: int = subprocess.DEVNULL) -> Running:
        process = run(
            *("-norestart", "-ip", "127.0.0.1", "-port", str(free_port()), "+rcon_password", PASSWORD),
            *arguments,
            *("+map", map_name),
            stdin=stdin,
        )
        return Running(tree, process, announced_port(process))

    return start


def announced_port(process: "subprocess.Popen[str]") -> int:
    assert process.stdout
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith("Server is on "):
            return int(line.split(";")[0].rsplit(":", 1)[1])
    raise AssertionError(f"the game ended with {process.wait(SECONDS)}: {''.join(said)}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# -- queries


def test_answers_the_three_queries_as_python_a2s_reads_them(start: Start) -> None:
    server = start("-maxplayers", "4", "+mp_gamemode", "versus", "+sv_lan", "1")
    info = server.info()
    assert (info.protocol, info.folder, info.game, info.app_id) == (17, "left4dead2", "Left 4 Dead 2", 550)
    assert (info.server_name, info.map_name, info.max_players) == ("Left 4 Dead 2", "c1m1_hotel", 4)
    assert (info.player_count, info.bot_count, info.server_type, info.platform) == (0, 0, "d", "l")
    assert (info.port, info.game_id, info.keywords, info.vac_enabled) == (server.port, 550, "versus", False)
    assert info.version == "2.2.4.3"
    assert a2s.players(server.address, timeout=SECONDS) == []
    assert a2s.rules(server.address, timeout=SECONDS)["mp_gamemode"] == "versus"


@pytest.mark.skipif(shutil.which("quakestat") is None, reason="Debian's qstat is not installed")
def test_answers_the_three_queries_as_qstat_reads_them(start: Start) -> None:
    server = start("+hostname", "Two words")
    server.rcon()("standin_players 2")
    said = subprocess.run(
        ["quakestat", "-a2s", f"127.0.0.1:{server.port}", "-R", "-P", "-nh", "-raw", "\t"],
        capture_output=True, text=True, check=True, timeout=SECONDS,
    ).stdout.splitlines()  # fmt: skip
    head = said[0].split("\t")
    assert head[2:6] == ["Left 4 Dead 2", "c1m1_hotel", "8", "2"]
    assert "mp_gamemode=coop" in said[1]
    assert [line.split("\t")[0] for line in said[2:4]] == ["Player 2", "Player 1"]


@pytest.mark.parametrize("query", [b"TSource Engine Query\0", b"U\xff\xff\xff\xff", b"V\xff\xff\xff\xff"])
def test_challenges_before_it_answers(start: Start, query: bytes) -> None:
    server = start()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(SECONDS)
        client.connect(server.address)
        client.send(b"\xff\xff\xff\xff" + query)
        answer = client.recv(2048)
        assert answer[:5] == b"\xff\xff\xff\xffA"
        assert len(answer) == 9
        base = query if query.startswith(b"T") else query[:1]
        client.send(b"\xff\xff\xff\xff" + base + b"1234")
        assert client.recv(2048) == answer
        client.send(b"\xff\xff\xff\xff" + base + answer[5:])
        assert client.recv(2048)[4:5] == {b"T": b"I", b"U": b"D", b"V": b"E"}[query[:1]]


def test_ignores_empty_datagrams_and_garbage(start: Start) -> None:
    server = start()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect(server.address)
        for packet in (b"", b"\xff\xff\xff\xff", b"\xff\xff\xff\xffT", b"\xff\xff\xff\xffUxx", os.urandom(1400)):
            client.send(packet)
        server.info()
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.recv(2048)


def test_splits_an_answer_that_does_not_fit_a_datagram(start: Start) -> None:
    server = start("+sv_contact", "x" * 3000)
    assert a2s.rules(server.address, timeout=SECONDS)["sv_contact"] == "x" * 3000
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(SECONDS)
        client.connect(server.address)
        client.send(b"\xff\xff\xff\xffV\xff\xff\xff\xff")
        client.send(b"\xff\xff\xff\xffV" + client.recv(65535)[5:])
        parts = [client.recv(65535) for _ in range(3)]
    assert {part[:4] for part in parts} == {b"\xfe\xff\xff\xff"}
    assert max(len(part) for part in parts) == 1400


def test_players_bots_and_sourcetv(start: Start) -> None:
    server = start()
    rcon = server.rcon()
    rcon("standin_players 2; standin_player Zoë 42 3600; standin_bots 3")
    info = server.info()
    assert (info.player_count, info.bot_count, info.stv_port) == (6, 3, None)
    players = {player.name: player for player in a2s.players(server.address, timeout=SECONDS)}
    assert len(players) == 6
    assert players["Zoë"].score == 42
    assert 3600 <= players["Zoë"].duration < 3600 + SECONDS
    rcon("standin_sourcetv 1")
    info = server.info()
    assert (info.player_count, info.bot_count, info.stv_port, info.stv_name) == (7, 3, 27020, "SourceTV")
    rcon("standin_sourcetv 2")
    assert server.info().bot_count == 4
    rcon("standin_players 0; standin_bots 0; standin_sourcetv 0")
    assert server.info().player_count == 0


# -- configuration


def test_reads_its_cfg_at_start_and_at_each_map_and_the_last_line_wins(start: Start, tree: Path) -> None:
    cfg = tree / "left4dead2/cfg"
    (cfg / "deep").mkdir()
    (cfg / "mine.cfg").write_text(
        'hostname "First"\nhostname Second; sv_alltalk 1 // hostname, too; hostname No\nexec deep/more.cfg\n'
    )
    (cfg / "deep/more.cfg").write_text('hostname "Third // not a comment; nor a command"\n')
    server = start("+servercfgfile", "mine.cfg", "+hostname", "Command line")
    assert server.info().server_name == "Third // not a comment; nor a command"
    assert server.rcon()("sv_alltalk") == '"sv_alltalk" = "1" ( def. "0" )\n'
    (cfg / "deep/more.cfg").write_text("")
    assert server.info().server_name.startswith("Third")
    server.rcon()("changelevel c2m1_highway")
    info = server.info()
    assert (info.server_name, info.map_name) == ("Second", "c2m1_highway")


def test_exec_stays_below_cfg(start: Start, tree: Path) -> None:
    (tree / "left4dead2/outside.cfg").write_text("hostname Outside")
    rcon = start().rcon()
    assert "invalid path" in rcon("exec ../outside.cfg")
    assert "invalid path" in rcon(f"exec {tree}/left4dead2/outside.cfg")
    assert "couldn't exec nowhere.cfg" in rcon("exec nowhere")
    assert rcon("hostname") == '"hostname" = "Left 4 Dead 2"\n'


def test_a_map_that_does_not_exist_is_refused(start: Start) -> None:
    server = start()
    assert "not found or invalid" in server.rcon()("changelevel nowhere")
    assert server.info().map_name == "c1m1_hotel"


def test_takes_unknown_options_in_any_order(start: Start) -> None:
    server = start("-tickrate", "60", "-foo", "+bar", "1", "-maxplayers", "16", "+sm_unknown", "x", "-insecure")
    assert server.info().max_players == 16


# -- RCON


def test_rcon_refuses_a_wrong_password_and_commands_before_the_right_one(start: Start) -> None:
    server = start()
    assert Rcon(server.port).login("wrong") == -1
    client = Rcon(server.port)
    client.send(1, 2, "hostname Stolen")
    assert client.receive() == (-1, 2, b"")
    assert server.info().server_name == "Left 4 Dead 2"


def test_rcon_without_a_password_refuses_everybody(start: Start) -> None:
    server = start("+rcon_password", "")
    assert Rcon(server.port).login("") == -1


def test_rcon_splits_a_long_answer(start: Start, tree: Path) -> None:
    lines = [str(number) * 100 for number in range(100)]
    (tree / "left4dead2/cfg/long.cfg").write_text("".join(f"echo {line}\n" for line in lines))
    assert start().rcon()("exec long").splitlines() == lines


def test_rcon_real_commands(start: Start) -> None:
    rcon = start().rcon()
    rcon("standin_player Zoë 1 61; hostname Two words")
    status = rcon("status").splitlines()
    assert status[0] == "hostname: Two words"
    assert "map     : c1m1_hotel" in status
    assert any(line.startswith("players : 1 humans, 0 bots (8 max)") for line in status)
    assert any('"Zoë" STEAM_1:0:2 01:01' in line for line in status)
    assert '"Zoë"' in rcon("users")
    assert rcon("say good night") == "Console: good night\n"
    assert rcon("no_such_thing") == 'Unknown command "no_such_thing"\n'
    assert rcon("standin_players many").startswith("standin_players: ")


def test_rcon_survives_garbage(start: Start) -> None:
    server = start()
    client = Rcon(server.port)
    client.socket.sendall(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises((EOFError, ConnectionResetError)):
        client.receive()
    server.rcon()


# -- files and memory


def test_holds_the_tree_by_cwd_file_and_mapping_and_writes_there(start: Start, tree: Path) -> None:
    server = start()
    process = Path(f"/proc/{server.process.pid}")
    assert (process / "cwd").readlink() == tree
    held = [os.readlink(link) for link in (process / "fd").iterdir()]
    assert any(path.startswith(f"{tree}/left4dead2/logs/L") for path in held)
    assert f"{tree}/left4dead2/pak01_dir.vpk" in (process / "maps").read_text()
    assert (tree / "left4dead2/standin.state").read_text() == "1\n"
    assert (tree / "left4dead2/modelsounds.cache").stat().st_mtime > game.MTIME
    os.kill(server.process.pid, signal.SIGINT)
    assert server.ended() == 0
    start()
    assert (tree / "left4dead2/standin.state").read_text() == "2\n"


# -- ports


def test_a_taken_port_with_strictportbind_is_an_error(run: Callable[..., "subprocess.Popen[str]"]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        port = str(other.getsockname()[1])
        process = run("-norestart", "-strictportbind", "-ip", "127.0.0.1", "-port", port)
        said = process.communicate(timeout=SECONDS)[0]
    assert process.returncode == 1
    assert f"Couldn't allocate dedicated server IP port: 127.0.0.1:{port}" in said
    assert "Traceback" not in said


def test_a_taken_port_without_strictportbind_is_the_next_free_one(run: Callable[..., "subprocess.Popen[str]"]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert port < announced_port(run("-norestart", "-ip", "127.0.0.1", "-port", str(port))) <= port + 9


# -- ends


def test_sigint_and_quit_end_with_zero(start: Start) -> None:
    server = start()
    os.kill(server.process.pid, signal.SIGINT)
    assert server.ended() == 0
    server = start()
    server.rcon().do("quit")
    assert server.ended() == 0
    server = start(stdin=subprocess.PIPE)
    assert server.process.stdin
    server.process.stdin.write("quit\n")
    server.process.stdin.flush()
    assert server.ended() == 0
    logs = sorted((server.tree / "left4dead2/logs").iterdir())
    assert [log.read_text().endswith(": Server shutdown\n") for log in logs] == [True] * 3


def test_sigterm_kills(start: Start) -> None:
    server = start()
    os.kill(server.process.pid, signal.SIGTERM)
    assert server.ended() == -signal.SIGTERM


@pytest.mark.parametrize("how", ["-ignoresigint", "+standin_ignore_sigint"])
def test_a_game_may_ignore_sigint(start: Start, how: str) -> None:
    server = start(how, *(["1"] if how.startswith("+") else []))
    os.kill(server.process.pid, signal.SIGINT)
    rcon = server.rcon()
    assert "hostname" in rcon("status")
    rcon.do("quit")
    assert server.ended() == 0


def test_a_game_may_die_of_sigsegv_when_told_to_quit(start: Start) -> None:
    server = start("+standin_segv_on_quit", "1")
    os.kill(server.process.pid, signal.SIGINT)
    assert server.ended() == -signal.SIGSEGV


def test_a_game_may_crash(start: Start) -> None:
    server = start()
    server.rcon().do("standin_crash")
    assert server.ended() == -signal.SIGSEGV
    server = start()
    server.rcon().do("standin_crash KILL")
    assert server.ended() == -signal.SIGKILL


def test_a_game_may_fail_at_start(run: Callable[..., "subprocess.Popen[str]"]) -> None:
    assert run("-norestart", "+standin_exit_at_start", "3").wait(SECONDS) == 3


def test_a_hang_answers_nothing_and_does_not_hear_sigint(start: Start) -> None:
    server = start()
    server.rcon().do("standin_hang 0.5")
    os.kill(server.process.pid, signal.SIGINT)
    assert server.silent()
    assert server.process.poll() is None
    assert server.ended() == 0


def test_a_map_change_has_a_gap(start: Start) -> None:
    server = start()
    server.rcon().do("standin_map_seconds 0.3; map c8m1_apartment")
    assert server.silent()
    rcon = server.rcon()
    assert "c8m1_apartment" in rcon("status")
    assert server.info().map_name == "c8m1_apartment"


def test_a_start_may_take_its_time_and_be_interrupted(run: Callable[..., "subprocess.Popen[str]"]) -> None:
    process = run(
        "-norestart", "-ip", "127.0.0.1", "-port", str(free_port()), "+standin_start_delay", "60", "+echo", "up"
    )
    assert process.stdout
    assert any(line == "up\n" for line in iter(process.stdout.readline, ""))
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(SECONDS) == 0


# -- srcds_run


def fake_game(tree: Path, script: str) -> None:
    (tree / "srcds_linux").write_text(f"#!/bin/sh\n{script}\n")


def test_srcds_run_starts_again_until_the_game_ends_with_zero(
    tree: Path, run: Callable[..., "subprocess.Popen[str]"]
) -> None:
    fake_game(tree, 'echo x >>runs; [ "$(wc -l <runs)" -eq 3 ] || exit 5')
    process = run("-timeout", "0", "-debug", "-pidfile", "pid")
    said = process.communicate(timeout=SECONDS)[0]
    assert process.returncode == 0
    assert said.count("Server restart in 0 seconds") == 2
    assert len((tree / "debug.log").read_text().splitlines()) == 2
    assert not (tree / "pid").exists()


def test_srcds_run_waits_ten_seconds_and_ends_with_zero_at_sigint(
    tree: Path, run: Callable[..., "subprocess.Popen[str]"]
) -> None:
    fake_game(tree, "exit 1")
    process = run()
    assert process.stdout
    assert any("Server restart in 10 seconds" in line for line in process.stdout)
    os.killpg(process.pid, signal.SIGINT)
    # A signal that comes just before the shell has its pause under way is heard when the pause is over.
    assert process.wait(15) == 0


def test_srcds_run_becomes_the_game_with_norestart(start: Start) -> None:
    server = start("-pidfile", "pid")
    assert (server.tree / "pid").read_text() == f"{server.process.pid}\n"
    arguments = Path(f"/proc/{server.process.pid}/cmdline").read_bytes().split(b"\0")
    assert arguments[0] == b"./bin/srcds_linux"
    assert arguments[arguments.index(b"+map") + 1] == b"c1m1_hotel"


@pytest.mark.parametrize(("arguments", "code"), [((), 1), (("-norestart",), 6), (("-norestart", "-debug"), 6)])
def test_srcds_run_tells_how_the_game_ended(
    tree: Path, run: Callable[..., "subprocess.Popen[str]"], arguments: tuple[str, ...], code: int
) -> None:
    if arguments:
        fake_game(tree, "exit 6")
    else:
        (tree / "srcds_linux").unlink()
    assert run(*arguments).wait(SECONDS) == code


# -- the tree


def snapshot(tree: Path) -> dict[str, tuple[int, float, str]]:
    return {
        str(path.relative_to(tree)): (
            path.lstat().st_mode,
            path.lstat().st_mtime,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in [tree, *tree.rglob("*")]
    }


@pytest.mark.skipif(
    len(list((game.STATE / "game-packages").glob("*_i386.deb"))) == 0,
    reason="the i386 packages are not there yet; the first build of the stand-in game downloads them",
)
def test_builds_once_and_the_same_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    packages = game.STATE / "game-packages"
    monkeypatch.setattr(game, "STATE", tmp_path)
    (tmp_path / "game-packages").symlink_to(packages)
    tree = game.build()
    assert tree == tmp_path / "game"
    first, inode = snapshot(tree), tree.stat().st_ino
    assert game.build().stat().st_ino == inode
    (tmp_path / "game.recipe").write_text("of another recipe")
    (tmp_path / "game.new/of a killed build").mkdir(parents=True)
    umask = os.umask(0o077)
    try:
        game.build()
    finally:
        os.umask(umask)
    assert tree.stat().st_ino != inode
    assert snapshot(tree) == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["game", "game-packages", "game.lock", "game.recipe"]
    elf = (tree / "bin/srcds_linux").read_bytes()[:5]
    assert elf == b"\x7fELF\x01", "not a 32-bit program"
    assert list(tree.rglob("*.py")) == [tree / "bin/start.py"]
    assert sum(path.stat().st_size for path in tree.rglob("*")) < 30 << 20


def test_a_mirror_that_is_away_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(game, "STATE", tmp_path)
    monkeypatch.setattr(mirror, "url", lambda: f"http://127.0.0.1:{free_port()}/debian")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(game.BuildError, match=r"cannot read the i386 index of bookworm at http://127.0.0.1") as error:
        game.build()
    assert "\n" not in str(error.value)
    assert not (tmp_path / "game").exists()


def test_the_tree_is_shaped_as_steamcmd_leaves_it(installation: Path) -> None:
    for name in ("srcds_run", "srcds_linux", "left4dead2/gameinfo.txt", "left4dead2/maps/c5m5_bridge.bsp"):
        assert (installation / name).is_file(), name
    manifest = (installation / "steamapps/appmanifest_222860.acf").read_text()
    assert '\t"buildid"\t\t"' in manifest
    assert {oct(path.lstat().st_mode & 0o777) for path in installation.rglob("*.*") if path.is_file()} == {"0o644"}
    assert (installation / "srcds_run").stat().st_mode & 0o777 == 0o755
