"""Defines the schema of a host's data: types and limits. group_data/all.py explains all defaults."""

from __future__ import annotations

import math
import re
import runpy
from collections.abc import Mapping
from functools import cache
from ipaddress import AddressValueError, IPv4Address, IPv4Network, ip_address
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    with_config,
)
from typing_extensions import TypedDict

from left4me_host import layout

TOOLS_OWN = (".git", ".hg", ".svn")
"""Directories of version control systems, which are never sent: they may hold secrets."""
VERSION_LENGTH = 8
"""Characters in a layer version's name: 40 bits in base32. All layers' paths must fit into PAGE."""
PAGE = 4096
"""The limit of mount(2)'s data, in bytes."""
ADMINS_LAYER = "left4me-admins"
"""The top layer of a server with admins points SourceMod to the admin file that the deploy writes."""

# Cvars and arguments that the unit or another key sets.
_DECIDED = frozenset({"hostname", "sv_lan", "rcon_password", "servercfgfile", "mp_gamemode", "map", "hostport"})
_NOT_ARGUMENTS = _DECIDED | {"game", "ip", "port", "maxplayers", "tickrate", "norestart", "restart", "strictportbind"}
_NOT_ARGUMENTS |= {"autoupdate", "debug", "steam_dir", "steamcmd_script", "binary", "ignoresigint"}


def _single_line(text: str) -> str:
    # Unicode has its own line separators, and control characters would reach a terminal. The engine takes all other
    # characters literally within quotes, even ; and //.
    if re.search(r'["\\\0-\x1f\x7f-\x9f\u2028\u2029]', text):
        raise ValueError('must not contain a newline or other control character, a quote (") or a backslash')
    return text


def _one_line(value: object) -> object:
    if not isinstance(value, str) or not re.fullmatch(r"[^\r\n\0]+", value):
        raise ValueError("must be a string of one line that is not empty, or removed")
    return value


def _expanded(text: str) -> str:
    if text.startswith("~"):
        raise ValueError("must be without ~, which pyinfra does not expand")
    return text


def is_secret(key: str) -> bool:
    """Return whether the value of a key or cvar with this name must be hidden."""
    return key.lower().endswith("password")


def _cvar_value(value: object) -> object:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _cvar_name(name: str) -> str:
    if name.lower() in _DECIDED:
        raise ValueError("is set by left4me or by another key: remove it")
    return name


def _secret(secret: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[!-~]{8,64}", secret.get_secret_value()):
        raise ValueError("must be 8 to 64 printable ASCII characters without spaces")
    _single_line(secret.get_secret_value())
    return secret


def _argument(word: str) -> str:
    if not re.fullmatch(r"[-+]?[\w.,:=/@-]+", word, re.ASCII) or "//" in word:
        raise ValueError("must be one word of letters, digits and _ . , : = / @ -, without //")
    name = word.lstrip("-+").lower()
    if name in _NOT_ARGUMENTS:
        raise ValueError("is set by left4me or by another key: remove it")
    if is_secret(name):
        raise ValueError("would be visible in ps to every user of the host: set it in `cvars`")
    return word


def _cfg(text: str) -> str:
    path = PurePosixPath(text)
    if (
        path.is_absolute()
        or path.parts[:1] == ("left4me",)
        or not re.fullmatch(r"(?!.*(\.\.|//))[\w./+-]+", text, re.ASCII)
    ):
        raise ValueError("must be a path relative to left4dead2/cfg (letters, digits and _ . / + -), not in left4me/")
    return text


def _layer_name(text: str) -> str:
    if text.startswith("left4me"):
        raise ValueError("is reserved: choose a name that does not start with left4me")
    return text


def bytes_of(size: str) -> float:
    """Return a size in bytes; K, M, G and T are powers of 1024, as in systemd.

    Returns infinity for a percentage, because the host's memory is not known here.
    """
    power = " KMGT".find(size[-1])
    return math.inf if size == "infinity" or size.endswith("%") else int(size.rstrip("KMGT")) * 1024 ** max(0, power)


def _size(text: str) -> str:
    if not re.fullmatch(r"infinity|[1-9][0-9]{0,17}[KMGT]?", text):
        raise ValueError('must be a size such as "2G" (bytes, or K, M, G or T), or "infinity"')
    return text


def _disk_size(text: str) -> str:
    _size(text)
    if text != "infinity" and not 64 << 20 <= bytes_of(text) <= 1 << 50:
        raise ValueError('must be at least "64M" and at most "1024T", or "infinity"')
    return text


def _size_or_percent(text: str) -> str:
    return text if re.fullmatch(r"[1-9][0-9]?%", text, re.ASCII) else _size(text)


_STEAM_IDS = 76561197960265728
"""A SteamID64 minus this is the account number (developer.valvesoftware.com/wiki/SteamID)."""


def _steam_id(value: object) -> str:
    """Return a Steam ID as SourceMod's files accept it; a SteamID64 is converted to the form [U:1:2468]."""
    text = str(value)
    if re.fullmatch(r"STEAM_[0-5]:[01]:[0-9]{1,10}|\[U:1:[0-9]{1,10}\]", text, re.ASCII):
        return text
    if re.fullmatch(r"7656119[0-9]{10}", text, re.ASCII) and 0 < int(text) - _STEAM_IDS < 1 << 32:
        return f"[U:1:{int(text) - _STEAM_IDS}]"
    raise ValueError("must be a Steam ID, such as STEAM_1:0:1234, [U:1:2468] or 76561197960268196")


def _some(items: tuple[int, ...]) -> tuple[int, ...]:
    # Not pydantic's min_length, which counts only valid items and so reports an invalid one twice.
    if not items:
        raise ValueError("must have at least one item")
    return items


def _number(value: object) -> object:
    return int(value) if isinstance(value, str) and re.fullmatch(r"[0-9]{1,18}", value, re.ASCII) else value


def _address(text: str) -> str:
    try:
        return str(IPv4Address(text))  # the game binds IPv4 only
    except AddressValueError:
        raise ValueError("must be an IPv4 address") from None


def _network(text: str) -> str:
    try:
        return str(IPv4Network(text)).removesuffix("/32")
    except ValueError:
        raise ValueError("must be an IPv4 address, or a network such as 192.0.2.0/24") from None


def _endpoint(text: str) -> str:
    address, _, port = text.partition(":")
    try:
        IPv4Address(address)
    except AddressValueError:
        address = ""
    if not address or not re.fullmatch("[1-9][0-9]{0,4}", port, re.ASCII) or int(port) > 65535:
        raise ValueError("must be an IPv4 address and a port, such as 127.0.0.1:3306")
    return text


def _listen(text: str) -> str:
    address, _, port = text.rpartition(":")
    try:
        parsed = ip_address(address.removeprefix("[").removesuffix("]"))
    except ValueError:
        parsed = None
    wanted = f"[{parsed}]" if parsed and parsed.version == 6 else str(parsed)
    if address.lower() != wanted or "%" in wanted or not re.fullmatch("[1-9][0-9]{0,4}", port, re.ASCII):
        raise ValueError("must be an IPv4 address or an IPv6 address in brackets, and a port, such as 127.0.0.1:9090")
    if int(port) > 65535:
        raise ValueError("has no valid port: the highest is 65535")
    return f"{wanted}:{port}"


def _absolute(text: str) -> str:
    path = PurePosixPath(text)
    if not path.is_absolute() or ".." in path.parts or not re.fullmatch(r"[\w/.+@-]+", text):
        raise ValueError("must be an absolute path of letters, digits and _ . + @ -, without ..")
    return str(path)


def _kept(text: str) -> str:
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or not path.parts or text.startswith("#") or not text.isprintable():
        raise ValueError("must be a path relative to the game's directory, without ..")
    return str(path)


def _into(text: str) -> str:
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or not path.parts or not re.fullmatch(r"[\w/.+-]+", text, re.ASCII):
        raise ValueError("must be a directory relative to the game's, such as left4dead2, without ..")
    return str(path)


def _web(text: str) -> str:
    if not re.fullmatch(r"https?://[^/@]+(/[!-~]*)?", text, re.ASCII) or not text.isprintable() or " " in text:
        raise ValueError("must be an https:// or http:// URL without user and password")
    return text


def _page(text: str) -> str:
    # Browsers take http only from localhost for secure; Cockpit redirects others to https.
    host = r"https://([A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\])|http://(localhost|127\.0\.0\.1|\[::1\])"
    if not re.fullmatch(rf"({host})(:[1-9][0-9]{{0,4}})?(/[\w./~%-]*)?", text, re.ASCII):
        raise ValueError("must be an https:// URL without user and password, or http://localhost:PORT")
    return text.rstrip("/")


def _repository(text: str) -> str:
    if re.fullmatch(r"[\w.-]+@[\w.-]+:[!-~]+", text, re.ASCII):  # git's scp-like form of an SSH URL
        return text
    if text.startswith(("git://", "ssh://")) and re.fullmatch(r"\w+://([\w.-]+@)?[^/@]+(/[!-~]*)?", text, re.ASCII):
        return text
    return _web(text)


Id = Annotated[str, StringConstraints(pattern=f"^{layout.SERVER_ID}$")]
LayerName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"), AfterValidator(_layer_name)]
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
SysctlName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]+(\.[a-z0-9_-]+)+$")]
Clock = Annotated[str, StringConstraints(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$")]
RestartPolicy = Annotated[str, StringConstraints(pattern=r"^(never|when-empty|at ([01][0-9]|2[0-3]):[0-5][0-9])$")]
Line = Annotated[str, StringConstraints(min_length=1, max_length=120), AfterValidator(_single_line)]
Size = Annotated[str, AfterValidator(_size)]
DiskSize = Annotated[str, AfterValidator(_disk_size)]
SizeOrPercent = Annotated[str, AfterValidator(_size_or_percent)]
Address = Annotated[str, AfterValidator(_address)]
Network = Annotated[str, AfterValidator(_network)]
Endpoint = Annotated[str, AfterValidator(_endpoint)]
Rate = Annotated[int, Field(ge=1, le=100000)]
Listen = Annotated[str, AfterValidator(_listen)]
PageAddress = Annotated[str, StringConstraints(max_length=200), AfterValidator(_page)]
KeptPath = Annotated[str, AfterValidator(_kept)]
Into = Annotated[str, AfterValidator(_into)]
WebAddress = Annotated[str, AfterValidator(_web)]
Repository = Annotated[str, AfterValidator(_repository)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
GitRef = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_./+-]{0,99}$")]
GroupName = Annotated[str, StringConstraints(pattern=r"^[a-z_][a-z0-9_-]{0,31}$")]
AbsolutePath = Annotated[str, AfterValidator(_absolute)]


OneLine = Annotated[str, BeforeValidator(_one_line)]


@with_config(ConfigDict(strict=True))
class Connection(TypedDict, total=False):
    """pyinfra's keys that describe the connection; everything that reaches a host follows them."""

    ssh_hostname: OneLine
    ssh_port: Annotated[int, Field(ge=1, le=65535)]
    ssh_user: OneLine
    ssh_password: OneLine
    ssh_key: OneLine
    ssh_key_password: OneLine
    ssh_allow_agent: bool
    ssh_look_for_keys: bool
    ssh_forward_agent: bool
    ssh_config_file: Annotated[OneLine, AfterValidator(_expanded)]
    ssh_known_hosts_file: OneLine
    ssh_strict_host_key_checking: Literal["yes", "no", "off", "accept-new"]  # not "ask": nobody is asked
    ssh_connect_retries: Annotated[int, Field(ge=0, le=99)]
    _sudo: bool
    _sudo_password: OneLine


class PyinfraKeys(Connection, total=False):
    """The keys in a host's data that belong to pyinfra: the connection, and arguments of all operations."""

    _env: Any
    _timeout: Annotated[int, Field(ge=1)]


def _unpackers(url: str) -> list[str]:
    """Return the Debian packages that unpack the archive at a URL, beyond Python's standard library."""
    return ["libarchive-tools:amd64"] if url.partition("?")[0].lower().endswith(".7z") else []


class _Declared(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Source(_Declared):
    named_by: ClassVar[tuple[str, ...]] = ()
    """The fields that determine a version's name, if fields suffice (see wanted_versions.py)."""

    def packages(self) -> list[str]:
        """Return the Debian packages that the host needs to fetch this source, with their architecture."""
        return []


class _Game(_Source):
    # A default outside group_data, since a host's `game` replaces the whole default.
    build: BuildName | None = Field(None, description="the build on the host to make current; None: the newest")


class GameFromSteam(_Game):
    """App 222860 from Steam, installed and updated on the host."""

    source: Literal["steamcmd"] = Field(description="from Steam, by SteamCMD")


class GameArchive(_Game):
    """A tar.gz, tar.xz, zip or 7z of an installation, which the host downloads."""

    source: Literal["archive"] = Field(description="an archive by its URL")
    url: WebAddress = Field(description="URL that the host downloads")
    sha256: Sha256 = Field(description="checksum of the archive")
    strip: int = Field(ge=0, le=9, description="leading directories to remove, so that srcds_run is on top")

    def packages(self) -> list[str]:
        return _unpackers(self.url)


class GameOnHost(_Game):
    """An installation that is already on the host, such as another tool's serverfiles; only read."""

    source: Literal["host"] = Field(description="already on the host")
    path: AbsolutePath = Field(description="the directory that holds srcds_run")


class GameOnControl(_Game):
    """A directory on the machine that runs pyinfra, sent to the host."""

    source: Literal["control"] = Field(description="from this machine")
    path: str = Field(description="the directory that holds srcds_run; relative to pyinfra's working directory")


Game = GameFromSteam | GameArchive | GameOnHost | GameOnControl


class _Layer(_Source):
    into: Into | None = Field(default=None, description="the game's directory for the layer, such as left4dead2")


class LayerOnControl(_Layer):
    """A directory on the machine that runs pyinfra; only changes are sent."""

    source: Literal["control"] = Field(description="from this machine")
    path: str = Field(description="the layer's directory; relative to pyinfra's working directory")


class LayerArchive(_Layer):
    """A tar.gz, tar.xz, zip or 7z, which the host downloads."""

    named_by = ("sha256", "strip")
    source: Literal["archive"] = Field(description="an archive by its URL")
    url: WebAddress = Field(description="URL that the host downloads")
    sha256: Sha256 = Field(description="checksum of the archive")
    strip: int = Field(ge=0, le=9, description="leading directories to remove")

    def packages(self) -> list[str]:
        return _unpackers(self.url)


class LayerGit(_Layer):
    """A git repository, which the host fetches."""

    named_by = ("url", "ref")
    source: Literal["git"] = Field(description="a repository")
    url: Repository = Field(description="URL that the host fetches")
    ref: GitRef = Field(description="a commit or tag; a moved tag is not noticed")

    def packages(self) -> list[str]:
        return ["git:amd64"]


class LayerWorkshop(_Source):
    """Items of the Steam workshop, as .vpk files in left4dead2/addons; each deploy fetches their updates."""

    source: Literal["workshop"] = Field(description="the Steam workshop")
    items: Annotated[tuple[WorkshopItem, ...], AfterValidator(_some)] = Field(description="item numbers")
    into: ClassVar[None] = None


Layer = Annotated[LayerOnControl | LayerArchive | LayerGit | LayerWorkshop, Field(discriminator="source")]


class Server(_Declared):
    """One game server: left4me-server@<id>.service."""

    port: Port | None = Field(description="UDP for game and A2S, TCP for RCON; None: the next free one in port_range")
    hostname: Line = Field(description="the name in the server browser")
    map: MapName = Field(description="the first map; a lobby may change it")
    gamemode: GameMode = Field(description="mp_gamemode at the start: coop, versus, mutation12 …")
    max_players: int = Field(ge=1, le=32, description="player slots")
    tickrate: int = Field(ge=10, le=128, description="ticks per second; more than 30 needs a mod")
    layers: tuple[LayerName, ...] = Field(description="names of the host's layers, topmost first")
    exec: tuple[CfgName, ...] = Field(description="cfg files from layers, executed at each map load")
    cvars: dict[CvarName, CvarValue] = Field(description="set after the exec files, at each map load")
    arguments: tuple[Argument, ...] = Field(description="additional command-line arguments of the game")
    admins: tuple[SteamId, ...] = Field(description="Steam IDs of SourceMod admins with all rights")
    rcon_password: Secret | None = Field(description="None: generated on the host")
    memory_max: Size = Field(description="bytes, as systemd's MemoryMax=")
    cpu_weight: Weight = Field(description="share of the CPU among the servers, as systemd's CPUWeight=")
    nice: int = Field(ge=-20, le=19, description="as systemd's Nice=")
    disk_max: DiskSize = Field(description="bytes that it may write to disk; infinity: no limit")
    keep: tuple[KeptPath, ...] = Field(description="paths that a reset keeps, such as left4dead2/cfg/banned_user.cfg")
    build: BuildName | None = Field(description="the build on the host that this server uses; None: the current one")
    restart: RestartPolicy = Field(description="after an update: never, when-empty, or at 05:30 (host time)")
    state: Literal["running", "stopped", "absent"] = Field(description="absent: removed, even with players")

    @property
    def lowers(self) -> tuple[str, ...]:
        """The layers over the game, topmost first, including left4me's own."""
        return ((ADMINS_LAYER,) if self.admins else ()) + self.layers

    @property
    def disk_bytes(self) -> int | None:
        """`disk_max` in bytes; None without a limit."""
        return None if self.disk_max == "infinity" else int(bytes_of(self.disk_max))


@cache
def shipped_server_defaults() -> dict[str, object]:
    """Return server_defaults of group_data/all.py, which an operator's own server_defaults extend."""
    data = runpy.run_path(str(Path(__file__).parent.parent / "group_data/all.py"))
    return {key: tuple(each) if isinstance(each, list) else each for key, each in data["server_defaults"].items()}


class Limits(_Declared):
    """Packets per second that the firewall lets through."""

    known: Rate = Field(
        description="queries of a client that the server has answered, per address and server; bursts of twice as many"
    )
    newcomers: Rate = Field(description="first packets of all other clients, per server; bursts of twice as many")
    player: Rate = Field(description="packets of a player, per address, port and server")


class Web(_Declared):
    """The page in Cockpit."""

    listen: Listen = Field(description="address and port on which Cockpit listens, such as 127.0.0.1:9090")
    # As of `build` above.
    url: PageAddress | None = Field(None, description="where operators' browsers reach that Cockpit, or None")

    @property
    def port(self) -> int:
        return int(self.listen.rpartition(":")[2])

    @property
    def address(self) -> str:
        """The address of `listen`, without brackets."""
        return self.listen.rpartition(":")[0].strip("[]")

    @property
    def is_public(self) -> bool:
        """Whether other machines can connect."""
        return not ip_address(self.address).is_loopback


class Host(_Declared):
    game: Annotated[Game, Field(discriminator="source", description="source of the game")]
    steamcmd_url: WebAddress = Field(description="URL of SteamCMD's archive")
    steamcmd_sha256: Sha256 | None = Field(description="checksum of that archive; None: not checked")
    update_at: Clock | None = Field(description="time of the daily update from Steam, in the host's time; None: never")
    builds_kept: int = Field(ge=0, le=100, description="unused builds to keep, for rollback")
    trial_port: Port = Field(description="port of the smoke test, outside of port_range")
    trial_server: Id | None = Field(description="server whose layers a second smoke test uses")
    layers: dict[LayerName, Layer] = Field(description="sources of the layers, by name")
    workshop_api: WebAddress = Field(description="base URL of Steam's web API, for workshop items")
    address: Address = Field(description="address that the servers bind; 0.0.0.0: every IPv4 address")
    port_range: tuple[Port, Port] = Field(description="first and last port for servers")
    uid: SystemId = Field(description="uid of the user left4me")
    gid: SystemId = Field(description="gid of the group left4me")
    memory_max: SizeOrPercent = Field(
        description="bytes, or 90% of the host's, for all servers together: MemoryMax= of left4me.slice"
    )
    cpu_weight: Weight = Field(description="CPU share against the rest of the host: CPUWeight= of left4me.slice")
    cpu_quota: Annotated[int, Field(ge=1, le=100000)] | None = Field(description="percent of one CPU, or None")
    operators: GroupName | None = Field(description="group that may run l4d2ctl with sudo, or None")
    web: Web | None = Field(description="the page in Cockpit, or None")
    webhook: WebAddress | None = Field(description="Discord-compatible URL to notify when a server fails, or None")
    attic_keep: int = Field(ge=1, le=1000, description="resets to keep per server, for undo")
    attic_max: Size = Field(description="bytes on disk for a server's resets; the latest stays in any case")
    firewall: bool = Field(description="whether a firewall protects the servers' ports, and the host from the servers")
    rcon_from: tuple[Network, ...] = Field(description="addresses and networks that may use RCON; loopback always may")
    game_may_reach: tuple[Endpoint, ...] = Field(description="what servers may reach on the host: 127.0.0.1:3306")
    firewall_limits: Limits = Field(description="packets per second that the firewall lets through")
    sysctl: dict[SysctlName, int] = Field(description="settings of the host's kernel, as in sysctl.d")
    servers: dict[Id, Server] = Field(description="the servers, by id")

    @property
    def attic_bytes(self) -> str:
        """`attic_max` as left4me-attic takes it: bytes or `inf`."""
        return f"{bytes_of(self.attic_max):.0f}"

    @property
    def present(self) -> dict[str, Server]:
        """The servers that belong on the host, running or stopped."""
        return {server_id: server for server_id, server in self.servers.items() if server.state != "absent"}

    @property
    def test_instances(self) -> dict[str, Server]:
        """The instances for smoke tests of a build."""
        own = {"port": self.trial_port, "hostname": "left4me: trial of a build", "state": "stopped", "restart": "never"}
        own |= {"admins": (), "rcon_password": None, "keep": (), "build": None, "disk_max": "infinity"}
        bare = {"map": "c1m1_hotel", "gamemode": "coop", "max_players": 4, "tickrate": 30, "layers": (), "exec": ()}
        bare |= {"cvars": {}, "arguments": (), "memory_max": "infinity", "cpu_weight": 100, "nice": 0}
        plain = Server.model_validate({**shipped_server_defaults(), **bare, **own})
        modded = self.servers[self.trial_server].model_copy(update=own) if self.trial_server else plain
        return {layout.BARE: plain, layout.MODDED: modded}

    @property
    def instances(self) -> dict[str, Server]:
        """All instances with files on the host: present servers and test instances."""
        return {**self.present, **self.test_instances}

    def with_ports(self, known: Mapping[str, int]) -> Host:
        """Return this host with a port for each present server: declared, else known, else the next free port.

        `known` has the ports of the servers on the host, including servers that are no longer declared.
        """
        first, last = self.port_range
        ports = {server_id: server.port for server_id, server in self.present.items()}
        for server_id, port in ports.items():
            if port is None and first <= known.get(server_id, 0) <= last and known[server_id] not in ports.values():
                ports[server_id] = known[server_id]
        # Ports of servers that may still run come last. Validation has checked that there are enough ports.
        others = {port for each, port in known.items() if each in ports or each not in self.servers}
        free = iter(sorted(set(range(first, last + 1)) - set(ports.values()), key=lambda port: (port in others, port)))
        servers = dict(self.servers)
        for server_id, port in ports.items():
            servers[server_id] = servers[server_id].model_copy(update={"port": port or next(free)})
        return self.model_copy(update={"servers": servers})
