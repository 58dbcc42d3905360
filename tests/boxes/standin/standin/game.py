"""The game's state and its console commands: the real ones, and those of the tests, which begin with `standin_`.

Of the tests' own, these are set like cvars, at any time or on the command line (`+standin_start_delay 2`):

    standin_start_delay S      seconds between the start and the port
    standin_exit_at_start N    end at once with exit code N, if it is not 0
    standin_map_seconds S      how long a map change takes; nothing is answered meanwhile, SIGINT neither
    standin_ignore_sigint 1    SIGINT does nothing
    standin_segv_on_quit 1     a clean quit, then SIGSEGV

and these are commands:

    standin_players N                     N players with made-up names, scores and times, instead of those there are
    standin_player NAME SCORE SECONDS     one player more
    standin_bots N                        N bots
    standin_sourcetv 0|1|2                SourceTV: absent, counted as a player, counted as a player and a bot
    standin_hang SECONDS|forever          the process lives and does nothing, not even end at a SIGINT
    standin_busy SECONDS                  take all CPU time there is, and do nothing else
    standin_crash [SIGNAL]                die of a signal (default SEGV)
    standin_leak MB                       take memory, and use it
"""

import os
import signal
import sys
import time
from collections.abc import Callable

from . import query
from .console import RULES, Console

OWN_CVARS = [
    "standin_start_delay",
    "standin_exit_at_start",
    "standin_map_seconds",
    "standin_ignore_sigint",
    "standin_segv_on_quit",
]


def fatal(message: str) -> SystemExit:
    """Return what ends the game with a message and exit code 1."""
    print(message, file=sys.stderr, flush=True)
    return SystemExit(1)


class Player:
    """Somebody on the server, since `seconds` ago."""

    def __init__(self, name: str, score: int, seconds: float) -> None:
        """Let the time run from now on."""
        self.name = name
        self.score = score
        self._joined = time.monotonic() - seconds

    def row(self) -> tuple[str, int, float]:
        """Return name, score and seconds of play, as A2S_PLAYER tells them."""
        return self.name, self.score, time.monotonic() - self._joined


class Game:
    """One server: reads and writes below its directory, and knows nothing of sockets."""

    def __init__(self, directory: str, options: dict[str, str]) -> None:
        """Take the mod's directory (`left4dead2`) and the options of the command line."""
        self.directory = directory
        self.options = options
        self.map = ""
        self.port = 0
        self.players: list[Player] = []
        self.bots: list[Player] = []
        self.tv = 0
        self.later: list[Callable[[], None]] = []
        """What is done once the answer to the command is out."""
        self.console = Console(os.path.join(directory, "cfg"))
        self.console.cvars.update(dict.fromkeys(OWN_CVARS, "0"))
        for name, value in vars(Game).items():
            if name.startswith("_do_"):
                self.console.commands[name[4:]] = value.__get__(self)
        for alias, name in (("exit", "quit"), ("changelevel", "map")):
            self.console.commands[alias] = self.console.commands[name]
        self._leak: list[bytearray] = []
        self._log = self._open_log()
        self.version = self._read_version()
        self._write_state()

    # -- files

    def _open_log(self) -> int:
        """Return a new log, which stays open: one of the things that hold the overlay."""
        logs = os.path.join(self.directory, "logs")
        try:
            os.makedirs(logs, exist_ok=True)
            for number in range(1000):
                path = os.path.join(logs, time.strftime(f"L%m%d{number:03}.log"))
                if not os.path.exists(path):
                    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise fatal(f"cannot write below {logs}: {error}") from error
        raise fatal(f"no free name for a log in {logs}")

    def log(self, message: str) -> None:
        """Write a line to the log, as the game does with `log on`."""
        os.write(self._log, f"{time.strftime('L %m/%d/%Y - %H:%M:%S')}: {message}\n".encode())

    def _read_version(self) -> str:
        with open(os.path.join(self.directory, "steam.inf"), encoding="utf-8") as file:
            fields = dict(line.strip().split("=", 1) for line in file if "=" in line)
        return fields["PatchVersion"]

    def _write_state(self) -> None:
        """Count this start in a file of our own, and write to one that the installation brought."""
        path = os.path.join(self.directory, "standin.state")
        try:
            with open(path, "a+") as file:
                file.seek(0)
                starts = int(file.read() or "0")
                file.truncate(0)
                file.write(f"{starts + 1}\n")
            os.utime(os.path.join(self.directory, "modelsounds.cache"))
        except OSError as error:
            raise fatal(f"cannot write below {self.directory}: {error}") from error

    # -- what is asked from outside

    @property
    def max_players(self) -> int:
        """How many may play."""
        return int(self.options.get("maxplayers", "8"))

    def answer(self, kind: int) -> bytes | None:
        """Return the answer to a query, or None while no map runs."""
        if not self.map:
            return None
        if kind == query.INFO:
            return self._info()
        if kind == query.PLAYER:
            rows = [player.row() for player in self.players + self.bots]
            return query.players(rows + ([(self.console.cvars["tv_name"], 0, 1.0)] if self.tv else []))
        return query.rules({name: self.console.cvars[name] for name in RULES})

    def _info(self) -> bytes:
        cvars = self.console.cvars
        return query.info(
            hostname=cvars["hostname"],
            map_name=self.map,
            players=len(self.players) + len(self.bots) + (1 if self.tv else 0),
            max_players=self.max_players,
            bots=len(self.bots) + (1 if self.tv == 2 else 0),
            password=cvars["sv_password"] != "",
            secure=cvars["sv_lan"] == "0" and "insecure" not in self.options,
            version=self.version,
            port=self.port,
            steam_id=85568392920039424 + self.port,
            keywords=",".join(word for word in (cvars["mp_gamemode"], cvars["sv_tags"]) if word),
            tv=(int(self.console.number("tv_port")), cvars["tv_name"]) if self.tv else None,
        )

    # -- ends

    def shut_down(self) -> None:
        """Quit: raises SystemExit(0), or dies as a server with SourceMod may."""
        self.log("Server shutdown")
        os.close(self._log)
        if self.console.number("standin_segv_on_quit"):
            die("SEGV")
        raise SystemExit(0)

    # -- real commands

    def _do_quit(self, values: list[str]) -> str:
        self.later.append(self.shut_down)
        return ""

    def _do_map(self, values: list[str]) -> str:
        if not values:
            return "map <levelname>: start the server on the specified map"
        name = values[0].removesuffix(".bsp")
        if "/" in name or not os.path.isfile(os.path.join(self.directory, "maps", f"{name}.bsp")):
            return f"CModelLoader::Map_IsValid: No such map '{name}'\nmap load failed: {name} not found or invalid"

        def load() -> None:
            self.log(f'Loading map "{name}"')
            time.sleep(self.console.number("standin_map_seconds") if self.map else 0)
            self.map = name
            said = self.console.run(["exec", self.console.cvars["servercfgfile"]])
            print(said, end="", flush=True)
            self.log(f'Started map "{name}"')

        self.later.append(load)
        return ""

    def _do_status(self, values: list[str]) -> str:
        cvars = self.console.cvars
        address = f"{self.options.get('ip', '0.0.0.0')}:{self.port}"
        secure = "insecure" if cvars["sv_lan"] != "0" else "secure"
        lines = [
            f"hostname: {cvars['hostname']}",
            f"version : {self.version} 9477 {secure}  (unknown)",
            f"udp/ip  : {address} [ public n/a ]",
            "os      : Linux Dedicated",
            f"map     : {self.map}",
            f"players : {len(self.players)} humans, {len(self.bots)} bots ({self.max_players} max)"
            f" ({'not hibernating' if self.players else 'hibernating'}) (unreserved)",
            "",
            "# userid name uniqueid connected ping loss state rate adr",
        ]
        for number, player in enumerate(self.players, start=2):
            seconds = int(player.row()[2])
            steam_id, played = f"STEAM_1:0:{number}", f"{seconds // 60:02}:{seconds % 60:02}"
            lines.append(
                f'#{number:3} {number - 1} "{player.name}" {steam_id} {played} 50 0 active 30000 loopback:27005'
            )
        lines += [f'#{number:3} "{bot.name}" BOT active' for number, bot in enumerate(self.bots, start=100)]
        return "\n".join([*lines, "#end"])

    def _do_users(self, values: list[str]) -> str:
        rows = [f'{number}:{number}:"{player.name}"' for number, player in enumerate(self.players, start=2)]
        return "\n".join(["<slot:userid:name>", *rows, f"{len(rows)} users"])

    def _do_say(self, values: list[str]) -> str:
        self.log(f'"Console<0><Console><Console>" say "{" ".join(values)}"')
        said = f"Console: {' '.join(values)}"
        print(said, flush=True)  # what is said over RCON is on the server's own console too
        return said

    def _do_version(self, values: list[str]) -> str:
        return f"Protocol version 2042\nExe version {self.version} (left4dead2)"

    def _do_log(self, values: list[str]) -> str:
        return "" if values else "Usage:  log < on | off >"

    # -- the tests' own commands

    def _do_standin_players(self, values: list[str]) -> str:
        self.players = [Player(f"Player {n}", 10 * n, 60.0 * n) for n in range(1, int(values[0]) + 1)]
        return ""

    def _do_standin_player(self, values: list[str]) -> str:
        name, score, seconds = values
        self.players.append(Player(name, int(score), float(seconds)))
        return ""

    def _do_standin_bots(self, values: list[str]) -> str:
        names = ("Nick", "Rochelle", "Coach", "Ellis")
        self.bots = [Player(names[n % 4], 0, 30.0) for n in range(int(values[0]))]
        return ""

    def _do_standin_sourcetv(self, values: list[str]) -> str:
        self.tv = int(values[0])
        self.console.cvars["tv_enable"] = "1" if self.tv else "0"
        return ""

    def _do_standin_hang(self, values: list[str]) -> str:
        seconds = float("inf") if values[0] == "forever" else float(values[0])
        end = time.monotonic() + seconds

        def hang() -> None:
            while time.monotonic() < end:
                time.sleep(min(3600, end - time.monotonic()))

        self.later.append(hang)
        return ""

    def _do_standin_busy(self, values: list[str]) -> str:
        end = time.monotonic() + float(values[0])

        def spin() -> None:
            while time.monotonic() < end:
                pass

        self.later.append(spin)
        return ""

    def _do_standin_crash(self, values: list[str]) -> str:
        name = values[0].removeprefix("SIG") if values else "SEGV"
        self.later.append(lambda: die(name))
        return ""

    def _do_standin_leak(self, values: list[str]) -> str:
        self._leak.append(bytearray(b"x") * (int(values[0]) << 20))
        return ""


def die(name: str) -> None:
    """Die of a signal, given without its SIG."""
    number = signal.Signals[f"SIG{name}"]
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
