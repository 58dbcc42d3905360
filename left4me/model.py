"""What an operator may declare: a host's data, typed and validated.

There are types and limits here and no defaults: every default stands, explained, in group_data/all.py.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    ValidationError,
)

VAR = "/var/lib/left4me"
VERSION_LENGTH = 8
"""Of a layer's version: 40 bits in base32. Every character counts, as all layers' paths share one page."""
PAGE = 4096
"""Bytes that mount(2) takes as its data."""
LAYER_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"
SIZE = r"infinity|[1-9][0-9]*[KMGT]?"
ADMINS_LAYER = "left4me-admins"
"""On top of a server that has admins: leads SourceMod to the file that the deploy writes for that server."""

SERVER_ID = r"[a-z0-9][a-z0-9_-]{0,19}"
"""What may follow the @ of a unit's name. With the prefix left4me- it fits a user name (32 characters)."""

_SSH = (
    "hostname port user password key key_password allow_agent look_for_keys forward_agent config_file known_hosts_file "
    "strict_host_key_checking paramiko_connect_kwargs connect_retries connect_retry_min_delay connect_retry_max_delay "
    "file_transfer_protocol"
)
_ARGUMENTS = (
    "sudo sudo_user use_sudo_login sudo_password preserve_sudo_env su_user use_su_login preserve_su_env su_shell "
    "su_password doas doas_user dzdo dzdo_user shell_executable env temp_dir timeout"
)
# What would undo what the unit, or a key of a server's own, decides; a password would be in every `ps`.
_DECIDED = frozenset({"hostname", "sv_lan", "rcon_password", "servercfgfile", "mp_gamemode", "map", "hostport"})
_NOT_ARGUMENTS = _DECIDED | {"game", "ip", "port", "maxplayers", "tickrate", "norestart", "restart", "strictportbind"}
_NOT_ARGUMENTS |= {"autoupdate", "debug", "steam_dir", "steamcmd_script", "binary", "ignoresigint"}
# What belongs to pyinfra in a host's data: its SSH connector's settings, and arguments of all operations.
PYINFRA_KEYS = frozenset([f"ssh_{key}" for key in _SSH.split()] + [f"_{key}" for key in _ARGUMENTS.split()])


def _single_line(text: str) -> str:
    # Unicode has line ends of its own, and control characters would reach a terminal.
    if re.search(r'["\\;\0-\x1f\x7f-\x9f\u2028\u2029]|//', text):
        raise ValueError('may not hold a newline or other control character, a quote ("), a backslash, ";" or "//"')
    return text


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
    if word.lstrip("-+").lower() in _NOT_ARGUMENTS:
        raise ValueError("is decided by left4me or by a key of its own")
    return word


def _cfg(text: str) -> str:
    path = PurePosixPath(text)
    if (
        path.is_absolute()
        or path.parts[:1] == ("left4me",)
        or not re.fullmatch(r"(?!.*(\.\.|//))[\w./-]+", text, re.ASCII)
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
    if path.is_absolute() or ".." in path.parts or not path.parts or not re.fullmatch(r"[\w/.+@ -]+", text):
        raise ValueError("must be a path below the server's directory, without ..")
    return str(path)


def _web(text: str) -> str:
    if not re.fullmatch(r"https?://[^/@]+(/[!-~]*)?", text, re.ASCII) or not text.isprintable() or " " in text:
        raise ValueError("must be an address that begins with https:// or http://, without user and password")
    return text


def _repository(text: str) -> str:
    if text.startswith(("git://", "ssh://")) and re.fullmatch(r"\w+://([\w.-]+@)?[^/@]+(/[!-~]*)?", text, re.ASCII):
        return text
    return _web(text)


Id = Annotated[str, StringConstraints(pattern=f"^{SERVER_ID}$")]
LayerName = Annotated[str, StringConstraints(pattern=f"^{LAYER_NAME}$"), AfterValidator(_layer_name)]
MapName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$")]
GameMode = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]{1,32}$")]
CvarName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$"), AfterValidator(_cvar_name)]
CvarValue = Annotated[
    str, BeforeValidator(_cvar_value), StringConstraints(max_length=250), AfterValidator(_single_line)
]
Argument = Annotated[str, StringConstraints(max_length=120), AfterValidator(_argument)]
CfgName = Annotated[str, StringConstraints(min_length=1, max_length=120), AfterValidator(_cfg)]
SteamId = Annotated[str, StringConstraints(pattern=r"^(STEAM_[0-5]:[01]:[0-9]{1,10}|\[U:1:[0-9]{1,10}\])$")]
Secret = Annotated[SecretStr, AfterValidator(_secret)]
Port = Annotated[int, Field(ge=1024, le=65535)]
Weight = Annotated[int, Field(ge=1, le=10000)]
SystemId = Annotated[int, Field(ge=1, le=999)]
Line = Annotated[str, StringConstraints(min_length=1, max_length=120), AfterValidator(_single_line)]
Size = Annotated[str, AfterValidator(_size)]
Address = Annotated[str, AfterValidator(_address)]
KeptPath = Annotated[str, AfterValidator(_kept)]
WebAddress = Annotated[str, AfterValidator(_web)]
Repository = Annotated[str, AfterValidator(_repository)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
GitRef = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_./+-]{0,99}$")]
GroupName = Annotated[str, StringConstraints(pattern=r"^[a-z_][a-z0-9_-]{0,31}$")]
AbsolutePath = Annotated[str, AfterValidator(_absolute)]


class _Declared(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class GameOnHost(_Declared):
    """An installation that is on the host already, such as another tool's serverfiles; only read."""

    source: Literal["host"]
    path: AbsolutePath = Field(description="the directory that holds srcds_run")


class GameOnControl(_Declared):
    """A directory on the machine that runs pyinfra, sent to the host."""

    source: Literal["control"]
    path: str = Field(description="the directory that holds srcds_run; relative to where pyinfra is started")


class LayerOnControl(_Declared):
    """A directory on the machine that runs pyinfra; only what changed is sent."""

    source: Literal["control"]
    path: str = Field(description="the directory that holds left4dead2/; relative to where pyinfra is started")


class LayerArchive(_Declared):
    """A tar.gz, tar.xz or zip that the host downloads."""

    source: Literal["archive"]
    url: WebAddress = Field(description="where the host gets it")
    sha256: Sha256 = Field(description="of the archive; another is refused")
    strip: int = Field(ge=0, le=9, description="leading directories to leave out, until left4dead2/ is on top")


class LayerGit(_Declared):
    """A git repository that the host fetches."""

    source: Literal["git"]
    url: Repository = Field(description="where the host gets it")
    ref: GitRef = Field(description="a commit, or a tag, which is taken not to move")


class LayerWorkshop(_Declared):
    """Items of the Steam workshop, as .vpk files in left4dead2/addons; refreshed when they are updated there."""

    source: Literal["workshop"]
    items: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1, description="their numbers")


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
    state: Literal["running", "stopped", "absent"] = Field(description="absent: removed, whoever plays there")

    @property
    def lowers(self) -> tuple[str, ...]:
        """The layers over the game, the topmost first, with left4me's own."""
        return ((ADMINS_LAYER,) if self.admins else ()) + self.layers


class Host(_Declared):
    """Everything that a host's data says."""

    game: Annotated[GameOnHost | GameOnControl, Field(discriminator="source")]
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
    servers: dict[Id, Server]

    @property
    def present(self) -> dict[str, Server]:
        """The servers that are to be on the host, running or stopped."""
        return {server_id: server for server_id, server in self.servers.items() if server.state != "absent"}

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


@dataclass(frozen=True, order=True)
class Mistake:
    """One thing in the data that cannot be deployed."""

    host: str
    key: str
    value: str
    reason: str

    def __str__(self) -> str:
        """One line, whatever the data hold: host, key, value, reason."""
        line = f"{self.host}: {self.key}: {self.value}: {self.reason}"
        return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)


class InvalidData(Exception):
    """A host's data does not validate; `mistakes` has all of them."""

    def __init__(self, mistakes: list[Mistake]) -> None:
        super().__init__("\n".join(map(str, mistakes)))
        self.mistakes = mistakes


_REASONS = {
    "missing": "is missing",
    "extra_forbidden": "is not a known key",
    "union_tag_not_found": "is missing",
}


def _reason(error: Mapping[str, Any]) -> str:
    if error["type"] == "string_pattern_mismatch":
        return f"must match {error['ctx']['pattern']}"
    message = str(error["msg"]).removeprefix("Value error, ")
    return _REASONS.get(error["type"], message[0].lower() + message[1:])


def _mistake(host: str, error: Mapping[str, Any]) -> Mistake:
    # pydantic names the branch of a union (host, control) and marks a dictionary's key as [key].
    parts = [str(part) for part in error["loc"] if part != "[key]"]
    branch = {"game": 1, "layers": 2}.get(parts[0])
    if branch and len(parts) > branch:
        del parts[branch]
    if error["type"] == "missing":
        value = "(nothing)"
    elif error["type"] == "extra_forbidden" or {"rcon_password", "webhook"} & {*parts}:
        value = "(hidden)"  # a misspelt key may be a password's
    else:
        value = _shown(error["input"])
    return Mistake(host, ".".join(parts), value, _reason(error))


def _shown(value: object) -> str:
    """Return the beginning of a value, without what may be secret in it."""
    text = re.sub(r"://[^/\s]+@", "://(hidden)@", repr(value))
    return "(hidden)" if "rcon_password" in text else text[:60]


def _unlisted(value: Any) -> Any:
    """Return lists, which are what operators write, as tuples: the model holds what cannot change."""
    if isinstance(value, dict):
        return {key: _unlisted(each) for key, each in value.items()}
    return tuple(value) if isinstance(value, list) else value


def _merged(data: Mapping[str, Any]) -> dict[str, Any]:
    """The host's data with server_defaults under each of its servers."""
    merged = {key: _unlisted(value) for key, value in data.items() if key not in PYINFRA_KEYS}
    defaults, servers = merged.pop("server_defaults", None), merged.get("servers")
    if isinstance(defaults, dict) and isinstance(servers, dict):
        merged["servers"] = {
            name: {**defaults, **own} if isinstance(own, dict) else own for name, own in servers.items()
        }
    return merged


def _across_servers(name: str, data: Mapping[str, Any]) -> Iterator[Mistake]:
    """Find what no single value shows, in data of which any part may be wrong."""
    servers = data.get("servers")
    if not isinstance(servers, dict):
        return
    present = {
        server_id: server
        for server_id, server in servers.items()
        if isinstance(server, dict) and server.get("state") != "absent"
    }
    yield from _ports(name, data.get("port_range"), present)
    yield from _memory(name, data.get("memory_max"), present)
    for server_id, server in present.items():
        keep = [str(path) for path in server["keep"]] if isinstance(server.get("keep"), tuple) else []
        for path in keep:
            if any(path.startswith(f"{other}/") for other in keep) or keep.count(path) > 1:
                yield Mistake(name, f"servers.{server_id}.keep", repr(path), "is kept already by another line")
        if isinstance(server.get("layers"), tuple):
            names = [str(layer) for layer in server["layers"]]
            key = f"servers.{server_id}.layers"
            yield from (Mistake(name, key, *why) for why in _layers(server_id, names, data.get("layers")))


def _ports(name: str, allowed: Any, servers: Mapping[Any, dict[str, Any]]) -> Iterator[Mistake]:
    owners: dict[int, str] = {}
    ranged = isinstance(allowed, tuple) and len(allowed) == 2 and all(isinstance(port, int) for port in allowed)
    if ranged and len(servers) > allowed[1] - allowed[0] + 1:
        yield Mistake(name, "port_range", repr(allowed), f"is too short for {len(servers)} servers")
    for server_id, server in servers.items():
        port = server.get("port")
        if not isinstance(port, int) or isinstance(port, bool):
            continue
        if owners.setdefault(port, server_id) != server_id:
            reason = f"is the port of server {owners[port]} too"
            yield Mistake(name, f"servers.{server_id}.port", str(port), reason)
        elif ranged and 1024 <= port <= 65535 and not allowed[0] <= port <= allowed[1]:
            reason = f"is not in port_range, {allowed[0]} to {allowed[1]}"
            yield Mistake(name, f"servers.{server_id}.port", str(port), reason)


def _memory(name: str, budget: Any, servers: Mapping[Any, dict[str, Any]]) -> Iterator[Mistake]:
    sizes = [str(server.get("memory_max")) for server in servers.values()]
    if budget == "infinity" or not all(re.fullmatch(SIZE, each) for each in [str(budget), *sizes]):
        return
    if sum(map(bytes_of, sizes)) > bytes_of(budget):
        reason = f"is less than the memory_max of its servers together: {' + '.join(sizes)}"
        yield Mistake(name, "memory_max", repr(budget), reason)


def _layers(server_id: Any, names: list[str], declared: Any) -> Iterator[tuple[str, str]]:
    """Yield value and reason of what is wrong with a server's layers."""
    for layer, count in Counter(names).items():
        if count > 1:
            yield repr(layer), f"is there {count} times"
        elif isinstance(declared, dict) and layer not in declared and re.fullmatch(LAYER_NAME, layer):
            yield repr(layer), f"is not one of the host's layers: {', '.join(map(str, declared)) or 'it has none'}"
    # As left4me-overlay writes them for mount(2), which takes one page (mount(2), "data"); 20 is the longest release.
    own = f"{VAR}/runtime/{server_id}/"
    rest = f"lowerdir={VAR}/releases/{'r' * 20},upperdir={own}upper,workdir={own}work,"
    rest += f"index=off,metacopy=off,redirect_dir=off,xino=off{VAR}/overlays/{ADMINS_LAYER}/{'v' * VERSION_LENGTH}:"
    left = PAGE - 1 - len(rest)
    for count, layer in enumerate(names):
        left -= len(f"{VAR}/overlays/{layer}/{'v' * VERSION_LENGTH}:")
        if left < 0:
            yield f"{len(names)} layers", f"is too many for one mount: with these names {count} fit"
            return


def _is_here(name: str, key: str, source: Any, needs: str = "") -> Iterator[Mistake]:
    """Look at a directory on this machine; one on the host is looked at by its preflight."""
    if not isinstance(source, dict) or source.get("source") != "control" or not isinstance(source.get("path"), str):
        return
    path = Path(source["path"])
    if not path.is_dir():
        yield Mistake(name, f"{key}.path", repr(source["path"]), "is no directory on this machine")
    elif needs and not os.access(path / needs, os.X_OK):
        reason = f"holds no {needs} that can be executed: it must be the directory of an installed L4D2 server"
        yield Mistake(name, f"{key}.path", repr(source["path"]), reason)


def _beside_the_types(name: str, data: Mapping[str, Any], merged: Mapping[str, Any]) -> Iterator[Mistake]:
    """Find all that types and limits of single values do not."""
    yield from _across_servers(name, merged)
    yield from _is_here(name, "game", merged.get("game"), "srcds_run")
    if isinstance(merged.get("layers"), dict):
        for layer, source in merged["layers"].items():
            yield from _is_here(name, f"layers.{layer}", source)
    if not isinstance(data.get("server_defaults"), dict):
        yield Mistake(name, "server_defaults", _shown(data.get("server_defaults")), "must be a dictionary")
    timeout = data.get("_timeout", 1)
    if isinstance(timeout, bool) or not isinstance(timeout, int) or timeout < 1:
        yield Mistake(name, "_timeout", repr(timeout), "must be a whole number of seconds, 1 or more")


def validate(name: str, data: Mapping[str, Any]) -> Host:
    """Return what the data of the host called `name` declares.

    Raises InvalidData with every mistake there is.
    """
    merged = _merged(data)
    mistakes = set(_beside_the_types(name, data, merged))
    try:
        host = Host.model_validate(merged)
    except ValidationError as error:
        mistakes |= {_mistake(name, dict(each)) for each in error.errors()}
    if mistakes:
        raise InvalidData(sorted(mistakes))
    return host


def validate_all(hosts: Mapping[str, Mapping[str, Any]]) -> dict[str, Host]:
    """Return the model of each host by its name; raise InvalidData with the mistakes of all of them."""
    models, mistakes = {}, []
    for name, data in hosts.items():
        try:
            models[name] = validate(name, data)
        except InvalidData as invalid:
            mistakes += invalid.mistakes
    if mistakes:
        raise InvalidData(mistakes)
    return models
