"""What an operator may declare: a host's data, typed and validated.

There are types and limits here and no defaults: every default stands, explained, in group_data/all.py.
"""

from __future__ import annotations

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
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)

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
# What belongs to pyinfra in a host's data: its SSH connector's settings, and arguments of all operations.
PYINFRA_KEYS = frozenset([f"ssh_{key}" for key in _SSH.split()] + [f"_{key}" for key in _ARGUMENTS.split()])


def _single_line(text: str) -> str:
    if re.search(r'["\\\n\r\0;]|//', text):
        raise ValueError('may not hold a newline, a quote ("), a backslash, ";" or "//"')
    return text


def _size(text: str) -> str:
    if text != "infinity" and not re.fullmatch(r"[1-9][0-9]*[KMGT]?", text):
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


def _webhook(text: str) -> str:
    if not re.fullmatch(r"https?://[!-~]+", text):
        raise ValueError("must be an address that begins with https:// or http://")
    return text


Id = Annotated[str, StringConstraints(pattern=f"^{SERVER_ID}$")]
LayerName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
MapName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$")]
Port = Annotated[int, Field(ge=1024, le=65535)]
Weight = Annotated[int, Field(ge=1, le=10000)]
SystemId = Annotated[int, Field(ge=1, le=999)]
Line = Annotated[str, StringConstraints(min_length=1, max_length=120), AfterValidator(_single_line)]
Size = Annotated[str, AfterValidator(_size)]
Address = Annotated[str, AfterValidator(_address)]
KeptPath = Annotated[str, AfterValidator(_kept)]
Webhook = Annotated[str, AfterValidator(_webhook)]
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


class Server(_Declared):
    """One game server: left4me-server@<id>.service."""

    port: Port = Field(description="UDP for the game and A2S, TCP for RCON")
    hostname: Line = Field(description="the name that players see in the browser")
    map: MapName = Field(description="the map it starts with; a lobby may change it")
    max_players: int = Field(ge=1, le=32, description="player slots")
    layers: tuple[LayerName, ...] = Field(description="names below overlays/, the topmost first")
    memory_max: Size = Field(description="bytes, as systemd's MemoryMax=")
    cpu_weight: Weight = Field(description="share of the CPU among the servers, as systemd's CPUWeight=")
    keep: tuple[KeptPath, ...] = Field(description="paths that a reset keeps, such as left4dead2/cfg/banned_user.cfg")
    nice: int = Field(ge=-20, le=19, description="as systemd's Nice=")


class Host(_Declared):
    """Everything that a host's data says."""

    game: Annotated[GameOnHost | GameOnControl, Field(discriminator="source")]
    address: Address = Field(description="what the servers bind; 0.0.0.0 is every IPv4 address")
    uid: SystemId = Field(description="of the user left4me")
    gid: SystemId = Field(description="of the group left4me")
    memory_max: Size = Field(description="bytes, of all servers together: MemoryMax= of left4me.slice")
    cpu_weight: Weight = Field(description="share of the CPU against the rest of the host: left4me.slice")
    operators: GroupName | None = Field(description="the group that may run l4d2ctl with sudo, or None")
    webhook: Webhook | None = Field(description="told when a server fails, as Discord takes it, or None")
    attic_keep: int = Field(ge=1, le=1000, description="how many resets of each server can be undone")
    server_defaults: dict[str, Any] = Field(description="what every server has that does not say otherwise")
    servers: dict[Id, Server]


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
    if parts[0] == "game" and len(parts) > 1:
        parts = ["game", *parts[2:]]
    value = "(nothing)" if error["type"] == "missing" else repr(error["input"])
    return Mistake(host, ".".join(parts), value[:60], _reason(error))


def _merged(data: Mapping[str, Any]) -> dict[str, Any]:
    """The host's data with server_defaults under each of its servers."""
    merged = {key: value for key, value in data.items() if key not in PYINFRA_KEYS}
    defaults, servers = merged.get("server_defaults"), merged.get("servers")
    if isinstance(defaults, dict) and isinstance(servers, dict):
        merged["servers"] = {
            # Lists are what operators write; the model holds what cannot change.
            name: {
                key: tuple(value) if isinstance(value, list) else value for key, value in {**defaults, **own}.items()
            }
            if isinstance(own, dict)
            else own
            for name, own in servers.items()
        }
    return merged


def _across_servers(name: str, data: Mapping[str, Any]) -> Iterator[Mistake]:
    """Find what no single value shows, in data of which any part may be wrong."""
    servers = data.get("servers")
    if not isinstance(servers, dict):
        return
    owners: dict[int, str] = {}
    for server_id, server in servers.items():
        if not isinstance(server, dict):
            continue
        port, layers = server.get("port"), server.get("layers")
        if isinstance(port, int) and owners.setdefault(port, server_id) != server_id:
            reason = f"is the port of server {owners[port]} too"
            yield Mistake(name, f"servers.{server_id}.port", str(port), reason)
        keep = [str(path) for path in server.get("keep") or ()]
        for path in keep:
            if any(path.startswith(f"{other}/") for other in keep) or keep.count(path) > 1:
                yield Mistake(name, f"servers.{server_id}.keep", repr(path), "is kept already by another line")
        if isinstance(layers, tuple):
            for layer, count in Counter(map(str, layers)).items():
                if count > 1:
                    yield Mistake(name, f"servers.{server_id}.layers", repr(layer), f"is there {count} times")


def _game_here(name: str, data: Mapping[str, Any]) -> Iterator[Mistake]:
    """Look at a game directory on this machine; one on the host is looked at by its preflight."""
    game = data.get("game")
    if not isinstance(game, dict) or game.get("source") != "control" or not isinstance(game.get("path"), str):
        return
    if not Path(game["path"]).is_dir():
        yield Mistake(name, "game.path", repr(game["path"]), "is no directory on this machine")
    elif not os.access(Path(game["path"]) / "srcds_run", os.X_OK):
        reason = "holds no srcds_run that can be executed: it must be the directory of an installed L4D2 server"
        yield Mistake(name, "game.path", repr(game["path"]), reason)


def validate(name: str, data: Mapping[str, Any]) -> Host:
    """Return what the data of the host called `name` declares.

    Raises InvalidData with every mistake there is.
    """
    merged = _merged(data)
    mistakes = {*_across_servers(name, merged), *_game_here(name, merged)}
    timeout = data.get("_timeout", 1)
    if isinstance(timeout, bool) or not isinstance(timeout, int) or timeout < 1:
        mistakes.add(Mistake(name, "_timeout", repr(timeout), "must be a whole number of seconds, 1 or more"))
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
