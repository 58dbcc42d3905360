"""The command line, the port and the loop of the stand-in game."""

import contextlib
import mmap
import os
import select
import signal
import socket

from . import query
from .game import Game, fatal
from .rcon import Connection, ProtocolError

PORTS_TRIED = 10
"""Without -strictportbind: how many ports, from the wanted one on, are tried."""

CLIENT_SECONDS = 5.0
"""How long an RCON client may refuse to take its answer."""


def parse(arguments: list[str]) -> tuple[dict[str, str], list[list[str]]]:
    """Return `-name value` as a dictionary, and each `+command value …` as words; both in any order, any names."""
    options: dict[str, str] = {}
    commands: list[list[str]] = []
    option = ""
    for argument in arguments:
        if argument.startswith("-"):
            option = argument[1:]
            options[option] = ""
        elif argument.startswith("+"):
            option = ""
            commands.append([argument[1:]])
        elif option:
            options[option] = argument
        elif commands:
            commands[-1].append(argument)
    return options, commands


def bind(address: str, port: int, strict: bool) -> tuple[socket.socket, socket.socket]:
    """Return the UDP socket and the listening TCP socket, both on one port. Raises SystemExit."""
    reason = ""
    for tried in range(port, port + (1 if strict else PORTS_TRIED)):
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            udp.bind((address, tried))
            tcp.bind((address, tried))
            tcp.listen()
        except OSError as error:
            reason = f"{address}:{tried}: {error.strerror}"
            print(f"WARNING: UDP_OpenSocket: bind: {reason}", flush=True)
            udp.close()
            tcp.close()
        else:
            return udp, tcp
    raise fatal(f"Couldn't allocate dedicated server IP port: {reason}")


class Server:
    """A game on its port."""

    def __init__(self, game: Game, interrupts: int, udp: socket.socket, tcp: socket.socket) -> None:
        """Take a file descriptor that becomes readable when a signal came in, and the two sockets."""
        self._game = game
        self._interrupts = interrupts
        self._udp = udp
        self._tcp = tcp
        self._challenges = query.Challenges()
        self._players: set[tuple[str, int]] = set()
        self._clients: dict[socket.socket, Connection] = {}
        self._console: list[int] = [0]
        self._split = 0

    def serve(self) -> None:
        """Answer until the game ends, which is a SystemExit."""
        while True:
            sources: list[socket.socket | int] = [
                self._udp,
                self._tcp,
                self._interrupts,
                *self._clients,
                *self._console,
            ]
            for source in select.select(sources, [], [])[0]:
                if source is self._udp:
                    self._query()
                elif source is self._tcp:
                    self._accept()
                elif isinstance(source, socket.socket):
                    self._rcon(source)
                elif source == self._interrupts:
                    self._interrupted()
                else:
                    self._typed()
            self.do_later()

    def do_later(self) -> None:
        """Do what commands put off. Datagrams that came in meanwhile were for a server that was away."""
        while self._game.later:
            self._game.later.pop(0)()
            while select.select([self._udp], [], [], 0)[0]:
                self._udp.recv(2048)

    def _query(self) -> None:
        packet, client = self._udp.recvfrom(2048)
        question = query.parse(packet)
        if question is None:
            self._play(packet, client)
            return
        kind, brought = question
        challenge = self._challenges.of(client)
        answer = self._game.answer(kind)
        if answer is None:
            return
        if brought != challenge:
            answer = query.challenge(challenge)
        self._split += 1
        for part in query.packets(answer, self._split):
            self._send(part, client)

    def _send(self, packet: bytes, client: tuple[str, int]) -> None:
        """Send a packet if there is a way to the client; a spoofed one may have port 0."""
        with contextlib.suppress(OSError):
            self._udp.sendto(packet, client)

    def _play(self, packet: bytes, client: tuple[str, int]) -> None:
        """Let a client join, and send back each packet of one that plays, as the game's own packets come and go."""
        step, challenge = query.joins(packet), self._challenges.of(client)
        if step == query.GET_CHALLENGE:
            self._send(query.challenge(challenge), client)
        elif step == query.CONNECT and packet[5:9] == challenge:
            self._players.add(client)
            self._send(query.ACCEPTED, client)
        elif not packet.startswith((query.SINGLE, query.SPLIT)) and client in self._players:
            self._send(packet, client)

    def _accept(self) -> None:
        client, (host, port) = self._tcp.accept()
        client.settimeout(CLIENT_SECONDS)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # each packet by itself, as srcds sends them

        def execute(command: str) -> str:
            self._game.log(f'rcon from "{host}:{port}": command "{command}"')
            return self._game.console.execute(command)

        cvars = self._game.console.cvars
        self._clients[client] = Connection(lambda: cvars["rcon_password"], execute)

    def _rcon(self, client: socket.socket) -> None:
        try:
            data = client.recv(8192)
            if data:
                for answer in self._clients[client].feed(data):
                    client.sendall(answer)
                return
        except (OSError, ProtocolError) as error:
            self._game.log(f"rcon: connection closed: {error}")
        del self._clients[client]
        client.close()

    def _interrupted(self) -> None:
        os.read(self._interrupts, 64)
        if not self._game.console.number("standin_ignore_sigint"):
            self._game.shut_down()

    def _typed(self) -> None:
        typed = os.read(0, 4096)
        if not typed:
            self._console = []
        print(self._game.console.execute(typed.decode(errors="replace")), end="", flush=True)


def watch_interrupts() -> int:
    """Return a file descriptor that becomes readable at a SIGINT, unless whoever started us had it ignored."""
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.set_wakeup_fd(writable)
        signal.signal(signal.SIGINT, lambda number, frame: None)
    return readable


def main(arguments: list[str]) -> int:
    """Run the game in the installation that is the working directory. Ends in SystemExit."""
    interrupts = watch_interrupts()
    options, commands = parse(arguments)
    game = Game(options.get("game") or "left4dead2", options)
    console = game.console
    said = console.run(["exec", "valve.rc"])
    for words in commands:
        said += console.run(words)
    print(said, end="", flush=True)
    if console.number("standin_exit_at_start"):
        return int(console.number("standin_exit_at_start"))
    # A SIGINT during the delay is seen right after it; the loop then ends before anything is answered.
    select.select([interrupts], [], [], console.number("standin_start_delay"))
    with open(os.path.join(game.directory, "pak01_dir.vpk"), "rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    address = options.get("ip") or console.cvars["ip"]
    udp, tcp = bind(address, int(options.get("port") or console.cvars["hostport"]), "strictportbind" in options)
    game.port = udp.getsockname()[1]
    server = Server(game, interrupts, udp, tcp)
    server.do_later()
    print(f"Server is on {address}:{game.port}; {len(mapping)} bytes mapped", flush=True)
    server.serve()
    return 0
