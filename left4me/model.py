"""What an operator may declare: a host's data, typed and validated.

There are types and limits here and no defaults: every default stands, explained, in group_data/all.py.
"""

from __future__ import annotations

import math
import re
import runpy
from collections.abc import Mapping
from functools import cache
from ipaddress import AddressValueError, IPv4Address
from pathlib import Path, PurePosixPath
from typing import Annotated, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
)

from left4me_host import layout

TOOLS_OWN = (".git", ".hg", ".svn")
"""What a directory on the control machine may hold of a version control system: never sent, it may hold secrets."""
VERSION_LENGTH = 8
"""Of a layer's version: 40 bits in base32. Every character counts, as all layers' paths share one page."""
PAGE = 4096
"""Bytes that mount(2) takes as its data."""
LAYER_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"
SIZE = r"infinity|[1-9][0-9]{0,17}[KMGT]?"
ADMINS_LAYER = "left4me-admins"
"""On top of a server that has admins: leads SourceMod to the file that the deploy writes for that server."""


# What would undo what the unit, or a key of a server's own, decides; a password would be in every `ps`.
_DECIDED = frozenset({"hostname", "sv_lan", "rcon_password", "servercfgfile", "mp_gamemode", "map", "hostport"})
_NOT_ARGUMENTS = _DECIDED | {"game", "ip", "port", "maxplayers", "tickrate", "norestart", "restart", "strictportbind"}
_NOT_ARGUMENTS |= {"autoupdate", "debug", "steam_dir", "steamcmd_script", "binary", "ignoresigint"}


def _single_line(text: str) -> str:
    # Unicode has line ends of its own, and control characters would reach a terminal.
    # What else there is, ; and // too, the engine takes as it is within quotes, and that is where it goes.
    if re.search(r'["\\\0-\x1f\x7f-\x9f\u2028\u2029]', text):
        raise ValueError('may not hold a newline or other control character, a quote (") or a backslash')
    return text


def is_secret(key: str) -> bool:
    """Tell whether what a key or a cvar of this name has is not to be shown."""
    return key.lower().endswith("password")


def _cvar_value(value: object) -> object:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _cvar_name(name: str) -> str:
    if name.lower() in _DECIDED:
        raise ValueError("is decided by left4me or by a key of its own")
    return name


def _secret(secret: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[!-~]{8,64}", secret.get_secret_value()):
        raise ValueError("must be 8 to 64 characters of ASCII without blanks")
    _single_line(secret.get_secret_value())
    return secret


def _argument(word: str) -> str:
    if not re.fullmatch(r"[-+]?[\w.,:=/@-]+", word, re.ASCII) or "//" in word:
        raise ValueError("must be one word of letters, digits and _ . , : = / @ -, without //")
    name = word.lstrip("-+").lower()
    if name in _NOT_ARGUMENTS:
        raise ValueError("is decided by left4me or by a key of its own")
    if is_secret(name):
        raise ValueError("would be shown by ps to every user of the host: set it in `cvars`")
    return word


def _cfg(text: str) -> str:
    path = PurePosixPath(text)
    if (
        path.is_absolute()
        or path.parts[:1] == ("left4me",)
        or not re.fullmatch(r"(?!.*(\.\.|//))[\w./+-]+", text, re.ASCII)
    ):
        raise ValueError("must be the name of a cfg file below left4dead2/cfg, and none below left4me/")
    return text


def _layer_name(text: str) -> str:
    if text.startswith("left4me"):
        raise ValueError("is left4me's own")
    return text


def bytes_of(size: str) -> float:
    """Return a size in bytes; K, M, G and T are powers of 1024, as systemd has them."""
    power = " KMGT".find(size[-1])
    return math.inf if size == "infinity" else int(size.rstrip("KMGT")) * 1024 ** max(0, power)


def _size(text: str) -> str:
    if not re.fullmatch(SIZE, text):
        raise ValueError('must be a number of bytes with K, M, G or T, such as "2G", or "infinity"')
    return text


_STEAM_IDS = 76561197960265728
"""What a SteamID64 of an account has more than the account's number (developer.valvesoftware.com/wiki/SteamID)."""


def _steam_id(value: object) -> str:
    """Return a Steam id as SourceMod's files take it: STEAM_1:0:1234 or [U:1:2468], which a SteamID64 becomes."""
    text = str(value)
    if re.fullmatch(r"STEAM_[0-5]:[01]:[0-9]{1,10}|\[U:1:[0-9]{1,10}\]", text, re.ASCII):
        return text
    if re.fullmatch(r"7656119[0-9]{10}", text, re.ASCII) and 0 < int(text) - _STEAM_IDS < 1 << 32:
        return f"[U:1:{int(text) - _STEAM_IDS}]"
    raise ValueError("must be a Steam id, such as STEAM_1:0:1234, [U:1:2468] or 76561197960268196")


def _number(value: object) -> object:
    return int(value) if isinstance(value, str) and re.fullmatch(r"[0-9]{1,18}", value, re.ASCII) else value


def _address(text: str) -> str:
    try:
        return str(IPv4Address(text))  # the game binds IPv4 only
    except AddressValueError:
        raise ValueError("must be an IPv4 address") from None


def _absolute(text: str) -> str:
    path = PurePosixPath(text)
    if not path.is_absolute() or ".." in path.parts or not re.fullmatch(r"[\w/.+@-]+", text):
        raise ValueError("must be an absolute path of letters, digits and _ . + @ -, without ..")
    return str(path)


def _kept(text: str) -> str:
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or not path.parts or text.startswith("#") or not text.isprintable():
        raise ValueError("must be a path below the server's directory, without ..")
    return str(path)


def _into(text: str) -> str:
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or not path.parts or not re.fullmatch(r"[\w/.+-]+", text, re.ASCII):
        raise ValueError("must be a directory below the game's, such as left4dead2, without ..")
    return str(path)


def _web(text: str) -> str:
    if not re.fullmatch(r"https?://[^/@]+(/[!-~]*)?", text, re.ASCII) or not text.isprintable() or " " in text:
        raise ValueError("must be an address that begins with https:// or http://, without user and password")
    return text


def _repository(text: str) -> str:
    if re.fullmatch(r"[\w.-]+@[\w.-]+:[!-~]+", text, re.ASCII):  # scp's form, which git takes for SSH
        return text
    if text.startswith(("git://", "ssh://")) and re.fullmatch(r"\w+://([\w.-]+@)?[^/@]+(/[!-~]*)?", text, re.ASCII):
        return text
    return _web(text)


Id = Annotated[str, StringConstraints(pattern=f"^{layout.SERVER_ID}$")]
LayerName = Annotated[str, StringConstraints(pattern=f"^{LAYER_NAME}$"), AfterValidator(_layer_name)]
MapName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$")]
GameMode = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]{1,32}$")]
CvarName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$"), AfterValidator(_cvar_name)]
CvarValue = Annotated[
    str, BeforeValidator(_cvar_value), StringConstraints(max_length=250), AfterValidator(_single_line)
]
Argument = Annotated[str, StringConstraints(max_length=120), AfterValidator(_argument)]
CfgName = Annotated[str, StringConstraints(min_length=1, max_length=120), AfterValidator(_cfg)]
SteamId = Annotated[str, BeforeValidator(_steam_id)]
WorkshopItem = Annotated[int, BeforeValidator(_number), Field(ge=1)]
Secret = Annotated[SecretStr, AfterValidator(_secret)]
Port = Annotated[int, Field(ge=1024, le=65535)]
Weight = Annotated[int, Field(ge=1, le=10000)]
SystemId = Annotated[int, Field(ge=1, le=999)]
BuildName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,19}$")]
Clock = Annotated[str, StringConstraints(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$")]
RestartPolicy = Annotated[str, StringConstraints(pattern=r"^(never|when-empty|at ([01][0-9]|2[0-3]):[0-5][0-9])$")]
Line = Annotated[str, StringConstraints(min_length=1, max_length=120), AfterValidator(_single_line)]
Size = Annotated[str, AfterValidator(_size)]
Address = Annotated[str, AfterValidator(_address)]
KeptPath = Annotated[str, AfterValidator(_kept)]
Into = Annotated[str, AfterValidator(_into)]
WebAddress = Annotated[str, AfterValidator(_web)]
Repository = Annotated[str, AfterValidator(_repository)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
GitRef = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_./+-]{0,99}$")]
GroupName = Annotated[str, StringConstraints(pattern=r"^[a-z_][a-z0-9_-]{0,31}$")]
AbsolutePath = Annotated[str, AfterValidator(_absolute)]


def _unpackers(url: str) -> list[str]:
    """Return what unpacks the archive at an address, beyond Python's standard library."""
    return ["libarchive-tools:amd64"] if url.partition("?")[0].lower().endswith(".7z") else []


class _Declared(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Source(_Declared):
    named_by: ClassVar[tuple[str, ...]] = ()
    """Which fields a version's name follows from, where left4me/wanted_versions.py asks for nothing else."""

    def packages(self) -> list[str]:
        """Return what the host needs to bring it: Debian packages with their architecture."""
        return []


class _Game(_Source):
    # The one default beside group_data: a host's `game` replaces the default one whole.
    build: BuildName | None = Field(None, description="a build on the host that is to be current; None: the newest")


class GameFromSteam(_Game):
    """App 222860 from Steam, installed and updated on the host."""

    source: Literal["steamcmd"] = Field(description="from Steam, by SteamCMD")


class GameArchive(_Game):
    """A tar.gz, tar.xz, zip or 7z of an installation, that the host downloads."""

    source: Literal["archive"] = Field(description="an archive by its address")
    url: WebAddress = Field(description="where the host gets it")
    sha256: Sha256 = Field(description="of the archive; another is refused")
    strip: int = Field(ge=0, le=9, description="leading directories to leave out, until srcds_run is on top")

    def packages(self) -> list[str]:
        """Return what the host needs to bring it."""
        return _unpackers(self.url)


class GameOnHost(_Game):
    """An installation that is on the host already, such as another tool's serverfiles; only read."""

    source: Literal["host"] = Field(description="on the host already")
    path: AbsolutePath = Field(description="the directory that holds srcds_run")


class GameOnControl(_Game):
    """A directory on the machine that runs pyinfra, sent to the host."""

    source: Literal["control"] = Field(description="from this machine")
    path: str = Field(description="the directory that holds srcds_run; relative to where pyinfra is started")


Game = GameFromSteam | GameArchive | GameOnHost | GameOnControl


class _Layer(_Source):
    into: Into | None = Field(
        default=None, description="the game's directory it belongs in, such as left4dead2, or None"
    )


class LayerOnControl(_Layer):
    """A directory on the machine that runs pyinfra; only what changed is sent."""

    source: Literal["control"] = Field(description="from this machine")
    path: str = Field(description="the directory of the tree; relative to where pyinfra is started")


class LayerArchive(_Layer):
    """A tar.gz, tar.xz, zip or 7z that the host downloads."""

    named_by = ("sha256", "strip")
    source: Literal["archive"] = Field(description="an archive by its address")
    url: WebAddress = Field(description="where the host gets it")
    sha256: Sha256 = Field(description="of the archive; another is refused")
    strip: int = Field(ge=0, le=9, description="leading directories to leave out")

    def packages(self) -> list[str]:
        """Return what the host needs to bring it."""
        return _unpackers(self.url)


class LayerGit(_Layer):
    """A git repository that the host fetches."""

    named_by = ("url", "ref")
    source: Literal["git"] = Field(description="a repository")
    url: Repository = Field(description="where the host gets it")
    ref: GitRef = Field(description="a commit, or a tag, which is taken not to move")

    def packages(self) -> list[str]:
        """Return what the host needs to bring it."""
        return ["git:amd64"]


class LayerWorkshop(_Source):
    """Items of the Steam workshop, as .vpk files in left4dead2/addons; refreshed when they are updated there."""

    source: Literal["workshop"] = Field(description="Steam's workshop")
    items: tuple[WorkshopItem, ...] = Field(min_length=1, description="their numbers")
    into: ClassVar[None] = None


Layer = Annotated[LayerOnControl | LayerArchive | LayerGit | LayerWorkshop, Field(discriminator="source")]


class Server(_Declared):
    """One game server: left4me-server@<id>.service."""

    port: Port | None = Field(description="UDP for the game and A2S, TCP for RCON; None: the next free of port_range")
    hostname: Line = Field(description="the name that players see in the browser")
    map: MapName = Field(description="the map it starts with; a lobby may change it")
    gamemode: GameMode = Field(description="mp_gamemode at the start: coop, versus, mutation12 …")
    max_players: int = Field(ge=1, le=32, description="player slots")
    tickrate: int = Field(ge=10, le=128, description="ticks per second; above 30 the game needs a mod for it")
    layers: tuple[LayerName, ...] = Field(description="names of the host's layers, the topmost first")
    exec: tuple[CfgName, ...] = Field(description="cfg files that layers brought, executed at each map load")
    cvars: dict[CvarName, CvarValue] = Field(description="set after those files, at each map load")
    arguments: tuple[Argument, ...] = Field(description="more words for the game's command line")
    admins: tuple[SteamId, ...] = Field(description="SourceMod's admins with all rights, by their Steam ids")
    rcon_password: Secret | None = Field(description="None: one is made on the host")
    memory_max: Size = Field(description="bytes, as systemd's MemoryMax=")
    cpu_weight: Weight = Field(description="share of the CPU among the servers, as systemd's CPUWeight=")
    nice: int = Field(ge=-20, le=19, description="as systemd's Nice=")
    keep: tuple[KeptPath, ...] = Field(description="paths that a reset keeps, such as left4dead2/cfg/banned_user.cfg")
    build: BuildName | None = Field(description="a build on the host that this server has; None: the current one")
    restart: RestartPolicy = Field(description="what an update does: never, when-empty, or at 05:30 of the host's time")
    state: Literal["running", "stopped", "absent"] = Field(description="absent: removed, whoever plays there")

    @property
    def lowers(self) -> tuple[str, ...]:
        """The layers over the game, the topmost first, with left4me's own."""
        return ((ADMINS_LAYER,) if self.admins else ()) + self.layers


@cache
def shipped_server_defaults() -> dict[str, object]:
    """Return server_defaults of group_data/all.py as shipped, which a fleet's own are merged over."""
    data = runpy.run_path(str(Path(__file__).parent.parent / "group_data/all.py"))
    return {key: tuple(each) if isinstance(each, list) else each for key, each in data["server_defaults"].items()}


class Host(_Declared):
    """Everything that a host's data says."""

    game: Annotated[Game, Field(discriminator="source", description="where it comes from")]
    steamcmd_url: WebAddress = Field(description="where a host gets SteamCMD")
    steamcmd_sha256: Sha256 | None = Field(description="of that archive; another is refused. None: any is taken")
    update_at: Clock | None = Field(description="when a host asks Steam for a new build each day, in its own time")
    builds_kept: int = Field(ge=0, le=100, description="how many builds stay that nothing uses, for a way back")
    trial_port: Port = Field(description="where a build is tried before it becomes current, outside of port_range")
    trial_server: Id | None = Field(description="the server with whose layers a build is tried as well, or None")
    layers: dict[LayerName, Layer] = Field(description="where each layer comes from, by its name")
    workshop_api: WebAddress = Field(description="base address of Steam's web API, which tells of workshop items")
    address: Address = Field(description="what the servers bind; 0.0.0.0 is every IPv4 address")
    port_range: tuple[Port, Port] = Field(description="the first and the last port that servers may have")
    uid: SystemId = Field(description="of the user left4me")
    gid: SystemId = Field(description="of the group left4me")
    memory_max: Size = Field(description="bytes, of all servers together: MemoryMax= of left4me.slice")
    cpu_weight: Weight = Field(description="share of the CPU against the rest of the host: left4me.slice")
    cpu_quota: Annotated[int, Field(ge=1, le=100000)] | None = Field(description="percent of one CPU, or None")
    operators: GroupName | None = Field(description="the group that may run l4d2ctl with sudo, or None")
    webhook: WebAddress | None = Field(description="told when a server fails, as Discord takes it, or None")
    attic_keep: int = Field(ge=1, le=1000, description="how many resets of each server can be undone")
    servers: dict[Id, Server] = Field(description="the servers, by their ids")

    @property
    def present(self) -> dict[str, Server]:
        """The servers that are to be on the host, running or stopped."""
        return {server_id: server for server_id, server in self.servers.items() if server.state != "absent"}

    @property
    def test_instances(self) -> dict[str, Server]:
        """The instances that try a build before it becomes current."""
        own = {"port": self.trial_port, "hostname": "left4me: trial of a build", "state": "stopped", "restart": "never"}
        own |= {"admins": (), "rcon_password": None, "keep": (), "build": None}
        bare = {"map": "c1m1_hotel", "gamemode": "coop", "max_players": 4, "tickrate": 30, "layers": (), "exec": ()}
        bare |= {"cvars": {}, "arguments": (), "memory_max": "infinity", "cpu_weight": 100, "nice": 0}
        plain = Server.model_validate({**shipped_server_defaults(), **bare, **own})
        modded = self.servers[self.trial_server].model_copy(update=own) if self.trial_server else plain
        return {layout.BARE: plain, layout.MODDED: modded}

    @property
    def instances(self) -> dict[str, Server]:
        """All that has files on the host: the servers that are to be there, and the test instances."""
        return {**self.present, **self.test_instances}

    def with_ports(self, known: Mapping[str, int]) -> Host:
        """Return this host with a port for each of its servers: its own, the one it is known by, or the next free one.

        `known` are the ports on the host by server, also of servers that are not declared.
        """
        first, last = self.port_range
        taken = {server.port for server in self.present.values()}
        ports: dict[str, int | None] = {}
        for server_id, server in self.present.items():
            port = known.get(server_id)
            if server.port is None and port and first <= port <= last and port not in taken:
                taken.add(port)
                ports[server_id] = port
            else:
                ports[server_id] = server.port
        # Others that are known may have somebody who runs there still: they come last. Validation saw that all fit.
        absent = set(self.servers) - set(self.present)
        others = {port for server_id, port in known.items() if server_id not in absent}
        free = iter(sorted(set(range(first, last + 1)) - taken, key=lambda port: (port in others, port)))
        ports = {server_id: port or next(free) for server_id, port in ports.items()}
        servers = {
            server_id: server.model_copy(update={"port": ports.get(server_id, server.port)})
            for server_id, server in self.servers.items()
        }
        return self.model_copy(update={"servers": servers})
